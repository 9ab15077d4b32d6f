"""python -m benchmarks.accuracy

Time to accuracy: AP on held-out photographs against processor seconds of training, for ciod (``ciod train`` with its
defaults), and for the plain PyTorch loop of ``benchmarks/plain.py``; with ``--mmdetection CONFIG`` for MMDetection's
model of the same weights, trained by its own loss and recipe. All start from the same weights, see every training
picture equally often, and are scored by the same evaluation. Each has a process of its own; they take turns, epoch by
epoch. Evaluation is not timed.

    python -m benchmarks.accuracy --data cards6 --weights yolox_nano_coco.pth --size 256 --epochs 32 --plot accuracy.png
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import plain, timing
from ciod.config import load as config
from ciod.config.load import Run
from ciod.core.distributed import World, pick_device
from ciod.data.augment import TrainTransform
from ciod.data.loader import train_loader
from ciod.data.scenarios.scenario import Scenario
from ciod.detectors.base import Detector
from ciod.detectors.files import transfer
from ciod.evaluation.detect import evaluate
from ciod.methods.finetune import Finetune
from ciod.runs import choices
from ciod.runs.start import epochs_of, open_data, start
from ciod.training import speed
from ciod.training.hooks import Hooks, Position
from ciod.training.loop import Fit
from ciod.training.progress import Reporter

SIDES = ("ciod", "plain loop")
GOAL = 0.9  # share of the best final AP whose time is reported

Told = Callable[[int, Detector], None]


class Turns:
    """The clock of one row: processor seconds between its turns; printed, one line per epoch."""

    def __init__(self, score: Callable[[Detector], dict[str, float]], epochs: int, every: int):
        self.score, self.epochs, self.every = score, epochs, every
        self.seconds = 0.0
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        self._began = self._now()

    @staticmethod
    def _now() -> float:
        """Processor time of all threads; where a GPU computes, the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def __call__(self, epoch: int, detector: Detector) -> None:
        self.seconds += self._now() - self._began
        point: dict[str, float] = {"epoch": epoch, "seconds": self.seconds}
        if epoch % self.every == 0 or epoch == self.epochs:
            training = detector.training
            point |= self.score(detector)
            detector.train(training)
        print("point", json.dumps(point), flush=True)
        if epoch < self.epochs:
            self._wait()


def settings_of(args: argparse.Namespace, out: str) -> Run:
    """The run that ``ciod train`` would make of the arguments."""
    words = [f"data={args.data}", "method=joint", f"detector={args.detector}", f"weights={args.weights}", f"out={out}",
             f"batch={args.batch}", f"epochs={args.epochs}", f"seed={args.seed}", *args.set]  # fmt: skip
    words += [f"size={args.size}"] if args.size else []
    settings = config.load(None, words)
    scenario = Scenario(settings.protocol, *open_data(settings))
    process_group = World(device=pick_device(settings.device))
    start = choices.start_of(settings, scenario.task(0).taught_classes)
    return choices.complete(settings, scenario, process_group, start)[0]


def serve(side: str, args: argparse.Namespace) -> None:
    """One row: waits for a line of standard input before each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(args, f"{folder}/run")
        train, test = open_data(settings)
        scenario = Scenario(settings.protocol, train, test)
        task = scenario.task(0)

        def score(detector: Detector) -> dict[str, float]:
            table, _, _ = evaluate(detector, task.test, settings.eval, classes=task.seen_classes)
            return {k: table.overall[k] or 0.0 for k in ("AP", "AP50")}  # None: nothing to find

        turns = Turns(score, args.epochs, args.every)
        if side == "ciod":
            ours(settings, scenario, turns)
        else:
            quiet = Reporter(quiet=True)
            detector, _, donor = start(settings, scenario, quiet)
            detector.grow(task.new_classes)
            if donor is not None:
                transfer.take_class_rows(detector, donor)
            plain.train(detector, task.train, epochs=args.epochs, batch=args.batch, seed=args.seed, after_epoch=turns)


def ours(settings: Run, scenario: Scenario, turns: Turns) -> None:
    """ciod's own way: its loader, its loop, its choice of optimiser."""
    task, world, quiet = scenario.task(0), World(device=pick_device(settings.device)), Reporter(quiet=True)
    detector, _, donor = start(settings, scenario, quiet)
    detector.to(world.device)
    speed.prepare(detector, settings.train, world)
    detector.grow(task.new_classes)
    if donor is not None:
        transfer.take_class_rows(detector, donor)
    method = Finetune()
    method.attach(speed.student(detector, settings.train, world), detector, None)
    method.begin_task(task)
    torch.manual_seed(settings.seed)
    loader = train_loader(
        task.train,
        TrainTransform(settings.augment, detector.input.size, detector.input.fill),
        batch=settings.train.batch,
        seed=settings.seed,
        task=0,
        workers=0,
        pin=False,
        cache=settings.train.picture_cache,
        presize=settings.train.presize,
    )
    averaged = copy.deepcopy(detector)

    class Evaluates(Hooks):
        def on_epoch(self, at: Position, epoch: int) -> None:
            if fit.ema is not None:
                fit.ema.copy_to(averaged)
            turns(epoch + 1, averaged if fit.ema is not None else detector)

    fit = Fit(
        detector=detector,
        method=method,
        loader=loader,
        settings=settings.train,
        epochs=epochs_of(settings, 0, 1),
        lr=settings.train.lr,
        task=0,
        tasks=1,
        world=world,
        save=lambda _: None,
        hooks=[Evaluates()],
    )
    fit.run()


