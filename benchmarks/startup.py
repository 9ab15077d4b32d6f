"""python -m benchmarks.startup

How long the parts a user waits for take: ``import ciod``, ``ciod --help``, loading YOLOX-nano with its first prediction
(everything that must be imported for it too) and the whole of ``ciod predict``, each in fresh processes; the empty
interpreter beside them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import timing

PREDICT = """
import sys, time, ciod
ciod.load(sys.argv[1]).predict(sys.argv[2])
print(time.process_time())
"""


def seconds(argv: list[str], rounds: int, *, printed: bool = False) -> float:
    """Median of the processes' own CPU time, to their end or until they say it: other work does not count."""
    spent = []
    for _ in range(rounds):
        before = os.times()
        done = subprocess.run([sys.executable, *argv], check=True, capture_output=True, text=True)
        after = os.times()
        whole = after.children_user + after.children_system - before.children_user - before.children_system
        spent.append(float(done.stdout) if printed else whole)
    return statistics.median(spent)


def main() -> None:
    args = timing.parser(__doc__, rounds=5).parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, picture = Path(folder) / "nano.safetensors", Path(folder) / "noise.jpg"
        _write(model, picture)
        predict = ["-m", "ciod.cli", "predict", str(model), str(picture), f"out={folder}/out"]
        rounds = args.rounds
        figures = {
            "python": seconds(["-c", "pass"], rounds),
            "import ciod": seconds(["-c", "import ciod"], rounds),
            "ciod --help": seconds(["-m", "ciod.cli", "--help"], rounds),
            "import torch": seconds(["-c", "import torch"], rounds),
            "load and first prediction": seconds(["-c", PREDICT, str(model), str(picture)], rounds, printed=True),
            "ciod predict": seconds(predict, rounds),
        }
    timing.tell([f"{name:26s} {value:.2f} s" for name, value in figures.items()], {"seconds": figures}, args.json)


def _write(model: Path, picture: Path) -> None:
    from ciod import detectors
    from ciod.detectors.files import weights

    weights.save_model(model, detectors.build([f"class {i}" for i in range(80)], name="yolox-nano"))
    noise = np.random.default_rng(int(time.time())).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)


if __name__ == "__main__":
    main()
