"""python -m benchmarks.mmdet_results data=cards6 split=3+3 out=runs/mmdet [weights=yolox_nano_coco.pth size=192 …]

Two tasks with ciod's own detector and with MMDetection's model through the adapter, from equal weights (trunk, head and
new rows) and equal seeds, and whether what they end with differs by more than seeds do. Needs the extra mmdet
(docs/mmdetection.md). Words are settings of ``ciod train``; a run that is finished in ``out`` is not repeated.

    python -m benchmarks.mmdet_results data=cards6 split=3+3 out=runs/mmdet weights=yolox_nano_coco.pth size=192 \\
        batch=8 lr=3e-3 epochs=12 --detector gfl-nano --methods erd --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ciod import detectors
from ciod.config import load as config
from ciod.detectors.files import mmdet_files
from ciod.exporters import mmdet_file
from ciod.report import paired
from ciod.report.compared import SCORES, comparison_markdown
from ciod.runs import run as engine

SIDES = ("ciod", "adapter")


def config_of(name: str, folder: Path) -> Path:
    """MMDetection's config of a native detector."""
    return mmdet_file.export(detectors.build(("any",), name=name, backbone_weights=None), folder).config


@contextmanager
def from_equal_weights(native: str) -> Iterator[None]:
    """Runs of the adapter start from the tensors that a run of ``native`` with their seed starts from."""
    real = engine.start

    def start(settings: config.Run, *more: Any) -> tuple[Any, list[str]]:
        detector, notes = real(settings, *more)
        if settings.detector.name.startswith("mmdet:"):
            chosen = settings.detector.model_copy(update={"name": native})
            own, _ = real(settings.model_copy(update={"detector": chosen}), *more)
            mmdet_files.fill(detector, mmdet_files.state_of(own), native)
        torch.manual_seed(settings.seed)  # building took more or fewer random numbers
        return detector, notes

    engine.start = start
    try:
        yield
    finally:
        engine.start = real


def train(words: Sequence[str], out: Path, until: int | None = None) -> Path:
    """Runs what is not finished there; ``until``: number of tasks."""
    if not (out / ("results.json" if until is None else f"task-{until}/model.safetensors")).is_file():
        engine.train(config.load(None, [*words, f"out={out}"]), command=" ".join(words), until=until)
    return out


def runs(args: argparse.Namespace, words: list[str], out: Path) -> list[tuple[str, dict[str, Any]]]:
    """(method and side, results) of every run."""
    found = []
    with tempfile.TemporaryDirectory() as folder, from_equal_weights(args.detector):
        names = {"ciod": args.detector, "adapter": f"mmdet:{config_of(args.detector, Path(folder))}"}
        for seed in args.seeds:
            for side in SIDES:
                given = [*words, f"seed={seed}", f"detector={names[side]}"]
                first = out / f"first-{side}-{seed}"
                train([*given, "method=finetune"], first, until=1)
                for method in args.methods:
                    to = out / f"{method}-{side}-{seed}"
                    train([*given, f"method={method}", f"first={first}"], to)
                    found.append((f"{method} {side}", json.loads((to / "results.json").read_text(encoding="utf-8"))))
    return found


def main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--detector", default="yolox-nano")
    parser.add_argument("--methods", nargs="+", default=["ilyolox", "erd", "pseudo_label"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_intermixed_args(given)
    out = next((Path(w.partition("=")[2]) for w in args.words if w.startswith("out=")), Path("runs/mmdet"))
    found = runs(args, [w for w in args.words if not w.startswith("out=")], out / args.detector)
    print(f"\n{args.detector}, {len(args.seeds)} seeds\n")
    print(comparison_markdown(found, SCORES))
    print("the adapter minus ciod's own, in points, with 95 % intervals of differences within a seed\n")
    for method in args.methods:
        pair = [(name, content) for name, content in found if name.rpartition(" ")[0] == method]
        print(paired.markdown(paired.differences(pair, f"{method} ciod"), f"{method} ciod"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