def row(side: str, points: list[dict[str, float]], best: float) -> dict[str, Any]:
    """The entries of a row: its last AP, and the seconds after which it has ``GOAL`` of the best last AP."""
    scored = [p for p in points if "AP" in p]
    reached = [p["seconds"] for p in scored if p["AP"] >= GOAL * best]
    last = scored[-1]
    return {"AP": last["AP"], "AP50": last["AP50"], "seconds": last["seconds"],
            "seconds_to_goal": reached[0] if reached else None, "points": points}  # fmt: skip


def race(sides: tuple[str, ...], argv: list[str], epochs: int) -> dict[str, list[dict[str, float]]]:
    """Points of each row; the rows' processes take turns, epoch by epoch.

    Raises:
        RuntimeError: a process ended.
    """
    command = [sys.executable, "-m", "benchmarks.accuracy", *argv, "--serve"]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[1]}
    running: dict[str, subprocess.Popen[str]] = {}
    points: dict[str, list[dict[str, float]]] = {s: [] for s in sides}
    try:
        for side in sides:
            running[side] = subprocess.Popen([*command, side], **pipe)
        for _ in range(epochs):
            for side, process in running.items():
                points[side].append(_turn(process, side))
                tell_progress(side, points[side][-1])
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    return points


def _turn(process: subprocess.Popen[str], side: str) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:  # libraries may print what they like before
        if line.startswith("point "):
            found: dict[str, float] = json.loads(line.removeprefix("point "))
            return found
    raise RuntimeError(f"The process of {side} ended with {process.wait()}.")


def tell_progress(side: str, point: dict[str, float]) -> None:
    if "AP" in point:
        line = f"{side:12s} epoch {point['epoch']:3.0f}  {point['seconds']:7.1f} s  AP {100 * point['AP']:.1f}"
        print(line, file=sys.stderr)


def plot(rows: dict[str, dict[str, Any]], title: str, target: Path) -> None:
    """AP against processor seconds, one curve per row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for side, found in rows.items():
        scored = [p for p in found["points"] if "AP" in p]
        axes.plot([p["seconds"] for p in scored], [100 * p["AP"] for p in scored], marker=".", label=side)
    axes.set(xlabel="processor seconds of training", ylabel="AP on held-out photographs", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=150)


def main() -> None:
    parse = timing.parser(
        __doc__, data="", weights="", detector="yolox-nano", size=0, batch=16, epochs=32, every=2, seed=0
    )
    parse.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings of ciod train")
    parse.add_argument("--plot", type=Path, default=None, help="draw the curves into this file")
    parse.add_argument("--serve", help=argparse.SUPPRESS)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    if not (args.data and args.weights):
        parse.error("--data and --weights are needed")
    if args.serve:
        serve(args.serve, args)
        return
    points = race(SIDES, timing.without(sys.argv[1:], ("--json", "--plot")), args.epochs)
    best = max(p["AP"] for side in points.values() for p in side[-1:])
    rows = {side: row(side, found, best) for side, found in points.items()}
    lines = [f"{args.detector} from {Path(args.weights).name} on {Path(args.data).name}, {args.epochs} epochs"]
    for side, found in rows.items():
        goal = found["seconds_to_goal"]
        when = "never" if goal is None else f"{goal:.0f} s"
        lines.append(
            f"  {side:12s} AP {100 * found['AP']:5.1f}  AP50 {100 * found['AP50']:5.1f}  {found['seconds']:6.0f} s;"
            f" {GOAL:.0%} of the best AP after {when}"
        )
    timing.tell(lines, {"settings": timing.settings(args), "rows": rows}, args.json)
    if args.plot:
        plot(rows, lines[0], args.plot)


if __name__ == "__main__":
    main()
