"""python -m benchmarks.vs_mmdet

A training step of ciod's YOLOX or GFL against MMDetection's own model of the same weights: forward, its own ``loss``,
backward, optimiser; and MMDetection's model through ciod's adapter. ``mmdetection`` is as its own loop trains it, with
the usual memory layout; ``mmdetection channels last`` has ciod's. ``--compile`` adds ciod's step with
``train.compile=true``, ``--keep-freed`` both with what ``train.keep_freed=true`` does. Each has a process of its own,
with the layout and optimiser it trains with; they take turns; time and peak memory as ratios. Needs the extra mmdet
(docs/mmdetection.md).

    python -m benchmarks.vs_mmdet --detector gfl-r50 --size 640 --batch 8
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import timing
from benchmarks.step import batch, fine_tuning, updating
from ciod import detectors
from ciod.config.load import Train
from ciod.core.distributed import World
from ciod.detectors.files import weights
from ciod.exporters import mmdet_file
from ciod.training import allocator

LAST = "mmdetection channels last"
THEIRS = ("mmdetection", LAST)
SIDES = ("ciod", "adapter", *THEIRS)
COMPILED = "ciod compiled"
KEPT = " keeping freed"


def stepper(side: str, args: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """One whole fine-tuning step; all sides have the same weights, pictures and boxes, and every layer trains."""
    torch.manual_seed(0)
    names = tuple(f"class {i}" for i in range(args.classes))
    native = detectors.build(names, name=args.detector, size=args.size, backbone_weights=None)
    detector: Any = native
    if side not in ("ciod", COMPILED):
        with tempfile.TemporaryDirectory() as folder:
            written = mmdet_file.export(native, folder)
            detector = weights.load(f"mmdet:{written.config},{written.checkpoint}")
        detector.hold(False)
    detector.to(device).train()
    settings = Train(optimizer="sgd", lr=1e-4, compile=side == COMPILED)
    data = batch(args.batch, args.size, args.classes, 0, device)
    if side not in THEIRS:
        return fine_tuning(detector, settings, data, World(device=device))
    if side == LAST:
        detector.to(memory_format=torch.channels_last)
    # as MMEngine builds one
    rates = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    optimizer = torch.optim.SGD(detector.parameters(), nesterov=settings.nesterov, **rates)
    return updating(own(detector, data, args.size), optimizer)


def own(detector: Any, data: Any, size: int) -> Callable[[], list[torch.Tensor]]:
    """MMDetection's ``loss``, after its own way of normalising, of the adapter's model."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for boxes, labels in zip(data.targets.boxes, data.targets.labels, strict=True):
        sample = DetDataSample(metainfo=dict.fromkeys(("img_shape", "pad_shape", "batch_input_shape"), (size, size)))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        samples.append(sample)

    def losses() -> list[torch.Tensor]:
        found = detector.model.loss(detector.normalise(data.images), samples)
        return [t for v in found.values() for t in (v if isinstance(v, (list, tuple)) else [v])]

    return losses


def main() -> None:
    parse = timing.parser(__doc__, detector="yolox-s", size=640, batch=8, classes=80, rounds=5)
    parse.add_argument("--serve", help=argparse.SUPPRESS)
    parse.add_argument("--compile", action="store_true")
    parse.add_argument("--keep-freed", action="store_true")
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.serve:
        with allocator.keeping_freed(device, wanted=args.serve.endswith(KEPT)):
            timing.serve(stepper(args.serve.removesuffix(KEPT), args, device))
        return
    sides = [*SIDES, *[COMPILED] * args.compile, *["ciod" + KEPT, "mmdetection" + KEPT] * args.keep_freed]
    argv = timing.without(sys.argv[1:], ("--json", "--rounds"))
    commands = {s: ["benchmarks.vs_mmdet", *argv, "--serve", s] for s in sides}
    seconds, peak = timing.apart(commands, rounds=args.rounds)
    lines = [f"{args.detector}, {args.size} px, batch {args.batch}, {args.classes} classes"]
    figures = timing.against("mmdetection", seconds, peak, lines)
    timing.tell(lines, {"settings": timing.settings(args), "sides": figures}, args.json)


if __name__ == "__main__":
    main()
