"""Steps for ``timing.apart``: the words say what goes wrong."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import timing


def step() -> None:
    if sys.argv[1] == "fails":
        raise SystemExit(3)
    with Path(sys.argv[1]).open("a", encoding="utf-8") as f:
        f.write(f"{sys.argv[2]}\n")


timing.serve(step)
