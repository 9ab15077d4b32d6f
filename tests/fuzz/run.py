"""python -m tests.fuzz.run coco voc … --minutes 10 [--seed 0]

Coverage-guided fuzzing of the parsers: input that reaches new lines is kept and mutated further. What ends in anything
but a result or a CiodError is written to ``tests/fuzz/corpus/TARGET/`` and printed; the exit code is then 1.
Without targets: all of them, one after another. Minutes are of the processor, for each target.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import ciod
from ciod.core.errors import CiodError
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import CORPUS, TARGETS, corpus

PACKAGE = str(Path(ciod.__file__).parent)


class Lines:
    """Which lines of the package ran."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()
        self.new = False

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        del arg
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            place = (frame.f_code.co_filename, frame.f_lineno)
            if place not in self.seen:
                self.seen.add(place)
                self.new = True
        return self.trace


def fuzz(name: str, seconds: float, seed: int) -> int:
    """Returns how many inputs ended in something else; each is kept."""
    rng, pool, lines = random.Random(seed), corpus(name), Lines()
    tried = refused = failed = 0
    began = time.process_time()
    while time.process_time() - began < seconds:
        content = pool[tried] if tried < len(pool) else mutate(rng.choice(pool), rng, pool)
        tried += 1
        with tempfile.TemporaryDirectory() as folder:
            lines.new = False
            sys.settrace(lines.trace)
            try:
                TARGETS[name].run(content, Path(folder))
            except CiodError:
                refused += 1
            except Exception as e:
                sys.settrace(None)
                failed += _keep(name, content, e)
            finally:
                sys.settrace(None)
        if lines.new and len(content) < 1 << 20:
            pool.append(content)
    print(
        f"{name}: {tried} inputs, {refused} refused with a message, {len(lines.seen)} lines reached, {failed} failures"
    )
    return failed


def _keep(name: str, content: bytes, error: Exception) -> int:
    """1 for a failure at a place that has not failed before."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(PACKAGE)]
    place = f"{type(error).__name__} {Path(frames[-1].filename).name}:{frames[-1].name}" if frames else repr(error)
    path = CORPUS / name / hashlib.sha256(place.encode()).hexdigest()[:12]
    if path.exists():
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"{name}: {place}: {str(error)[:200]!r} → {path}")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    unknown = set(words.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    warnings.simplefilter("ignore")
    return int(sum(fuzz(name, 60 * words.minutes, words.seed) for name in words.targets or TARGETS) > 0)


if __name__ == "__main__":
    sys.exit(main())
