"""A run, from settings to report: for each task of the scenario — teacher, grow, fit, evaluate, save.

This is the page to read first. ``fit.py`` is the training loop, ``methods/`` holds the losses.
"""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ciod import methods
from ciod.config.load import Run
from ciod.core.distributed import World, world
from ciod.core.errors import CiodError
from ciod.core.files import WriteError, sweep
from ciod.core.run_log import RunLog
from ciod.data.augment import TrainTransform
from ciod.data.image_cache import presize_hint
from ciod.data.index import Index
from ciod.data.loader import train_loader
from ciod.data.scenarios.scenario import Scenario, Task
from ciod.detectors.base import Detector
from ciod.detectors.files import weights
from ciod.detectors.teacher import Teacher
from ciod.evaluation.detect import evaluate
from ciod.memory.rehearsal import Extra
from ciod.methods.base.method import Method
from ciod.methods.base.user_code import told
from ciod.runs import environment, fingerprints, resume, sanity_checks
from ciod.runs.lock import owner_of
from ciod.runs.results import Results, bounds_of
from ciod.runs.start import epochs_of, open_data, start, take_class_rows
from ciod.training import checkpoint, speed, watch
from ciod.training.loop import Fit
from ciod.training.offline_labels import with_drawn
from ciod.training.progress import Reporter


def train(settings: Run, *, command: str = "", reporter: Reporter | None = None, until: int | None = None) -> Path:
    """Runs a whole scenario, or goes on where an earlier process stopped.

    Args:
        until: stop after so many tasks; the folder is then an unfinished run that others take over with ``first``.

    Returns:
        The run folder: results.json, report.html, task-N/model.safetensors, …

    Raises:
        CiodError: whatever a user can mend, as a sentence.
        RunAgain: SIGTERM or SIGUSR1 came; the state is written (exit code 75).
        KeyboardInterrupt: Ctrl-C; the state is written.
    """
    with world(settings.device) as here:
        reporter = reporter or Reporter(quiet=not here.main)
        runner = Runner(settings, here, reporter, command, until)
        users = told(str(settings.method.get("name", "")))
        with owner_of(Path(settings.out)) if here.main else nullcontext(), users:
            try:
                runner.run()
            finally:
                runner.leave()
    return runner.out


