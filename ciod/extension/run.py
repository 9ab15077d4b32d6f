"""An extension, from a model and a folder to a model: names, plan, teacher, grow, fit, retention, report."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ciod import methods
from ciod.config.load import data_folder
from ciod.config.settings import Run
from ciod.core.distributed import World, world
from ciod.core.errors import CiodError
from ciod.core.files import exists
from ciod.core.run_log import RunLog
from ciod.data.augment import TrainTransform
from ciod.data.image_cache import presize_hint
from ciod.data.loader import train_loader
from ciod.data.scenarios.scenario import Task
from ciod.detectors.base import Detector
from ciod.detectors.files import weights
from ciod.extension import confusion, data, effort, measure, names, negatives, old_objects, tradeoff, write
from ciod.extension.cost import cost
from ciod.extension.measure import Judged
from ciod.extension.settings import Extend
from ciod.memory.rehearsal import Extra, Mixture
from ciod.methods.base.method import Method
from ciod.methods.base.user_code import told
from ciod.runs import environment
from ciod.training import checkpoint, speed
from ciod.training.loop import Fit
from ciod.training.offline_labels import with_drawn
from ciod.training.progress import Reporter

KEEP_BY_DEFAULT = 0.98  # what method=auto asks of a method that moves old weights
ROOM = 100e6  # bytes beyond four times the model: states, pictures, report


class NotKept(CiodError):
    """``min_retention`` was not reached; nothing was overwritten."""

    exit_code = 3


def extend(settings: Extend, *, command: str = "", reporter: Reporter | None = None) -> Path:
    """Extends a model by the classes of a folder, or goes on where an earlier process stopped.

    Returns:
        The run folder; the model is ``model.safetensors`` in it.

    Raises:
        CiodError: whatever a user can mend, as a sentence; ``NotKept`` when ``min_retention`` is not reached.
    """
    with world(settings.device) as here:
        if here.size > 1:
            raise CiodError("ciod extend runs in one process; start it without torchrun.")
        extension = Extension(settings, here, reporter or Reporter(), command)
        with told(str(settings.method.get("name", ""))):
            extension.run()
    return extension.out


@dataclass
class Extension:
    """State of one extension."""

    settings: Extend
    world: World
    reporter: Reporter
    command: str = ""
    warnings: list[str] = field(default_factory=list)

    def run(self) -> None:
        s = self.settings
        self.out = Path(s.out)
        self.began = time.monotonic()
        self.saved = self._earlier()
        detector = weights.load(data_folder(s.model) or s.model, classes=s.names)
        self.folder = data.open_folder(s.data, holdout=s.holdout, seed=s.seed)
        self.names = names.match(
            detector.class_names, self.folder.classes, keep=s.keep, drop=s.drop, rename=s.rename, new=s.new
        )
        self.task = data.task_of(self.folder, self.names)
        self._check_room(detector)
        self._adapt(detector)
        self.before = detector.frozen()
        self._say_names()
        method = self._method(detector)
        self._plan(detector)
        write.settings(self.out, s, self.plan, self.command)
        self._look()
        self._thresholds(method)
        self._grow(detector, method)
        done = self._train(detector, method)
        self._judge(detector, done)

    # Before the training ------------------------------------------------------------------------------------------

    def _adapt(self, detector: Detector) -> None:
        """keep, drop, rename and size, on the model as it was: everything after compares with the result."""
        detector.to(self.world.device)
        speed.prepare(detector, self.settings.train, self.world)
        if self.names.dropped:
            detector.select(self.names.kept)
        renamed = {a: b for a, b in zip(self.names.kept, self.names.old, strict=True) if a != b}
        if renamed:
            detector.rename(renamed)
        if self.settings.size:
            from dataclasses import replace

            detector.input = replace(detector.input, size=self.settings.size)
            detector.settings["size"] = self.settings.size

    def _say_names(self) -> None:
        self._tell(self.folder.said)
        for line in self.names.sentences():
            self.reporter.say(line)

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self.reporter.say(line)
        self.warnings += lines

    def _method(self, detector: Detector) -> Method:
        """The named method, or the tested default: a branch where the detector can have one."""
        given = dict(self.settings.method)
        name = str(given.pop("name", "auto"))
        self.auto = name == "auto"
        if self.auto:
            traits = detector.traits
            name = "freeze_branch" if "branches" in traits else "pseudo_label" if "dense" in traits else "finetune"
            self.reporter.say(f"method: {name} (chosen by auto)")
        cls = methods.find(name)
        lacking = cls.needs - detector.traits
        if lacking:
            raise CiodError(
                f"method: {name} needs a detector with {', '.join(sorted(lacking))}, which {detector.settings['name']} "
                "does not have."
            )
        self.method_name = name
        return cls.model_validate(given)

    def _plan(self, detector: Detector) -> None:
        learnt = len(self.names.learnt)
        self.plan = effort.choose(self.settings, self.task.train, learnt, detector, self.method_name, self.world)
        for line in self.plan.why:
            self.reporter.say(line)

    def _look(self) -> None:
        """Old objects in the new images, and on the old validation data what the old model finds."""
        self.measured = measure.Measure(self.settings, self.world, self.task, self.names)
        self._tell(self.measured.problems())
        detections = self.measured.detect(self.before, self.task.train)
        others = [n for n in self.names.old if n not in self.names.taught]
        truth = self.measured.old
        judged = self.measured.detect(self.before, truth) if truth is not None else ()
        self.warnings += (alike := confusion.alike(confusion.table(detections, self.task.train, self.names.new)))
        for line in [*alike, *self.measured.negatives.sentences(methods.find(self.method_name).learns_background)]:
            self.reporter.say(line)
        limits = old_objects.thresholds(detections, others, truth, judged)
        self.found = old_objects.look(detections, self.task.train, others, limits)
        old_objects.draw_doubtful(self.out / "doubtful", self.found, detections, self.task.train)
        if others:
            top = ", ".join(f"{r['boxes']} {r['class']}" for r in self.found.table[:8] if r["boxes"])
            self.reporter.say(
                f"old objects in the new images, unlabelled: {self.found.total} found by the old model"
                + (f" ({top})" if top else "")
            )

    def _thresholds(self, method: Method) -> None:
        """Pseudo-labels of the method pass the thresholds that were found class by class."""
        if "class_scores" in type(method).model_fields and not method.class_scores:  # type: ignore[attr-defined]
            method.class_scores = dict(self.found.thresholds)  # type: ignore[attr-defined]

    def _grow(self, detector: Detector, method: Method) -> None:
        if "inner" in type(method).model_fields and method.inner is None:  # type: ignore[attr-defined]
            method.inner = effort.branch_widths(self.task.train, detector)  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed + 7919 * (1 + len(detector.lineage)))
            method.grow(detector, self.names.new, self.names.taught)
        detector.to(self.world.device)
        train, teacher = self.settings.train, None
        if method.uses_teacher:
            teacher = speed.make_teacher(self.before, train, student=detector)
        method.attach(detector, detector, teacher)
        method.begin_task(self.task)
        student = speed.student(detector, train, self.world)
        method.attach(student if teacher is None else teacher.beside(student), detector, teacher)

    # Training -----------------------------------------------------------------------------------------------------

    def _train(self, detector: Detector, method: Method) -> dict[str, Any]:
        s, plan = self.settings, self.plan
        transform = TrainTransform(s.augment, detector.input.size, detector.input.fill)
        if line := presize_hint(self.task.train, transform, presize=s.train.presize, cache=s.train.picture_cache):
            self.reporter.say(line)
        workers, mixture = environment.workers(s.train.workers, self.world), self._mixture(detector, method)
        train, mixture, said = with_drawn(self.task.train, mixture, method, workers=workers, reporter=self.reporter)
        self.warnings += said
        loader = train_loader(
            train,
            transform,
            batch=plan.batch,
            seed=s.seed,
            task=1,
            workers=workers,
            pin=self.world.device.type == "cuda",
            mixture=mixture,
            cache=s.train.picture_cache,
            presize=s.train.presize,
        )
        steps = len(loader) * plan.epochs
        if self.saved is None:
            seconds = effort.measure(detector, method, loader, self.world)
            self.reporter.say(f"estimate: {effort.estimate(seconds, steps)}")
        if self.saved:
            checkpoint.set_random_state(self.saved["random"])
        else:
            torch.manual_seed(s.seed + 2000)
        log = RunLog(self.out)
        fit = Fit(
            detector=detector,
            method=method,
            loader=loader,
            settings=s.train,
            epochs=plan.epochs,
            lr=plan.lr,
            task=1,
            tasks=2,
            world=self.world,
            log=log,
            reporter=self.reporter,
            save=self._save,
        )
        with speed.shared(detector, None if method.exact_teacher else method.teacher, s.train):
            done = fit.run(self.saved["fit"] if self.saved else None)
        method.end_task(self.task)
        log.close()
        return done

    def _mixture(self, detector: Detector, method: Method) -> Mixture | None:
        """The pool's share of every batch, for methods that learn from what the old model sees there, or that there
        is nothing of theirs."""
        pool = self.measured.pool
        if method.learns_background:
            for pictures in self.measured.negatives.train:
                method.learn_background(pictures)
            return negatives.mixture(self.task, self.measured.negatives, detector.num_classes, self.plan.batch)
        if pool is None:
            return None
        if not method.uses_teacher:
            self.reporter.say(f"pool: {self.method_name} does not learn from it; agreement is measured on it")
            return None
        settings = Run(train=self.settings.train.model_copy(update={"batch": self.plan.batch}))
        return Extra(settings, None, pool).mixture(self.task, detector.num_classes)

    def _save(self, state: dict[str, Any]) -> None:
        content = {"extend": self._fingerprint(), "fit": state, "random": checkpoint.random_state()}
        checkpoint.save_state(self.out / "last" / "state.pt", environment.plain(content))

    def _earlier(self) -> dict[str, Any] | None:
        """State of an interrupted process with the same settings.

        Raises:
            CiodError: the folder holds something else.
        """
        if exists(self.out / "model.safetensors") or exists(self.out / "results.json"):
            raise CiodError(f"out: {self.out} already holds a result, which is never overwritten; choose another out=.")
        state = checkpoint.load_state(self.out / "last" / "state.pt")
        if state is None:
            return None
        if state.get("extend") != self._fingerprint():
            raise CiodError(f"out: {self.out} holds an extension with other settings; choose another out=.")
        self.reporter.say(f"going on after epoch {state['fit']['epoch']} in {self.out}")
        return state

    def _fingerprint(self) -> str:
        content = self.settings.model_dump(mode="json")
        return json.dumps({k: v for k, v in content.items() if k not in ("out", "device")}, sort_keys=True)

    def _check_room(self, detector: Detector) -> None:
        size = sum(p.numel() * p.element_size() for p in detector.parameters())
        free, needed = data.free_of(self.out), 8 * size + ROOM
        if free < needed:
            raise CiodError(
                f"out: there is {free / 1e6:.0f} MB of room for {self.out}; about {needed / 1e6:.0f} MB are needed."
            )

    # Afterwards ---------------------------------------------------------------------------------------------------

    def _judge(self, detector: Detector, done: dict[str, Any]) -> None:
        """Measures, decides what is written, writes it.

        Raises:
            NotKept: less than ``min_retention`` is kept.
        """
        detector.eval()
        if detector.arbiter is not None and tradeoff.moved(self.before.state_dict(), detector.state_dict()):
            detector.arbiter = None
            self.warnings.append(
                "The arbiter between the branches is dropped: its statistics are of the weights before this extension."
            )
        s = self.settings
        least = s.min_retention if s.min_retention is not None else (KEEP_BY_DEFAULT if self.auto else None)
        mixtures: list[tradeoff.Mixture] = []
        share = 1.0
        judged = self.measured.judge(self.before, detector)
        short = least is not None and _value(judged) < least
        if short and tradeoff.moved(self.before.state_dict(), detector.state_dict()):
            mixtures = tradeoff.scan(self.before, detector, lambda m: self.measured.brief(self.before, m))
            share = tradeoff.best(mixtures, least).share
            mixed = tradeoff.mix(self.before.state_dict(), detector.state_dict(), share)
            if self.auto:
                detector.load_state_dict(mixed)
                judged = self.measured.judge(self.before, detector)
                short = _value(judged) < (least or 0.0)
                self.warnings.append(
                    f"The new weights kept less than {least:.0%} of the old classes; {share:.0%} of the step is taken "
                    "(chosen on the validation images, which therefore flatter it a little)."
                )
        failed = short and s.min_retention is not None
        detector.lineage = [*detector.lineage, self._lineage(share if self.auto else 1.0)]
        extra = {
            "names": asdict(self.names),
            "plan": asdict(self.plan),
            "held_out": self.folder.held_out,
            "negatives": self.measured.negatives.used,
            "found": {"total": self.found.total, "classes": self.found.table},
            "retention": asdict(judged.retention),
            "min_retention": s.min_retention,
            "tradeoff": [m.row() for m in mixtures],
            "cost": cost(detector).over(cost(self.before)),
            "false_alarms": self.measured.false_alarms(detector, judged).row(),
            "confusion": self.measured.confusion(judged),
        }
        content = write.results(s, self.task, self.method_name, judged, done, extra, self.warnings, detector)
        if failed:
            if mixtures:
                detector.load_state_dict(mixed)
                weights.save_model(self.out / "tradeoff.safetensors", detector)
        else:
            weights.save_model(self.out / "model.safetensors", detector)
        write.examples(self.out, self.task, self.before, judged.after_new, self.world.device)
        write.finish(self.out, content, self.reporter)
        self.reporter.say(f"{time.monotonic() - self.began:.0f} s in all")
        if failed:
            raise NotKept(_not_kept(s, _value(judged), mixtures, self.out))
        self.reporter.say(f"model: {self.out / 'model.safetensors'}")

    def _lineage(self, share: float) -> dict[str, Any]:
        task: Task = self.task
        return {
            "classes": list(self.names.new),
            "taught": list(self.names.taught),
            "dropped": list(self.names.dropped),
            "data": task.train.source,
            "images": len(task.train),
            "boxes": len(task.train.labels),
            "method": {**self.settings.method, "name": self.method_name},
            "epochs": self.plan.epochs,
            "share": share,
            "seed": self.settings.seed,
            **write.provenance(self.settings, task),
        }


def _value(judged: Judged) -> float:
    """Retention; where nothing is known, nothing can be said to be lost."""
    return 1.0 if judged.retention.value is None else judged.retention.value


def _not_kept(s: Extend, value: float, mixtures: list[tradeoff.Mixture], out: Path) -> str:
    text = (
        f"min_retention: {value:.1%} of the old classes is kept, less than {s.min_retention:.1%}; no model is written."
    )
    if mixtures:
        chosen = tradeoff.best(mixtures, s.min_retention)
        kept = "–" if chosen.kept is None else f"{chosen.kept:.1%}"
        learnt = "–" if chosen.learnt is None else f"{chosen.learnt:.1%}"
        text += (
            f" The best trade-off, {chosen.share:.0%} of the way from the old weights to the new, keeps {kept} and "
            f"reaches {learnt} AP50 on what was taught: it is {out / 'tradeoff.safetensors'}."
        )
    return text
