"""A run, from settings to report: for each task of the scenario — teacher, grow, fit, evaluate, save.

This is the page to read first. ``fit.py`` is the training loop, ``methods/`` holds the losses.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from ciod import detectors, methods
from ciod.config import Run, data_folder
from ciod.data import formats
from ciod.data.augment import TrainTransform
from ciod.data.dataset import train_loader
from ciod.data.index import Index
from ciod.data.scenario import Scenario, Task
from ciod.detectors import weights
from ciod.detectors.detector import Detector
from ciod.engine import checkpoint, machine
from ciod.engine.distributed import World, world
from ciod.engine.fit import Fit
from ciod.engine.progress import Reporter
from ciod.engine.results import Results
from ciod.errors import CiodError
from ciod.evaluate.detect import evaluate
from ciod.methods.method import Method
from ciod.report.log import METRICS, RunLog, atomic_write, read_metrics

SHAPES = {"train": 800, "val": 200}  # images of the built-in scenes


def train(settings: Run, *, command: str = "", reporter: Reporter | None = None) -> Path:
    """Runs a whole scenario, or goes on where an earlier process stopped.

    Returns:
        The run folder: results.json, report.html, task-N/model.safetensors, …

    Raises:
        CiodError: whatever a user can mend, as a sentence.
    """
    with world(settings.device) as here:
        reporter = reporter or Reporter(quiet=not here.main)
        runner = Runner(settings, here, reporter, command)
        runner.run()
    return runner.out


def open_data(settings: Run) -> tuple[Index, Index]:
    """Training and test Index of a run; the built-in scenes are drawn when first needed."""
    folder = data_folder(settings.data or settings.protocol.data)
    if folder is None:
        raise CiodError("data: no data set is given; write data=FOLDER, or scenario=NAME.")
    if folder == "shapes":
        from ciod.data.shapes import write_shapes

        folder = str(write_shapes(Path(settings.out).resolve().parent / "shapes-data", **SHAPES))
    train = formats.read(folder, "train")
    if settings.eval.holdout:
        chosen = np.random.default_rng([settings.seed, 1]).permutation(len(train))
        cut = round(len(train) * settings.eval.holdout)
        return train.select(np.sort(chosen[cut:])), train.select(np.sort(chosen[:cut]))
    return train, formats.read(folder, settings.eval.split)


def start(settings: Run, scenario: Scenario, reporter: Reporter) -> tuple[Detector, list[str]]:
    """The detector before the first task, and warnings about what it starts from."""
    torch.manual_seed(settings.seed)
    d = settings.detector
    names = scenario.classes if d.head == "full" else ()
    backbone = (
        None
        if d.weights or d.backbone_weights == "random"
        else d.backbone_weights or detectors.default_backbone(d.name)
    )
    detector = detectors.build(names, name=d.name, size=d.size, backbone_weights=backbone)
    warnings = []
    if d.weights:
        taken = weights.load_trunk(detector, Path(d.weights))
        reporter.say(f"{taken} tensors of backbone and neck from {d.weights}; the head is new")
        warnings.append(
            f"Backbone and neck come from {Path(d.weights).name}. If it was trained on the classes of this scenario, "
            "new classes are not new to it: compare only runs with the same start."
        )
    return detector, warnings


@dataclass
class Runner:
    """State of one run on one rank."""

    settings: Run
    world: World
    reporter: Reporter
    command: str = ""
    warnings: list[str] = field(default_factory=list)

    def run(self) -> None:
        s = self.settings
        self.out = Path(s.out)
        self.saved = self._earlier()
        train_index, test_index = self._data()
        self.scenario = Scenario(s.protocol, train_index, test_index)
        self.results = Results.begin(s, self.scenario)
        self._main_only(self._write_settings)
        detector, said = start(s, self.scenario, self.reporter)
        self.warnings += said
        detector.to(self.world.device)
        method = self._method()
        first = 0
        if self.saved:
            first = self._restore(detector)
        self.log = RunLog(self.out) if self.world.main else None  # after _restore, which writes the file anew
        for task in self.scenario:
            if task.index < first:
                continue
            self._task(task, detector, method)
            self.saved = None
        self._finish()

    # One task -----------------------------------------------------------------------------------------------------

    def _task(self, task: Task, detector: Detector, method: Method) -> None:
        s = self.settings
        resuming = self.saved if self.saved and "fit" in self.saved else None
        if task.index and method.uses_teacher:
            teacher = self._teacher(task, detector)
        else:
            teacher = None
        self._grow(detector, task, resuming is not None)
        self.reporter.say(self._title(task))
        student: Any = detector
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            student = DistributedDataParallel(detector, device_ids=ids)
        method.attach(student, detector, teacher)
        method.begin_task(task)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if resuming:
            checkpoint.set_random_state(resuming["random"])
        else:
            torch.manual_seed(s.seed + 1000 * (task.index + 1) + self.world.rank)
        fit = self._fit(task, detector, method)
        done = fit.run(resuming["fit"] if resuming else None)
        method.end_task(task)
        self._evaluate(task, detector, teacher, done, resuming)

    def _fit(self, task: Task, detector: Detector, method: Method) -> Fit:
        s = self.settings
        transform = TrainTransform(s.augment, detector.input.size, detector.input.fill)
        loader = train_loader(
            task.train,
            transform,
            batch=s.train.batch,
            seed=s.seed,
            task=task.index,
            workers=machine.workers(s.train.workers, self.world),
            pin=self.world.device.type == "cuda",
            rank=self.world.rank,
            world=self.world.size,
        )
        began = time.monotonic()
        before = self.saved["seconds"] if self.saved and "fit" in self.saved else 0.0

        def save(state: dict[str, Any]) -> None:
            elapsed = before + time.monotonic() - began
            self._save(task.index, seconds=elapsed, fit=state, random=checkpoint.random_state())

        def after_epoch(epoch: int) -> None:
            every = s.train.eval_every
            if every and (epoch + 1) % every == 0 and epoch + 1 < fit.epochs:
                table, _, _ = evaluate(detector, task.test, s.eval, classes=task.seen_classes, world=self.world)
                if self.log:
                    self.log.write("epoch", task=task.index, epoch=epoch, seconds=None, **table.overall)
                self.reporter.say(f"  epoch {epoch + 1}: {table.line()}")

        fit = Fit(
            detector,
            method,
            loader,
            s.train,
            self.epochs(task.index),
            s.train.lr_later if task.index and s.train.lr_later else s.train.lr,
            task.index,
            len(self.scenario),
            self.world,
            self.log,
            self.reporter,
            save,
            after_epoch,
        )
        return fit

    def epochs(self, task: int) -> int:
        """Epochs of a task."""
        t = self.settings.train
        listed = t.epochs if isinstance(t.epochs, list) else [t.epochs] * len(self.scenario.parts)
        if len(listed) < len(self.scenario.parts):
            raise CiodError(
                f"train.epochs has {len(listed)} entries, but the scenario {len(self.scenario.parts)} tasks."
            )
        return t.joint_epochs or max(listed) if self.settings.protocol.joint else listed[task]

    def _evaluate(
        self, task: Task, detector: Detector, teacher: Detector | None, done: dict[str, Any], resuming: Any
    ) -> None:
        s = self.settings
        detector.eval()
        workers = machine.workers(s.train.workers, self.world)
        table, found, broken = evaluate(
            detector, task.test, s.eval, classes=task.seen_classes, world=self.world, workers=workers
        )
        self._note_broken([*done["broken"], *broken])
        seconds = done["seconds"] + (resuming["seconds"] if resuming else 0.0)
        self.results.add(task, table, steps=done["steps"], epochs=self.epochs(task.index), seconds=seconds)
        self.results.warn(self.warnings)
        detector.lineage = [*detector.lineage, self._lineage(task)]
        if self.world.main:
            folder = self.out / f"task-{task.index + 1}"
            weights.save_model(folder / "model.safetensors", detector)
            if task.index:
                from ciod.report.examples import write_examples

                before = teacher or weights.load(self.out / f"task-{task.index}" / "model.safetensors")
                write_examples(folder / "examples", task, before, found, self.world.device)
            self.results.write(self.out)
            assert self.log is not None
            self.log.write("task", task=task.index, seconds=seconds, **table.overall)
        self._save(task.index + 1, seconds=0.0)
        self.reporter.say(f"  {table.line()}")
        self.world.barrier()

    def _teacher(self, task: Task, detector: Detector) -> Detector:
        """The model as it was after the task before: also after a crash in the middle of this one."""
        if self.saved and "fit" in self.saved:
            model = weights.load(self.out / f"task-{task.index}" / "model.safetensors")
            return model.to(self.world.device).frozen()
        return detector.frozen()

    def _grow(self, detector: Detector, task: Task, resuming: bool) -> None:
        """New rows are drawn from a seed of the task, so that every rank and a resumed run draw the same."""
        if self.settings.detector.head == "full":
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed + 7919 * (task.index + 1))
            detector.grow(task.new_classes)

    # Beginning and end --------------------------------------------------------------------------------------------

    def _data(self) -> tuple[Index, Index]:
        if not self.world.main:
            self.world.barrier()
        pair = open_data(self.settings)
        if self.world.main:
            self.world.barrier()
        for index in pair:
            for line in index.problems.lines():
                self.reporter.say(f"data: {line}")
                self.warnings.append(f"{index.source}: {line}")
        return pair

    def _method(self) -> Method:
        given = dict(self.settings.method)
        return methods.find(given.pop("name", "ilyolox")).model_validate(given)

    def _earlier(self) -> dict[str, Any] | None:
        """State of an earlier process in this folder, if the settings allow to go on with it."""
        path = self.out / "last" / "state.pt"
        state = checkpoint.load_state(path)
        if state is None:
            if (self.out / "results.json").exists():
                raise CiodError(f"out: {self.out} holds a run without its last/ folder; choose another out=.")
            return self._take_over()
        if self.settings.resume == "never":
            raise CiodError(
                f"out: {self.out} already holds a run; choose another out=, or resume=auto to go on with it."
            )
        differ = machine.differences(machine.fingerprint(self.settings), state["settings"])
        if differ:
            raise CiodError(f"out: {self.out} holds a run with other settings ({differ}). Choose another out=.")
        return state

    def _take_over(self) -> dict[str, Any] | None:
        """The state after another run's first task (``first=``), put into this run's folder."""
        s = self.settings
        if not s.first:
            return None
        source = Path(s.first)
        theirs = checkpoint.load_state(source / "last" / "state.pt")
        if theirs is None or theirs["task"] < 1:
            raise CiodError(f"first: {source} has not finished its first task.")
        mine = machine.fingerprint(s)
        differ = machine.differences(mine, theirs["settings"], but="method.")
        if differ:
            raise CiodError(f"first: {source} was trained with other settings ({differ}); only the method may differ.")
        results = json.loads((source / "results.json").read_text(encoding="utf-8"))
        results["tasks"], results["continual"] = results["tasks"][:1], {}
        results["ap"] = {m: rows[:1] for m, rows in results["ap"].items()}
        state = {"task": 1, "seconds": 0.0, "settings": mine, "results": results, "warnings": theirs["warnings"]}
        if self.world.main:
            shutil.copytree(source / "task-1", self.out / "task-1", dirs_exist_ok=True)
            logged = [m for m in read_metrics(source) if m.get("task") == 0]
            atomic_write(self.out / METRICS, "".join(json.dumps(m) + "\n" for m in logged))
            checkpoint.save_state(self.out / "last" / "state.pt", state)
        self.world.barrier()
        return state

    def _restore(self, detector: Detector) -> int:
        """Brings the detector and the results to where the saved state is. Returns the task to go on with."""
        assert self.saved is not None
        task = self.saved["task"]
        self.results.load(self.saved["results"])
        self.warnings = list(dict.fromkeys([*self.warnings, *self.saved["warnings"]]))
        machine.trim_log(self.out, task, self.saved["fit"]["epoch"] if "fit" in self.saved else 0, self.world.main)
        if task == 0:
            return 0
        if task >= len(self.scenario):
            self.reporter.say(f"{self.out} is finished; nothing is left to train.")
            return task
        model = weights.load(self.out / f"task-{task}" / "model.safetensors")
        if self.settings.detector.head == "grow":
            for i in range(task):
                detector.grow(self.scenario.groups[i])
        detector.load_state_dict(model.state_dict())
        detector.lineage = model.lineage
        self.reporter.say(f"going on with task {task + 1} of {len(self.scenario)} in {self.out}")
        return task

    def _save(self, task: int, *, seconds: float, **more: Any) -> None:
        if not self.world.main:
            return
        state = {
            "task": task,
            "seconds": seconds,
            "settings": machine.fingerprint(self.settings),
            "results": self.results.content,
            "warnings": self.warnings,
            **more,
        }
        checkpoint.save_state(self.out / "last" / "state.pt", machine.plain(state))

    def _finish(self) -> None:
        s = self.settings
        self.results.finish(Path(s.upper_bound) if s.upper_bound else None)
        if not self.world.main:
            return
        self.results.write(self.out)
        if self.log:
            self.log.close()
        from ciod.report.page import write_report
        from ciod.report.summary import summary_table, verdict

        write_report(self.out)
        self.reporter.show(summary_table(self.results.content))
        self.reporter.say(verdict(self.results.content))
        self.reporter.say(f"report: {self.out / 'report.html'}")

    def _write_settings(self) -> None:
        free = shutil.disk_usage(self.out.parent if self.out.parent.exists() else ".").free
        if free < 200e6:
            raise CiodError(f"out: {self.out} has only {free / 1e6:.0f} MB of room; a run needs a few hundred.")
        machine.write_settings(self.out, self.settings, self.command)

    def _main_only(self, do: Any) -> None:
        if self.world.main:
            do()
        self.world.barrier()

    def _title(self, task: Task) -> str:
        names = ", ".join(task.new_classes[:8]) + (", …" if len(task.new_classes) > 8 else "")
        hidden = f", {task.hidden_boxes} boxes of old classes hidden" if task.hidden_boxes else ""
        return (
            f"task {task.index + 1}/{len(self.scenario)}: {names} — {len(task.train)} images, "
            f"{len(task.train.labels)} boxes{hidden}"
        )

    def _lineage(self, task: Task) -> dict[str, Any]:
        s = self.settings
        return {
            "classes": list(task.new_classes),
            "data": task.train.source,
            "images": len(task.train),
            "boxes": len(task.train.labels),
            "method": s.method,
            "epochs": self.epochs(task.index),
            "seed": s.seed,
        }

    def _note_broken(self, files: list[str]) -> None:
        for f in sorted(set(self.world.gather(files))):
            sentence = f"{f} could not be read during the run and was left out."
            if sentence not in self.warnings:
                self.warnings.append(sentence)
                self.reporter.say(sentence)