@dataclass
class Runner:
    """State of one run on one rank."""

    settings: Run
    world: World
    reporter: Reporter
    command: str = ""
    until: int | None = None
    warnings: list[str] = field(default_factory=list)
    donor: Detector | None = None  # the model of detector.weights, until its class rows are taken
    log: RunLog | None = None  # of rank 0, once the state is restored: restoring writes the file anew

    def run(self) -> None:
        s = self.settings
        self.out = Path(s.out)
        self.saved, notes = resume.earlier(s, self.world)
        train_index, test_index = self._data()
        self.scenario = Scenario(s.protocol, train_index, test_index)
        self.extra = Extra.begin(s, self.scenario)
        self._say_problems("pool", str(s.pool.folder), self.extra.problems())
        self._identify(train_index, test_index)
        self._warn(notes)
        self.results = Results.begin(s, self.scenario)
        self._main_only(self._write_settings)
        detector, notes, self.donor = start(s, self.scenario, self.reporter)
        self.warnings += notes
        detector.to(self.world.device)
        speed.prepare(detector, s.train, self.world)
        method = self.method = self._method()
        first = 0
        if self.saved:
            self.results.load(self.saved["results"])
            self.warnings = list(dict.fromkeys([*self.warnings, *self.saved["warnings"]]))
            if "method" not in self.saved and self.saved["task"] == 1:  # taken over: the method never saw the task
                method.attach(detector, detector, None)
                method.begin_task(self.scenario.task(0))
            first = resume.restore(self.saved, s, self.world, self.scenario, detector, self.reporter)
            resume.recall(self.saved, method, self.scenario, self.extra, self.world)
            if first:
                self.donor = None  # its class rows are in the first task's model
        elif self.world.main:
            environment.trim_log(self.out, 0, None)  # of a process that died before its first state
        self.log = RunLog(self.out) if self.world.main else None
        for task in self.scenario:
            if task.index < first:
                continue
            if self.until is not None and task.index >= self.until:
                return  # unfinished on purpose: no report
            self._task(task, detector, method)
            self.saved = None
        self._finish()

    def leave(self) -> None:
        """Closes the log after an error too: Python would write its last lines later, into the run that goes on."""
        if self.log:
            with suppress(WriteError):  # the error that ended the run is the one to tell
                self.log.close()

    # One task -----------------------------------------------------------------------------------------------------

    def _task(self, task: Task, detector: Detector, method: Method) -> None:
        s = self.settings
        resuming = self.saved if self.saved and "fit" in self.saved else None
        if task.index and method.uses_teacher:
            teacher = self._teacher(task, detector)
        else:
            teacher = None
        self._grow(detector, task, method)
        self.reporter.say(self._title(task))
        self._warn(sanity_checks.about_data(task))
        method.attach(detector, detector, teacher)
        method.begin_task(task)
        # after begin_task, which may freeze parts
        student = speed.student(detector, s.train, self.world)
        method.attach(student if teacher is None else teacher.beside(student), detector, teacher)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        resume.set_random(resuming, s.seed, task.index, self.world)
        fit = self._fit(task, detector, method)
        with speed.shared(detector, None if method.exact_teacher else teacher, s.train):
            done = fit.run(resuming["fit"] if resuming else None)
        method.end_task(task)
        self._evaluate(task, detector, teacher, done, resuming)

    def _fit(self, task: Task, detector: Detector, method: Method) -> Fit:
        s = self.settings
        transform = TrainTransform(s.augment, detector.input.size, detector.input.fill)
        if task.index == 0 and (
            line := presize_hint(task.train, transform, presize=s.train.presize, cache=s.train.picture_cache)
        ):
            self.reporter.say(line)
        workers = environment.workers(s.train.workers, self.world)
        mixture = self.extra.mixture(task, detector.num_classes)
        train, mixture, said = with_drawn(task.train, mixture, method, workers=workers, reporter=self.reporter)
        self._warn(said)
        loader = train_loader(
            train,
            transform,
            batch=s.train.batch,
            seed=s.seed,
            task=task.index,
            workers=workers,
            pin=self.world.device.type == "cuda",
            rank=self.world.rank,
            world=self.world.size,
            mixture=mixture,
            cache=s.train.picture_cache,
            presize=s.train.presize,
        )
        began = time.monotonic()
        before = self.saved["seconds"] if self.saved and "fit" in self.saved else 0.0

        def save(state: dict[str, Any]) -> None:
            elapsed = before + time.monotonic() - began
            self._save(task.index, seconds=elapsed, fit=state, random=self.world.gather([checkpoint.random_state()]))

        def after_epoch(epoch: int) -> None:
            every = s.train.eval_every
            if every and (epoch + 1) % every == 0 and epoch + 1 < fit.epochs:
                table, _, _ = evaluate(
                    detector,
                    task.test,
                    s.eval,
                    classes=task.seen_classes,
                    world=self.world,
                    metric=s.protocol.metric,
                )
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
            partial(watch.keep_batch, folder=self.out / "last") if self.world.main else None,
        )
        return fit

    def epochs(self, task: int) -> int:
        return epochs_of(self.settings, task, len(self.scenario.parts))

    def _evaluate(
        self, task: Task, detector: Detector, teacher: Teacher | None, done: dict[str, Any], resuming: Any
    ) -> None:
        s = self.settings
        detector.eval()
        workers = environment.workers(s.train.workers, self.world)
        table, found, broken = evaluate(
            detector,
            task.test,
            s.eval,
            classes=task.seen_classes,
            world=self.world,
            workers=workers,
            metric=s.protocol.metric,
        )
        said = [*sanity_checks.about_data(task), *done["warnings"], *sanity_checks.about_table(task, table, found)]
        said += self._about_broken([*done["broken"], *broken])
        self._warn(said)
        seconds = done["seconds"] + (resuming["seconds"] if resuming else 0.0)
        epochs = self.epochs(task.index)
        facts = {"steps": done["steps"], "epochs": epochs, "seconds": seconds, "warnings": said}
        self.results.add(task, table, **self.extra.images(task), **facts)
        self.results.warn(self.warnings)
        detector.lineage = [*detector.lineage, self._lineage(task)]
        if self.world.main:
            folder = self.out / f"task-{task.index + 1}"
            weights.save_model(folder / "model.safetensors", detector)
            if task.index:
                from ciod.report.examples import write_examples

                model = self.out / f"task-{task.index}" / "model.safetensors"
                before = weights.load(model) if teacher is None else teacher.detector
                write_examples(folder / "examples", task, before, found, self.world.device)
            self.results.write(self.out)
            assert self.log is not None
            self.log.write("task", task=task.index, seconds=seconds, **table.overall)
        self.extra.update(task.index, detector, self.world)
        self._save(task.index + 1, seconds=0.0, method=self.method.state())
        self.reporter.say(f"  {table.line()}")
        self.world.barrier()

    def _teacher(self, task: Task, detector: Detector) -> Teacher:
        """The model as it was after the task before: also after a crash in the middle of this one."""
        before = detector
        if self.saved and "fit" in self.saved:
            before = weights.load(self.out / f"task-{task.index}" / "model.safetensors").to(self.world.device)
        return speed.make_teacher(before, self.settings.train, student=detector)

    def _grow(self, detector: Detector, task: Task, method: Method) -> None:
        """New rows are drawn from a seed of the task, so that every rank and a resumed run draw the same."""
        if self.settings.detector.head != "full":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed + 7919 * (task.index + 1))
                method.grow(detector, task.new_classes)
        if not task.index:
            take_class_rows(detector, self.donor, self.reporter)
            self.donor = None

    # Beginning and end --------------------------------------------------------------------------------------------

    def _data(self) -> tuple[Index, Index]:
        if not self.world.main:
            self.world.barrier()
        pair = open_data(self.settings)
        if self.world.main:
            self.world.barrier()
        for index in pair:
            self._say_problems("data", index.source, index.problems.lines())
        return pair

    def _say_problems(self, what: str, source: str, lines: list[str]) -> None:
        for line in lines:
            self.reporter.say(f"{what}: {line}")
            self.warnings.append(f"{source}: {line}")

    def _identify(self, train: Index, test: Index) -> None:
        """Fingerprints data and code, compares them with those of a run that is gone on with, and lists the images."""
        s = self.settings
        method = str(s.method.get("name", "ilyolox"))
        images = fingerprints.listing(train, test)
        self.identity = {"data": fingerprints.of_data(train, test, images), "code": fingerprints.of_code(method)}
        if self.saved:
            self._warn(resume.check_identity(self.saved, s, self.identity, images, len(self.scenario)))
        if self.world.main:
            sweep(self.out)
            fingerprints.write_listing(self.out / "last", images)

    def _method(self) -> Method:
        given = dict(self.settings.method)
        return methods.find(given.pop("name", "ilyolox")).model_validate(given)

    def _save(self, task: int, *, seconds: float, **more: Any) -> None:
        if not self.world.main:
            return
        if self.log:
            self.log.sync()
        state = {
            "format": resume.FORMAT,
            "identity": self.identity,
            "task": task,
            "seconds": seconds,
            "settings": environment.fingerprint(self.settings),
            "results": self.results.content,
            "warnings": self.warnings,
            "memory": self.extra.state(),
            **more,
        }
        checkpoint.save_state(self.out / "last" / checkpoint.NEWEST, environment.plain(state))

    def _finish(self) -> None:
        s = self.settings
        self.results.warn(self.warnings)
        self.results.finish(bounds_of(s))
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
        for sentence in self.results.content["warnings"]:
            self.reporter.say(f"warning: {sentence}")
        self.reporter.say(f"report: {self.out / 'report.html'}")

    def _write_settings(self) -> None:
        free = shutil.disk_usage(self.out.parent if self.out.parent.exists() else ".").free
        if free < 200e6:
            raise CiodError(f"out: {self.out} has only {free / 1e6:.0f} MB of room; a run needs a few hundred.")
        environment.write_settings(self.out, self.settings, self.command)

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

    def _about_broken(self, files: list[str]) -> list[str]:
        return [
            f"{f} could not be read during the run and was left out." for f in sorted(set(self.world.gather(files)))
        ]

    def _warn(self, sentences: list[str]) -> None:
        """Into log, results, report and the summary at the end; each once."""
        for sentence in sentences:
            if sentence not in self.warnings:
                self.warnings.append(sentence)
                self.reporter.say(f"warning: {sentence}")
