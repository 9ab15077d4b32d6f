"""The checks of a method, on two tasks of a small detector that has what it needs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from ciod import detectors
from ciod.contract import material
from ciod.contract.report import Check, NotChecked
from ciod.core.errors import CiodError
from ciod.core.types import Batch, Outputs
from ciod.core.user_code import where
from ciod.data.index import Index, empty_columns
from ciod.data.scenarios.scenario import Task
from ciod.detectors.base import Detector
from ciod.methods.base.distillation import Distillation
from ciod.methods.base.method import Method
from ciod.training.method_checks import MethodChecks

OLD, NEW = ("ant", "bee"), ("cow", "dog")
STEPS = 2


@dataclass(frozen=True)
class Subject:
    """A method by name, with its class and the detector that it is tried on."""

    name: str
    cls: type[Method]
    detector: material.Subject

    @classmethod
    def of(cls, name: str, method: type[Method], size: int) -> Subject:
        """With the first detector that has all that the method needs and whose packages are there.

        Raises:
            CiodError: no detector has it, or the method has a setting without a default.
        """
        try:
            needs = method.model_validate({}).requires()
        except ValidationError as error:
            missing = ", ".join(str(e["loc"][0]) for e in error.errors() if e["loc"])
            at = where(method)
            raise CiodError(f"check: {at} has settings without a default ({missing}); give them one.") from error
        able = [n for n in detectors.offering(needs) if not detectors.lacking(n)]
        if not able:
            lacking = ", ".join(sorted(needs))
            raise CiodError(f"check: no detector of ciod has all that {where(method)} needs: {lacking}.")
        return cls(name, method, material.Subject(able[0], size))

    def at(self, function: str) -> str:
        """A function of the class, with file and line."""
        return where(self.cls, function)

    def batch(self, i: int, labels: range) -> Batch:
        """Two pictures with boxes of the classes ``labels``."""
        targets = self.detector.boxes([2, 1], len(labels), seed=i)
        targets = replace(targets, labels=torch.where(targets.valid, targets.labels + labels.start, 0))
        return Batch(
            images=self.detector.pictures(2, seed=i),
            targets=targets,
            names=["0.png", "1.png"],
            sizes=torch.full((2, 2), self.detector.size),
            scales=torch.ones(2),
            index=torch.arange(2),
        )


class _Student:
    """The student of a task, which counts how often it is asked."""

    def __init__(self, detector: Detector):
        self.detector, self.calls = detector, 0

    def __call__(self, images: Tensor) -> Outputs:
        self.calls += 1
        return self.detector(images)


class _Run:
    """Two tasks, as the loop trains them, with the checks that the loop makes."""

    def __init__(self, s: Subject, settings: dict[str, Any] | None = None, cls: type[Method] | None = None):
        self.s, self.method = s, (cls or s.cls).model_validate(settings or {})
        self.student = s.detector.make(())
        self.teacher: Detector | None = None
        self.warned: list[str] = []

    def begin(self, task: int) -> None:
        """The first task or the second, up to its first step."""
        old, new = ((), OLD) if task == 0 else (OLD, NEW)
        torch.manual_seed(task)
        self.teacher = self.student.frozen() if task and self.method.uses_teacher else None
        self.method.grow(self.student, new)
        self.asked = _Student(self.student)
        self.method.attach(self.asked, self.student, self.teacher)
        empty = Index(old + new, [], np.zeros((0, 2), np.int32), np.zeros(0, np.int64), **empty_columns())
        self.task = Task(task, new, old, empty, empty, 0, 0)
        self.method.begin_task(self.task)
        self.checks = MethodChecks(self.method, task)
        self.optimizer = torch.optim.SGD([p for p in self.student.parameters() if p.requires_grad], lr=1e-3)
        self.labels = range(len(old), len(old) + len(new))

    def step(self, i: int) -> dict[str, Tensor]:
        self.student.train()
        torch.manual_seed(100 + i)
        losses = self.checks.loss(self.s.batch(i, self.labels))
        self.optimizer.zero_grad()
        self.checks.backward(torch.stack([*losses.values()]).sum())
        self.checks.after_backward()
        self.method.before_step()
        self.optimizer.step()
        return losses

    def train(self) -> list[dict[str, Tensor]]:
        """Both tasks; the losses of each step of the second."""
        found = []
        for task in (0, 1):
            self.begin(task)
            found = [self.step(i) for i in range(STEPS)]
            self.method.end_task(self.task)
            self.warned += [w for w in self.checks.warnings if w not in self.warned]
        return found


def tasks(s: Subject) -> Iterator[str]:
    """Two tasks train: super() calls, names and values of losses, a state that can be saved, and no waiting."""
    run = _Run(s)
    run.train()
    yield from run.warned


def forwards(s: Subject) -> Iterator[str]:
    """A step asks the student once and the teacher at most once."""
    run = _Run(s)
    run.begin(0)
    run.step(0)
    run.begin(1)
    asked: list[int] = []
    if run.teacher is not None:
        run.teacher.register_forward_hook(lambda *_: asked.append(1))
    run.step(0)
    if run.asked.calls != 1:
        yield f"{s.at('loss')} asks the student {run.asked.calls} times in a step; once is enough."
    if len(asked) > 1:
        yield f"{s.at('loss')} asks the teacher {len(asked)} times in a step; keep what self.teach(batch) returns."


def teacher(s: Subject) -> Iterator[str]:
    """The teacher never changes."""
    run = _Run(s)
    run.begin(0)
    run.begin(1)
    if run.teacher is None:
        raise NotChecked("it uses no teacher")
    before = {k: v.clone() for k, v in run.teacher.state_dict().items()}
    for i in range(STEPS):
        run.step(i)
    changed = [k for k, v in run.teacher.state_dict().items() if not torch.equal(v, before[k])]
    if changed or run.teacher.training:
        yield f"{s.at('loss')} changes the teacher ({changed[0] if changed else 'train mode'}); it must stay as it is."


def repetition(s: Subject) -> Iterator[str]:
    """The same run gives the same losses."""
    one, two = _Run(s).train(), _Run(s).train()
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        if bad := [k for k in a if not torch.equal(a[k], b[k])]:
            yield f"{s.at('loss')}: '{bad[0]}' differs in step {i + 1} when a run is repeated; use torch's generator."
            return


def resuming(s: Subject) -> Iterator[str]:
    """A resumed run continues as an uninterrupted one: state and load_state."""
    run, again = _Run(s), _Run(s)
    for r in (run, again):
        r.begin(0)
        r.step(0)
        r.method.end_task(r.task)
        r.begin(1)
        r.step(0)
    kept = io.BytesIO()
    torch.save(again.method.state(), kept)
    kept.seek(0)
    fresh = s.cls.model_validate({})
    fresh.attach(again.asked, again.student, again.teacher)
    fresh.begin_task(again.task)
    fresh.load_state(torch.load(kept, weights_only=True))
    again.method = again.checks.method = fresh
    expected, found = run.step(1), again.step(1)
    if bad := [k for k in expected if not torch.equal(expected[k], found[k])]:
        k = bad[0]
        yield (
            f"{s.at('state')}: after a resume '{k}' is {float(found[k]):.6g} instead of {float(expected[k]):.6g}; "
            "state() must return everything that loss keeps between steps, and load_state restore it."
        )
    try:
        s.cls.model_validate({}).load_state({})
    except (KeyError, AttributeError, TypeError) as error:
        yield f"{s.at('load_state')} does not accept an empty state ({type(error).__name__}); a new run has one."


def zero_weight(s: Subject) -> Iterator[str]:
    """With weight=0 it is fine-tuning."""
    field = s.cls.model_fields.get("weight")
    if field is None:
        raise NotChecked("it has no setting called weight")
    if issubclass(s.cls, Distillation):
        raise NotChecked("a Distillation also masks old classes in the supervised loss")
    try:
        s.cls.model_validate({"weight": 0})
    except ValidationError:
        raise NotChecked("its weight may not be 0") from None
    gradients = []
    for cls, settings in ((s.cls, {"weight": 0}), (Method, {})):
        run = _Run(s, settings, cls)
        run.begin(0)
        run.begin(1)
        run.step(0)
        gradients.append({n: p.grad.clone() for n, p in run.student.named_parameters() if p.grad is not None})
    mine, plain = gradients
    for name in plain:
        if name not in mine or not torch.allclose(mine[name], plain[name], rtol=1e-4, atol=1e-6):
            yield (
                f"{s.at('loss')}: with weight=0 the gradient of {name} is not that of fine-tuning, so more than its "
                "terms depends on the weight, or something else changes too."
            )
            return


CHECKS: dict[str, Check[Subject]] = {
    "tasks": tasks,
    "forwards": forwards,
    "teacher": teacher,
    "repetition": repetition,
    "resuming": resuming,
    "zero weight": zero_weight,
}
"""Every check by name."""
