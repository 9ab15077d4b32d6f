"""python -m benchmarks.step

A training step of every method against one of fine-tuning: forward, teacher, losses, backward, optimiser. Time as
ratios from one interleaved run, and peak memory from a process of its own for each method. Of every image the teacher
keeps ``--kept`` positions (94: the paper's 750 of a batch of 8).

    python -m benchmarks.step --detector yolox-r50 --size 640 --batch 8 --methods ilyolox,pseudo_label --teacher bf16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch

from benchmarks import timing
from ciod import detectors, methods
from ciod.config.load import Train
from ciod.core.distributed import World
from ciod.core.types import Batch, Targets
from ciod.data.index import Index, empty_columns
from ciod.data.scenarios.scenario import Task
from ciod.detectors.base import Detector
from ciod.methods.ilyolox import ILYOLOX
from ciod.training import optim, speed


def task(old: tuple[str, ...], new: tuple[str, ...]) -> Task:
    """A second task without images: what a method needs to begin."""
    index = Index(old + new, [], np.zeros((0, 2), np.int32), np.zeros(0, np.int64), **empty_columns())
    return Task(1, new, old, index, index, 0, 0)


def batch(images: int, size: int, classes: int, old: int, device: torch.device) -> Batch:
    """Noise with eight boxes of new classes an image."""
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(images, 8, 2, generator=g) * size * 0.7
    boxes = torch.cat([corner, corner + size * (0.05 + 0.2 * torch.rand(images, 8, 2, generator=g))], 2)
    labels = torch.randint(old, classes, (images, 8), generator=g)
    targets = Targets(boxes, labels, torch.ones(images, 8, dtype=torch.bool))
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=g)
    names = [f"{i}.jpg" for i in range(images)]
    sizes, scales = torch.full((images, 2), size), torch.ones(images)
    return Batch(pixels, targets, names, sizes, scales, torch.arange(images)).to(device)


def updating(losses: Callable[[], Iterable[torch.Tensor]], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A step: losses, their gradients, the optimiser's update."""

    def step() -> None:
        found = [v.sum() for v in losses()]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(found).sum().backward()
        optimizer.step()

    return step


def fine_tuning(detector: Detector, settings: Train, data: Batch, process_group: World) -> Callable[[], None]:
    """A step of plain fine-tuning, with the detector prepared as a run does it."""
    speed.prepare(detector, settings, process_group)
    forward = speed.student(detector, settings, process_group)

    def losses() -> Iterable[torch.Tensor]:
        outputs = forward(data.images)
        return detector.loss(outputs, data.targets, detector.match(outputs, data.targets)).values()

    return updating(losses, optim.optimizer(detector, settings, settings.lr))


@torch.no_grad()
def awaken(detector: Detector, data: Batch, wanted: int) -> int:
    """Makes a teacher of random weights that has as much to say as a trained one.

    Args:
        wanted: positions of the batch that center resampling shall keep.

    Returns:
        How many it keeps.
    """
    for layer in getattr(getattr(detector, "head", None), "obj", ()):
        layer.bias.fill_(3.0)  # objects everywhere: the classes alone decide
    for rows in detector.class_layers():
        torch.nn.init.normal_(rows.tensor, 0, 0.2)
    deviation = detector.eval()(data.images).logits.std(1).mean()
    for rows in detector.class_layers():
        rows.tensor *= 3 / deviation  # positions of noise answer alike
    outputs = detector(data.images)
    crs = ILYOLOX(only_old=False)  # there are no others yet

    def kept(shift: float) -> int:
        return int(crs.choose(replace(outputs, logits=outputs.logits + shift)).valid.sum())

    low, high = -1000.0, 1000.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) < wanted else (low, middle)
    for rows in detector.class_layers():
        if rows.name.endswith("bias"):
            rows.tensor += high
    return kept(high)


@contextmanager
def stepper(name: str, args: argparse.Namespace, device: torch.device) -> Iterator[Callable[[], None]]:
    """One whole training step of method ``name`` on the second of two tasks."""
    torch.manual_seed(0)
    train = Train(teacher=args.teacher, amp=args.amp, share_frozen=args.share_frozen, optimizer="sgd", lr=1e-4)
    frozen = {"frozen": True} if args.detector.startswith("yolox-r") else {}
    known = tuple(f"class {i}" for i in range(args.old))
    detector = detectors.build(known, name=args.detector, size=args.size, backbone_weights=None, **frozen).to(device)
    data = batch(args.batch, args.size, args.classes, args.old, device)
    awaken(detector, data, args.kept * args.batch)
    method = methods.find(name)()
    speed.prepare(detector, train, World(device=device))
    teacher = speed.make_teacher(detector, train, student=detector) if method.uses_teacher else None
    new = tuple(f"class {i}" for i in range(args.old, args.classes))
    detector.grow(new)
    detector.train()
    method.attach(detector, detector, teacher)
    method.begin_task(task(known, new))
    optimizer = optim.optimizer(detector, train, train.lr)
    kind = speed.PRECISION.get(args.amp)

    def step() -> None:
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            losses = method.loss(data)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        method.before_step()
        optimizer.step()

    with speed.shared(detector, None if method.exact_teacher else teacher, train):
        yield step


def main() -> None:
    parse = timing.parser(
        __doc__,
        detector="yolox-r50",
        size=640,
        batch=8,
        classes=80,
        old=40,
        rounds=5,
        methods="",
        teacher="folded",
        amp="off",
        kept=94,
    )
    parse.add_argument("--share-frozen", action=argparse.BooleanOptionalAction, default=True)
    parse.add_argument("--memory-of", action="store_true", help=argparse.SUPPRESS)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.memory_of:
        with stepper(args.methods, args, device) as step:
            timing.tell_peak(step)
        return
    traits = detectors.traits(args.detector)
    asked = args.methods.split(",") if args.methods else methods.available()
    names = [n for n in asked if n not in ("finetune", "joint") and methods.find(n).needs <= traits]
    with ExitStack() as stack:
        steps = {n: stack.enter_context(stepper(n, args, device)) for n in ("finetune", *names)}
        seconds = timing.medians(timing.interleaved(steps, rounds=args.rounds))
    argv = timing.without(sys.argv[1:], ("--methods", "--json", "--rounds"))
    peak = {n: timing.peak_mb("benchmarks.step", [*argv, "--methods", n, "--memory-of"]) for n in steps}
    lines = [f"{args.detector}, {args.size} px, batch {args.batch}, {args.classes} classes, teacher {args.teacher}"]
    figures = timing.against("finetune", seconds, peak, lines)
    timing.tell(lines, {"settings": timing.settings(args), "methods": figures}, args.json)


if __name__ == "__main__":
    main()
