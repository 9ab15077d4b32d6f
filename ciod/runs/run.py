"""A run, from settings to report: for each task of the scenario — train, evaluate, save.

Read this file first. ``training/task.py`` trains a task, ``methods/`` holds the losses.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ciod import methods
from ciod.config.load import Run
from ciod.core.distributed import World
from ciod.core.errors import CiodError
from ciod.core.files import WriteError, sweep
from ciod.core.run_log import RunLog
from ciod.core.user_code import user_errors
from ciod.data.index import Index
from ciod.data.scenarios.scenario import Scenario, Task
from ciod.detectors import own
from ciod.detectors.base import Detector
from ciod.detectors.files import weights
from ciod.evaluation import lvis, open_world, pictures
from ciod.evaluation.detect import ap, evaluate
from ciod.memory.rehearsal import Extra
from ciod.methods.base.method import Method
from ciod.runs import choices, environment, fingerprints, interim, resume, sanity_checks
from ciod.runs.results import Results, bounds_of
from ciod.runs.session import first_alone, session
from ciod.runs.start import epochs_of, open_data, start, task_title
from ciod.runs.tracked import tracking
from ciod.trackers import Tracking
from ciod.training import checkpoint, speed
from ciod.training.hooks import EvaluateInside, Hooks, Position
from ciod.training.progress import Reporter, Warnings
from ciod.training.task import TaskInputs, TaskResult, train_task

if TYPE_CHECKING:
    from ciod.core.results_schema import Identity, RunState


def train(
    settings: Run,
    *,
    command: str = "",
    reporter: Reporter | None = None,
    until: int | None = None,
    hooks: Sequence[Hooks] = (),
) -> Path:
    """Runs a whole scenario, or resumes where an earlier process stopped.

    Args:
        until: stop after this number of tasks; the folder is then an unfinished run that others can use with ``first``.
        hooks: called while a task is trained.

    Returns:
        The run folder: results.json, report.html, task-N/model.safetensors, …

    Raises:
        CiodError: an error that the user can fix.
        RunAgain: SIGTERM or SIGUSR1 was received; the state is written (exit code 75).
        KeyboardInterrupt: Ctrl-C; the state is written.
    """
    method_errors, name = user_errors(str(settings.method.get("name", ""))), settings.detector.name
    with session(settings.out, settings.device, reporter) as (process_group, speaker), method_errors, own.faults(name):
        runner = Runner(settings, process_group, speaker, command, until, hooks=hooks)
        try:
            runner.run()
        finally:
            runner.leave()
    return runner.out


@dataclass(slots=True)
class Runner:
    """State of one run on one rank."""

    settings: Run
    world: World
    reporter: Reporter
    command: str = ""
    until: int | None = None
    hooks: Sequence[Hooks] = ()
    donor: Detector | None = None  # the model of detector.weights, until its class rows are taken
    log: RunLog | None = None  # on rank 0, after the state is restored, because restoring rewrites the file
    saved: RunState | None = None  # state of an earlier process, until its task is trained
    out: Path = field(init=False)
    warnings: Warnings = field(init=False)
    open: list[str] = field(init=False)  # settings that are not set by hand
    chosen: list[str] = field(init=False)  # sentences about what was chosen for them
    scenario: Scenario = field(init=False)
    extra: Extra = field(init=False)
    identity: Identity = field(init=False)
    results: Results = field(init=False)
    method: Method = field(init=False)
    tracking: Tracking = field(init=False)

    def __post_init__(self) -> None:
        self.out = Path(self.settings.out)
        self.warnings = Warnings(self.reporter)
        self.tracking = tracking(self.settings, self.world, self.reporter)

    def run(self) -> None:
        beginning = resume.beginning(self.settings)
        self.saved = cast("RunState | None", beginning.state)
        train_index, test_index = self._data()
        self.scenario = Scenario(self.settings.protocol, train_index, test_index)
        for line in self.scenario.sizes():
            self.reporter.say(line)
        detector, about_start, self.donor = start(beginning.settings, self.scenario, self.reporter)
        notes = [*beginning.notes, *self._choose(beginning)]
        s = self.settings
        self.extra = Extra.begin(s, self.scenario)
        self._say_problems("pool", str(s.pool.folder), self.extra.problems())
        self._identify(train_index, test_index)
        self.warnings.add(*notes)
        self.results = Results.begin(s, self.scenario)
        self._main_only(self._write_settings)
        self.warnings.note(*about_start)
        detector.to(self.world.device)
        speed.prepare(detector, s.train, self.world)
        self.method = self._method()
        first = self._restore(detector) if self.saved else 0
        if not self.saved and self.world.main:
            environment.trim_log(self.out, 0, None)  # lines of a process that died before its first state
        self.tracking = tracking(s, self.world, self.reporter)  # with the complete settings
        self.log = RunLog(self.out, self.tracking.line) if self.world.main else None
        self.tracking.start(resumed=beginning.state is not None)
        for task in self.scenario:
            if task.index < first:
                continue
            if self.until is not None and task.index >= self.until:
                return  # unfinished on purpose: no report
            self._task(task, detector)
            self.saved = None
        self._finish(detector.lineage)

    def _choose(self, beginning: resume.Beginning) -> list[str]:
        """Completes the settings, and then takes over another run's first task where they say so; returns notes."""
        kind = choices.start_of(beginning.settings, self.scenario.task(0).taught_classes, self.donor)
        complete, self.chosen = choices.complete(
            beginning.settings,
            self.scenario,
            self.world,
            kind,
            adopted=choices.adopted(self.settings, beginning.settings) if self.saved is None else (),
            first=beginning.first_epochs,
        )
        self.open = choices.open_keys(self.settings)
        self.settings = complete
        for line in self.chosen:
            self.reporter.say(line)
        if self.saved is None:
            resume.check_first_task(complete)
            chosen = choices.values(complete, self.open)
            self.saved = cast("RunState | None", resume.take_over(complete, self.world, chosen))
        return []

    def _restore(self, detector: Detector) -> int:
        """Brings everything to the saved state. Returns the task to resume at."""
        s, saved, method = self.settings, self.saved, self.method
        assert saved is not None
        self.results.load(saved["results"])
        self.warnings.note(*saved["warnings"])
        if "method" not in saved and saved["task"] == 1:  # taken over: the method has not seen the task
            method.attach(detector, detector, None)
            method.begin_task(self.scenario.task(0))
        first = resume.restore(saved, s, self.world, self.scenario, detector, self.reporter)
        resume.restore_method(saved, method, self.scenario, self.extra, self.world)
        if first:
            self.donor = None  # the first task's model has its class rows
        return first

    def leave(self) -> None:
        """Closes the log, also after an error: Python would write its last lines later, into the resumed run."""
        self.tracking.close()
        if self.log:
            with suppress(WriteError):  # report the error that ended the run
                self.log.close()

    # One task -----------------------------------------------------------------------------------------------------

    def _task(self, task: Task, detector: Detector) -> None:
        resuming: Any = self.saved if self.saved and "fit" in self.saved else None
        started = resuming is not None and interim.KEY not in resuming
        self.reporter.say(task_title(task, len(self.scenario)))
        self.warnings.add(
            *sanity_checks.about_data(task), *lvis.metric_warnings(self.settings.protocol.metric, task.test)
        )
        inside = EvaluateInside(partial(self._evaluate_epoch, task), self.settings.train.eval_every)
        inputs = self._inputs(task, detector, started)
        if task.index and interim.wanted(self.method):
            beside = {interim.KEY: True, "method": self.method.state()}
            interim.give(inputs, self.out, lambda state: self._save(task.index, **state, **beside), resuming)
        result = train_task(
            inputs=inputs,
            saved=resuming if started else None,
            save=lambda state: self._save(task.index, **state),
            hooks=[inside, *self.hooks],
        )
        self.donor = None
        self._evaluate(task, detector, result)

    def _inputs(self, task: Task, detector: Detector, resuming: bool) -> TaskInputs:
        s, later = self.settings, task.index > 0
        before = None
        if later and self.method.uses_teacher:
            # also after a crash in the middle of this task
            model = self.out / f"task-{task.index}" / "model.safetensors"
            before = weights.load(model).to(self.world.device) if resuming else detector
        return TaskInputs(
            task=task,
            tasks=len(self.scenario),
            detector=detector,
            before=before,
            method=self.method,
            new=None if s.detector.head == "full" else task.new_classes,
            taught=task.repeated_classes,
            donor=self.donor,
            growth_seed=s.seed + 7919 * (task.index + 1),
            mixture=lambda grown: self.extra.mixture(task, grown.num_classes),
            train=s.train,
            augment=s.augment,
            epochs=self.epochs(task.index),
            batch=s.train.batch,
            lr=s.train.lr_later if later and s.train.lr_later else s.train.lr,
            seed=s.seed,
            workers=environment.workers(s.train.workers, self.world),
            score=partial(ap, settings=s.eval, classes=task.new_classes, world=self.world),
            world=self.world,
            reporter=self.reporter,
            warnings=self.warnings,
            log=self.log,
            bad_batch=self.out / "last",
            hint=not later,
        )

    def _evaluate_epoch(self, task: Task, at: Position, epoch: int) -> None:
        s = self.settings
        table, _, _ = evaluate(
            at.detector, task.test, s.eval, classes=task.seen_classes, world=self.world, metric=s.protocol.metric
        )
        if self.log:
            self.log.write("epoch", task=at.task, epoch=epoch, seconds=None, **table.overall)
        self.reporter.say(f"  epoch {epoch + 1}: {table.line()}")

    def epochs(self, task: int) -> int:
        return epochs_of(self.settings, task, len(self.scenario.parts))

    def _evaluate(self, task: Task, detector: Detector, result: TaskResult) -> None:
        s, done = self.settings, result.fit
        detector.eval()
        table, found, broken = evaluate(
            detector,
            task.test,
            s.eval,
            classes=task.seen_classes,
            world=self.world,
            workers=environment.workers(s.train.workers, self.world),
            metric=s.protocol.metric,
        )
        scores = self.results.content["ap"]["AP50"][: task.index]
        warnings = [*sanity_checks.about_data(task), *done.warnings]
        warnings += sanity_checks.about_table(task, table, found, scores)
        warnings += self._about_broken([*done.broken, *broken])
        self.warnings.add(*warnings)
        facts = {**done.facts, "seconds": result.seconds, "warnings": warnings}
        facts |= open_world.after_task(self.scenario, task, found)
        self.results.add(task, table, **self.extra.images(task), **facts)
        self.results.warn(self.warnings.sentences)
        detector.lineage = [*detector.lineage, self._lineage(task)]
        if self.world.main:
            folder = self.out / f"task-{task.index + 1}"
            weights.save_model(folder / "model.safetensors", detector)
            pictures.write(folder, pictures.of(found, task.test, task.seen_classes, s.eval.max_detections))
            if task.index:
                from ciod.report.examples import write_examples

                model = self.out / f"task-{task.index}" / "model.safetensors"
                before = weights.load(model) if result.teacher is None else result.teacher.detector
                write_examples(folder / "examples", task, before, found, self.world.device)
            self.results.write(self.out)
            assert self.log is not None
            self.log.write("task", task=task.index, seconds=result.seconds, **table.overall)
            self.tracking.results(self.results.content)
            for hook in self.hooks:
                hook.on_evaluation(task.index, self.results.content)
        self.extra.update(task.index, detector, self.world)
        self._save(task.index + 1, seconds=0.0, method=self.method.state())
        for line in (table.line(), *map(open_world.line, [e for k, e in facts.items() if k == "open_world"])):
            self.reporter.say(f"  {line}")
        self.world.barrier()

    # Beginning and end --------------------------------------------------------------------------------------------

    def _data(self) -> tuple[Index, Index]:
        with first_alone(self.world):
            pair = open_data(self.settings)
        for index in pair:
            self._say_problems("data", index.source, index.problems.lines())
        self.warnings.add(*sanity_checks.about_names(*pair))
        return pair

    def _say_problems(self, what: str, source: str, lines: list[str]) -> None:
        for line in lines:
            self.reporter.say(f"{what}: {line}")
            self.warnings.note(f"{source}: {line}")

    def _identify(self, train: Index, test: Index) -> None:
        """Fingerprints data and code, compares them with those of a resumed run, and lists the images."""
        s = self.settings
        images = fingerprints.listing(splits := {"train": train, "test": test})
        code = fingerprints.of_code(str(s.method.get("name", methods.DEFAULT)), s.detector.name)
        self.identity = {"data": fingerprints.of_data(splits, images), "code": code}
        if self.saved:
            self.warnings.add(*resume.check_identity(self.saved, s, self.identity, images, len(self.scenario)))
        if self.world.main:
            sweep(self.out)
            fingerprints.write_listing(self.out / "last", images)

    def _method(self) -> Method:
        return methods.make(self.settings.method)

    def _save(self, task: int, *, seconds: float, **more: Any) -> None:
        if not self.world.main:
            return
        if self.log:
            self.log.sync()
        state = {
            "format": resume.FORMAT,
            "command": "train",
            "identity": self.identity,
            "task": task,
            "seconds": seconds,
            "settings": environment.fingerprint(self.settings),
            "effort": self.settings.effort,
            "chosen": choices.values(self.settings, self.open),
            "results": self.results.content,
            "warnings": self.warnings.sentences,
            "memory": self.extra.state(),
            **more,
        }
        checkpoint.save_state(self.out / "last" / checkpoint.NEWEST, environment.plain(state))

    def _finish(self, lineage: Any) -> None:
        s = self.settings
        self.results.warn(self.warnings.sentences)
        self.results.finish(bounds_of(s))
        if not self.world.main:
            return
        self.results.write(self.out)
        if self.log:
            self.log.close()
        from ciod.report.page import write_report
        from ciod.report.summary import summary_table, verdict

        write_report(self.out)
        self.tracking.finish(self.results.content, lineage)
        self.reporter.show(summary_table(self.results.content))
        self.reporter.say(verdict(self.results.content))
        for sentence in self.results.content["warnings"]:
            self.reporter.say(f"warning: {sentence}")
        self.reporter.say(f"report: {self.out / 'report.html'}")
        for hook in self.hooks:
            hook.on_finish(self.out, self.results.content)

    def _write_settings(self) -> None:
        free = shutil.disk_usage(self.out.parent if self.out.parent.exists() else ".").free
        if free < 200e6:
            raise CiodError(f"out: {self.out} has only {free / 1e6:.0f} MB of free space; a run needs a few hundred.")
        environment.write_settings(self.out, self.settings, self.command, self.chosen)

    def _main_only(self, do: Any) -> None:
        if self.world.main:
            do()
        self.world.barrier()

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
