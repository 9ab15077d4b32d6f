"""An extension, from a model and a folder to a model: names, plan, training, retention, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ciod.config.load import data_folder
from ciod.core.distributed import World
from ciod.core.files import WriteError, sweep
from ciod.core.run_log import RunLog
from ciod.core.user_code import user_errors
from ciod.data.scenarios.scenario import Task
from ciod.data.views import Schedule
from ciod.detectors import own
from ciod.detectors.base import Detector
from ciod.detectors.files import weights
from ciod.detectors.onnx.detector import OnnxDetector
from ciod.evaluation.detect import ap
from ciod.extension import (
    confusion,
    data,
    effort,
    further,
    kept_views,
    known,
    looked,
    measure,
    mixing,
    names,
    old_objects,
    onnx_model,
    prelabels,
    prepare,
    splitting,
    tradeoff,
    unchanged,
    verdict,
    write,
)
from ciod.extension.cost import cost
from ciod.extension.settings import Extend
from ciod.extension.verdict import NotKept, Verdict
from ciod.methods.base.method import Method
from ciod.runs import choices, environment, fingerprints, resume
from ciod.runs.session import first_alone, session
from ciod.runs.tracked import tracking
from ciod.trackers import Tracking
from ciod.training import checkpoint
from ciod.training.hooks import Hooks
from ciod.training.progress import Reporter, Warnings
from ciod.training.task import TaskInputs, TaskResult, train_task

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ciod.core.results_schema import ExtensionState, Identity, TaskState
    from ciod.data.mixture import Mixture

__all__ = ["NotKept", "extend"]


def extend(
    settings: Extend, *, command: str = "", reporter: Reporter | None = None, hooks: Sequence[Hooks] = ()
) -> Path:
    """Extends a model by the classes of a folder, or resumes where an earlier process stopped.

    Args:
        hooks: called while the task is trained.

    Returns:
        The run folder; the model is ``model.safetensors`` in it, or ``model.onnx`` where an ONNX file was extended.

    Raises:
        CiodError: an error that the user can fix; ``NotKept`` when ``min_retention`` is not reached.
        RunAgain: SIGTERM or SIGUSR1 came; the state is written (exit code 75).
        KeyboardInterrupt: Ctrl-C; the state is written.
    """
    method_errors, detector_errors = user_errors(str(settings.method.get("name", ""))), own.faults(settings.detector)
    with session(settings.out, settings.device, reporter) as (process_group, speaker), method_errors, detector_errors:
        extension = Extension(settings, process_group, speaker, command, hooks)
        try:
            extension.run()
        finally:
            extension.leave()
    return extension.out


@dataclass(slots=True)
class Extension:
    """State of one extension on one rank."""

    settings: Extend
    world: World
    reporter: Reporter
    command: str = ""
    hooks: Sequence[Hooks] = ()
    log: RunLog | None = None  # of rank 0
    out: Path = field(init=False)
    warnings: Warnings = field(init=False)
    tracking: Tracking = field(init=False)
    saved: ExtensionState | None = field(init=False, default=None)  # of an earlier process
    identity: Identity = field(init=False)
    folder: data.Folder = field(init=False)
    names: names.Names = field(init=False)
    task: Task = field(init=False)
    before: Detector = field(init=False)  # the model as it was
    method: Method = field(init=False)
    method_name: str = field(init=False)
    auto: bool = field(init=False)  # ciod chose the method
    plan: effort.Plan = field(init=False)
    measured: measure.Measure = field(init=False)
    known: known.Known | None = field(init=False)  # corrected labels of some images
    found: old_objects.Found = field(init=False)

    def __post_init__(self) -> None:
        self.out = Path(self.settings.out)
        self.warnings = Warnings(self.reporter)
        self.tracking = tracking(self.settings, self.world, self.reporter)

    def run(self) -> None:
        began = time.monotonic()
        s = self.settings
        saved, notes = resume.saved_state(s, self._compared, "extend", model_of=write.model_of)
        self.saved = cast("ExtensionState | None", saved)
        if self.saved is None:
            write.refuse_result(self.out)
        detector = onnx_model.open_model(s)
        with first_alone(self.world):
            self._open(detector)
        images = self._identify()
        self.warnings.add(*notes)
        if self.saved and self.saved["task"] == write.TASKS:
            self.reporter.say(f"{self.out} is finished; nothing is left to train.")
            self._end(self.saved.get("not_kept"))
            return
        prepare.check_room(self.out, detector)
        prepare.adapt(detector, self.names, s, self.world)
        self.before = detector.frozen()
        self._say_names(detector)
        self.auto = s.method.get("name", "auto") == "auto"
        self.method_name, self.method = prepare.choose_method(s, detector, self.reporter, self.names.parent)
        self._plan(detector)
        if self.world.main:
            sweep(self.out)
            write.settings(self.out, s, self.plan, self.command)
            fingerprints.write_listing(self.out / "last", images)
            environment.trim_log(self.out, self.task.index, self.saved.get("fit") if self.saved else None)
            self.log = RunLog(self.out, self.tracking.line)
        self.tracking.start(resumed=self.saved is not None)
        self._look()
        self._tell(onnx_model.prepare(detector, self.task))
        result = self._train(detector)
        failed = self._judge(detector, result)
        self._save(write.TASKS, seconds=0.0, not_kept=failed)
        self.reporter.say(f"{time.monotonic() - began:.0f} s in all")
        self._end(failed)

    def leave(self) -> None:
        """Closes the log after an error too."""
        self.tracking.close()
        if self.log:
            with suppress(WriteError):  # the error that ended the run is the one to tell
                self.log.close()

    def _compared(self, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return environment.fingerprint(self.settings), state["settings"]

    # Before the training ------------------------------------------------------------------------------------------

    def _open(self, detector: Detector) -> None:
        """Reads the data, and matches the classes of folder and model."""
        read = prepare.read(self.settings, detector, self.world, self.reporter)
        self.folder, self.names, self.known, self.measured = read.folder, read.names, read.known, read.measured
        self.task = self.measured.task

    def _identify(self) -> fingerprints.Listing:
        """Fingerprints data, model and code, and compares them with those of the extension that is resumed."""
        s = self.settings
        measured = self.measured
        others = {"pool": measured.pool, "old": measured.old, "old training": measured.negatives.old}
        splits = {"train": self.folder.train, "test": self.folder.val}
        splits |= {name: index for name, index in others.items() if index is not None}
        splits |= {"known": self.known.images} if self.known else {}
        images = fingerprints.listing(splits)
        model = weights.file_of(data_folder(s.model) or s.model)
        self.identity = {
            "data": fingerprints.of_data(splits, images),
            "model": {"name": model.name, "digest": write.sha256(model)},
            "code": fingerprints.of_code(str(s.method.get("name", "auto")), s.detector or "", also=("extension",)),
        }
        if self.saved:
            self.warnings.note(*self.saved["warnings"])
            self.warnings.add(*resume.check_identity(self.saved, s, self.identity, images, write.TASKS))
            if "fit" in self.saved:
                self.reporter.say(f"resuming at step {self.saved['fit']['done'] + 1} in {self.out}")
        return images

    def _say_names(self, detector: Detector) -> None:
        self._tell(self.folder.notes)
        for line in [*onnx_model.lines(detector), *self.names.sentences()]:
            self.reporter.say(line)
        self._tell(self.known.sentences() if self.known else [])
        self.warnings.add(*self.measured.data_warnings())

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self.reporter.say(line)
        self.warnings.note(*lines)

    def _plan(self, detector: Detector) -> None:
        """A resumed extension keeps its plan: it is made for a machine, and this may be another."""
        if self.saved:
            self.plan = prepare.resumed(effort.Plan(**self.saved["plan"]), self.settings, self.world)
        else:
            method = (self.method_name, self.method)
            self.plan = prepare.plan(detector, method, self.measured, whole=self.folder.whole)
        for line in self.plan.why:
            self.reporter.say(line)

    def _look(self) -> None:
        """Old objects in the new images, and on the old validation data what the old model finds."""
        self._tell(self.measured.problems())
        place = self.out / "last" / looked.NAME
        detections = looked.detections(self.measured, self.before, self.identity, place)
        others = [n for n in self.names.old if n not in (*self.names.taught, self.names.parent)]
        truth = self.measured.old
        judged = self.measured.of_old(self.before, truth) if truth is not None else ()
        rows = confusion.table(detections, self.task.train, self.names.new)
        self._tell(confusion.alike(confusion.without(rows, self.names.parent)))
        for line in self.measured.negatives.sentences(self.method.learns_background):
            self.reporter.say(line)
        limits = old_objects.thresholds(detections, others, truth, judged)
        detections = self.known.without(detections) if self.known else detections
        self.found = old_objects.look(detections, self.task.train, others, limits)
        if others:
            self.reporter.say(self.found.sentence())
        if self.world.main:
            old_objects.draw_doubtful(self.out / "doubtful", self.found, detections, self.task.train)
            if self.names.parent is None:  # known= is for ordinary extensions
                for line in prelabels.write(self.out / prelabels.FOLDER, self.found, detections, self.task.train):
                    self.reporter.say(line)  # not a warning

    # Training -----------------------------------------------------------------------------------------------------

    def _train(self, detector: Detector) -> TaskResult:
        plan = self.plan
        s = choices.with_values(self.settings, plan.more)
        prepare.fill_in(self.method, self.found.thresholds, self.task.train, detector)
        inputs = TaskInputs(
            task=self.task,
            tasks=write.TASKS,
            detector=detector,
            before=self.before,
            method=self.method,
            new=self.names.new,
            taught=self.names.taught,
            growth_seed=s.seed + 7919 * (1 + len(detector.lineage)),
            start_seed=s.seed + 2000,
            mixture=self._mixture,
            train=s.train,
            augment=s.augment,
            epochs=plan.epochs,
            batch=plan.batch,
            lr=plan.lr,
            seed=s.seed,
            workers=environment.workers(s.train.workers, self.world),
            packer=kept_views.packer(plan, s, detector, self.method, self.task, self.world),
            views=plan.views,
            score=partial(ap, settings=s.eval, classes=self.names.learnt, world=self.world),
            world=self.world,
            reporter=self.reporter,
            warnings=self.warnings,
            log=self.log,
            bad_batch=self.out / "last",
            hint=True,
            title="training",
            before_fit=lambda loader: self._estimate(detector, loader),
        )
        save, saved = partial(self._save, self.task.index), cast("TaskState | None", self.saved)
        return train_task(inputs=inputs, saved=saved, save=lambda state: save(**state), hooks=self.hooks)

    def _estimate(self, detector: Detector, loader: DataLoader) -> None:
        self.reporter.say("measuring how long a step takes")
        seconds = effort.measure(detector, self.method, loader, self.world)
        if self.plan.views:  # the same batches again have their maps
            ready = effort.measure(detector, self.method, loader, self.world)
            share = Schedule(self.plan.views).computed(self.plan.epochs) / self.plan.epochs
            seconds = ready + (seconds - ready) * share
        self.reporter.say(f"estimate: {effort.estimate(seconds, len(loader) * self.plan.epochs)}")

    def _mixture(self, detector: Detector) -> Mixture | None:
        return mixing.mixture(self.measured, self.method, self.method_name, self.plan.batch, detector, self.known)

    def _save(self, task: int, *, seconds: float, **more: Any) -> None:
        """Args: task: how many are finished; the first one is the model as it was."""
        if not self.world.main:
            return
        if self.log:
            self.log.sync()
        state = {
            "format": resume.FORMAT,
            "command": "extend",
            "identity": self.identity,
            "task": task,
            "seconds": seconds,
            "settings": environment.fingerprint(self.settings),
            "warnings": self.warnings.sentences,
            "plan": asdict(self.plan),
            **more,
        }
        checkpoint.save_state(self.out / "last" / checkpoint.NEWEST, environment.plain(state))

    # Afterwards ---------------------------------------------------------------------------------------------------

    def _judge(self, detector: Detector, result: TaskResult) -> str | None:
        """Measures, decides what is written, writes it. Returns why there is no model, or None."""
        self.reporter.say("training is done; what the new model finds is measured now")
        detector.eval()
        if detector.arbiter is not None and tradeoff.moved(self.before.state_dict(), detector.state_dict()):
            detector.arbiter = None
            self.warnings.note(verdict.NO_ARBITER)
        s = self.settings
        found, warnings = verdict.reach(self.before, detector, self.measured, wanted=s.min_retention, auto=self.auto)
        self.warnings.note(*result.fit.warnings, *warnings)
        share = found.share if self.auto else 1.0
        entry = write.lineage(s, self.task, self.names, self.method_name, self.plan.epochs, share)
        detector.lineage = [*detector.lineage, entry]
        failed = verdict.not_kept(found, s.min_retention, self.out) if found.short and s.min_retention else None
        alarms = self.measured.false_alarms(detector, found.judged).row()
        confusions = self.measured.confusion(found.judged)
        if self.world.main:
            self._write(detector, result, found, failed is None, alarms, confusions)
        self.world.barrier()
        return failed

    def _write(
        self,
        detector: Detector,
        result: TaskResult,
        found: Verdict,
        kept: bool,
        alarms: dict[str, Any],
        confusions: Any,
    ) -> None:
        s = self.settings
        extra = {
            "names": asdict(self.names),
            "plan": asdict(self.plan),
            "held_out": self.folder.held_out,
            "negatives": self.measured.negatives.used,
            "found": {"total": self.found.total, "classes": self.found.table},
            "retention": asdict(found.judged.retention),
            "unchanged": asdict(same) if (same := self._unchanged(detector)) else None,
            "min_retention": s.min_retention,
            "known": self.known.row() if self.known else None,
            "tradeoff": [m.row() for m in found.mixtures],
            "false_alarms": alarms,
            "confusion": confusions,
            "split": splitting.measure(found.judged.after_new, self.task.test, self.names),
            "further": further.measure(found.judged, self.names.taught),
        }
        made = onnx_model.make(detector, self.task, s) if isinstance(detector, OnnxDetector) else None
        if made is None:
            extra["cost"] = cost(detector).over(cost(self.before))
        else:
            extra |= {"cost": made.cost, "onnx": made.record()}
            self._tell([made.sentence()] if made.verified.moved else [])
        content = write.results(
            s, self.task, self.method_name, self.method, found.judged, result, extra, self.warnings.sentences, detector
        )
        if kept and made is not None:
            made.save(self.out)
        elif kept:
            weights.save_model(self.out / onnx_model.name(detector), detector)
        elif found.mixed is not None:
            detector.load_state_dict(found.mixed)
            weights.save_model(self.out / "tradeoff.safetensors", detector)
        write.examples(self.out, self.task, self.before, found.judged.after_new, self.world.device)
        confusion.draw(self.out / "confused", found.judged.after_new, self.task.test, self.names.learnt)
        write.finish(self.out, content, self.reporter)
        self._tell(splitting.sentences(extra["split"]))
        self.tracking.finish(content, detector.lineage)
        for hook in self.hooks:
            hook.on_evaluation(self.task.index, content)
            hook.on_finish(self.out, content)

    def _unchanged(self, detector: Detector) -> unchanged.Unchanged | None:
        return unchanged.look(self.before, detector, *self.measured.compared_on(detector), self.names.taught)

    def _end(self, failed: str | None) -> None:
        """Raises NotKept when there is no model."""
        if failed:
            raise NotKept(failed)
        self.reporter.say(f"model: {write.written(self.out)}")
