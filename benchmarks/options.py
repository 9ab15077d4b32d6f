"""python -m benchmarks.options

No accuracy lost: the second task of ilYOLOX is trained for some steps with each option on and off, from one first task
and on the same batches. Prints the largest relative difference of the summed losses, step by step, and the tolerance.

The learning rate is small, so that what is compared are the options and not how two trainings drift apart. The exit
code is 1 when a difference is above its tolerance.

    python -m benchmarks.options --steps 50 --only accumulate,teacher=bf16
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import timing
from ciod.config import checks
from ciod.config import load as config
from ciod.core.distributed import World, pick_device
from ciod.data.augment import Augment, TrainTransform
from ciod.data.loader import train_loader
from ciod.data.scenarios.scenario import Scenario, Task
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.files import weights
from ciod.methods.ilyolox import ILYOLOX
from ciod.runs import run as engine
from ciod.runs.start import open_data
from ciod.training import speed
from ciod.training.hooks import Hooks, Position, Reading
from ciod.training.loop import Fit
from ciod.training.progress import Reporter

EXACT = {"teacher": "exact"}
STILL = {"trunk_lr": 0.0}
# name: (settings with it, settings without it, largest relative difference of a step's losses)
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "share_frozen+exact": ({**EXACT, **STILL}, {**EXACT, **STILL, "share_frozen": False}, 0.0),
    "share_frozen": (STILL, {**STILL, "share_frozen": False}, 1e-3),
    "teacher=folded": ({"teacher": "folded"}, EXACT, 1e-3),
    "teacher=bf16": ({"teacher": "bf16"}, EXACT, 0.05),
    "channels_last": ({"channels_last": True}, {"channels_last": False}, 1e-3),
    "keep_freed": ({"keep_freed": True}, {}, 0.0),
    "workers=2": ({"workers": 2}, {"workers": 0}, 0.0),
    "picture_cache=disk": ({"picture_cache": "disk", "workers": 2}, {"picture_cache": "off"}, 0.0),
    "presize": ({"presize": True}, {}, 0.1),
    "accumulate=4": ({"accumulate": 4}, {}, 1e-3),
    "compile": ({"compile": True}, {}, 1e-3),
    "teacher_stream": ({"teacher_stream": True}, {}, 1e-3),
    "amp=bf16": ({"amp": "bf16"}, {}, 0.2),
}


@dataclass
class Losses(Hooks):
    """Keeps the sum of every step's losses."""

    sums: list[float] = field(default_factory=list)
    taught: list[float] = field(default_factory=list)  # of the teacher
    learnt: list[float] = field(default_factory=list)  # of the classes of new boxes

    def on_read(self, at: Position, reading: Reading) -> None:
        self.sums.append(sum(reading.mean.values()))
        self.taught.append(sum(v for k, v in reading.mean.items() if k in at.method.distillation_terms))
        self.learnt.append(reading.mean["cls"])


def first_task(folder: Path, args: Any) -> tuple[Path, Task]:
    """A model of the first task, and the second task."""
    # larger than they are shown, as photographs are: else presize would have nothing to do
    write_shapes(folder / "data", train=args.images, val=4, size=4 * args.size)
    words = [f"data={folder / 'data'}", "split=6+4", f"detector={args.detector}", f"size={args.size}",
             f"batch={args.batch}", f"epochs={args.epochs}", "lr=0.002", "method=finetune",
             f"out={folder / 'first'}"]  # fmt: skip
    settings = config.load(None, words)
    engine.train(settings, command="benchmarks.options", reporter=Reporter(quiet=True), until=1)
    scenario = Scenario(settings.protocol, *open_data(settings))
    return folder / "first" / "task-1" / "model.safetensors", scenario.task(1)


def trained(model: Path, task: Task, args: Any, given: dict[str, Any]) -> torch.Tensor:
    """[steps] summed losses of the second task."""
    train = config.Train.model_validate({"log_every": 1, "warmup": 0, "schedule": "step", **given})
    world = World(device=pick_device("auto"))
    torch.manual_seed(0)
    detector = weights.load(model).to(world.device)
    speed.prepare(detector, train, world)
    teacher = speed.make_teacher(detector, train, student=detector)
    detector.grow(task.new_classes)
    method = ILYOLOX()
    method.attach(detector, detector, teacher)
    method.begin_task(task)
    method.attach(teacher.beside(speed.student(detector, train, world)), detector, teacher)
    transform = TrainTransform(Augment(), detector.input.size, detector.input.fill)
    loader = train_loader(
        task.train,
        transform,
        batch=args.batch,
        seed=0,
        task=1,
        workers=train.workers or 0,
        pin=world.device.type == "cuda",
        cache=train.picture_cache,
        presize=train.presize,
    )
    log, epochs = Losses(), -(-args.steps // len(loader))
    fit = Fit(
        detector=detector,
        method=method,
        loader=loader,
        settings=train,
        epochs=epochs,
        lr=1e-4,
        task=1,
        tasks=2,
        world=world,
        save=lambda _: None,
        hooks=[log],
    )
    with speed.shared(detector, teacher, train):
        fit.run()
    for name, values in {"the teacher": log.taught, "the new boxes": log.learnt}.items():
        if not statistics.median(values) > 0:  # a single batch may well have nothing to teach
            raise SystemExit(f"Nothing was learnt from {name}: train the teacher longer (--epochs, --images).")
    return torch.tensor(log.sums[: args.steps], dtype=torch.float64)


def main() -> None:
    parse = timing.parser(__doc__, detector="yolox-pico", size=96, batch=8, steps=50, images=80, epochs=60, only="")
    args = parse.parse_args()
    unknown = {w for w in args.only.split(",") if w} - OPTIONS.keys()
    if unknown:
        parse.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(OPTIONS)}")
    torch.set_num_threads(args.threads)
    lines, figures, failed = [], {}, False
    with tempfile.TemporaryDirectory() as folder:
        model, task = first_task(Path(folder), args)
        for name in [w for w in args.only.split(",") if w] or list(OPTIONS):
            if (name == "compile" and checks.lacks_compiler()) or (
                name == "teacher_stream" and not torch.cuda.is_available()
            ):
                lines.append(f"  {name:28s} not on this machine")
                continue
            on, off, limit = OPTIONS[name]
            mine, plain = trained(model, task, args, on), trained(model, task, args, off)
            gap = ((mine - plain).abs() / plain.abs()).max().item()
            failed |= not gap <= limit
            figures[name] = {"difference": gap, "tolerance": limit, "steps": len(plain)}
            lines.append(f"  {name:28s} {gap:.1e}, at most {limit:.0e}; {len(plain)} steps")
    head = f"{args.detector}, {args.size} px, batch {args.batch}: largest relative difference of a step's losses"
    timing.tell([head, *lines], {"options": figures}, args.json)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
