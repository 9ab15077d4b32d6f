"""Speed and memory as ratios: each module is a command that compares alternatives in one interleaved run."""
