"""The contract of a method. As it stands it is plain fine-tuning; a subclass is a paper."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr
from torch import Tensor, nn

from ciod.core.types import TASK, Batch, Matches, Outputs, Targets
from ciod.detectors.base import Detector
from ciod.detectors.teacher import Teacher
from ciod.methods.base import first_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ciod.data.index import Index
    from ciod.data.scenarios.scenario import Task

Channels = Literal["new", "matched", "auto", "all"]
"""Class channels that the real boxes of a task supervise. Exemplars with their labels supervise all.

- ``new``: the new classes' (ERD, YOLO LwF). Old objects stand unlabelled in the images; old channels are left alone.
- ``matched``: the new classes' everywhere, and all at positions matched with a real box: what a box of a new class
  shows is no unlabelled old object.
- ``auto``: ``matched`` on a detector with objectness, else ``new``. Where objectness tells objects from background,
  classes learn at matches alone, never at an unlabelled old object: ``new`` only leaves old rows high on new objects
  that look like old ones, which a detector with one label a position then calls old. Without anything that holds the
  old rows elsewhere ``matched`` lets them fall to zero.
- ``all``: every class, everywhere the detector's loss looks.
"""


class Method(BaseModel):
    """Base of every method: its fields are the settings, with the paper's defaults; ``loss`` is the method.

    The engine calls ``begin_task``, then ``loss`` for every batch, then ``end_task``. It owns backward, clipping,
    the optimiser, AMP and EMA; a method never does. On the first task there is no teacher.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, arbitrary_types_allowed=True)

    needs: ClassVar[frozenset[str]] = frozenset()
    """Traits of the detector without which the method makes no sense."""
    uses_teacher: ClassVar[bool] = True
    """False: no teacher is made, which saves its memory."""
    learns_background: ClassVar[bool] = False
    """True: pictures without an object of the task, mixed into the batches, are worth it (``learn_background``)."""
    needs_unlabelled: ClassVar[bool] = False
    """True: the method is about images without labels (a pool); the run must have some."""
    run_defaults: ClassVar[dict[str, Any]] = {}
    """Settings of the run, by dotted key, that are on with this method unless the user says otherwise."""
    paper: ClassVar[str] = ""

    _student: Callable[[Tensor], Outputs] = PrivateAttr()
    _detector: Detector = PrivateAttr()
    _teacher: Teacher | None = PrivateAttr(default=None)
    _task: Task | None = PrivateAttr(default=None)

    @property
    def student(self) -> Callable[[Tensor], Outputs]:
        """The forward to train: the detector, inside DDP where there is one."""
        return self._student

    @property
    def detector(self) -> Detector:
        """The detector itself, for ``match`` and ``loss``."""
        return self._detector

    @property
    def teacher(self) -> Teacher | None:
        """The frozen detector of the task before (``teacher.detector``), or None in the first task.

        Call it for its outputs. Its weights are its own: by default (``train.teacher=folded``) batch normalisation is
        folded into its convolutions, so few of them have an equal twin in the student. A method that reads, mixes or
        averages them by name overrides ``exact_teacher``; without it ``state_dict``, ``parameters`` and
        ``named_parameters`` of the teacher raise CiodError.
        """
        return self._teacher

    @property
    def old(self) -> int:
        """How many classes the teacher knows: labels ``0 .. old - 1``."""
        return 0 if self._task is None else len(self._task.old_classes)

    def attach(
        self, student: Callable[[Tensor], Outputs], detector: Detector, teacher: Teacher | Detector | None
    ) -> None:
        """Called by the engine before ``begin_task``; again with the student inside DDP where there are processes."""
        self._student, self._detector = student, detector
        self._teacher = Teacher(teacher) if isinstance(teacher, Detector) else teacher

    def grow(self, detector: Detector, names: Sequence[str], taught: Sequence[str] = ()) -> None:
        """Makes room for new classes, before ``attach``. ``taught``: known classes that this task teaches further."""
        detector.grow(names)

    def learn_background(self, pictures: Index) -> None:
        """Before ``begin_task``: pictures without an object of the task, which are also mixed into its batches."""

    def begin_task(self, task: Task) -> None:
        """Before a task's first step: freeze parts, build buffers. Call super."""
        self._task = task

    def draw(self, images: Index, workers: int = 0) -> Index | None:
        """Before a task's first step: ``images`` with boxes of old classes that the method adds to them once, for all
        steps; None: it adds none. In them the old classes then count as drawn. The same in every process.

        Args:
            images: the task's, and what is mixed into them.
            workers: loader processes it may use.
        """
        return None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch; their sum is what is minimised. Every rank returns the same names."""
        outputs = self.student(batch.images)
        matches = self.detector.match(outputs, batch.targets)
        return self.detector.loss(outputs, batch.targets, matches)

    def teach(self, batch: Batch) -> Outputs:
        """The teacher's outputs for the very pixels the student sees."""
        assert self._teacher is not None
        return self._teacher(batch.images)

    def taught(self, batch: Batch, classes: int) -> Tensor:
        """[B, C] bool: the new classes in images of the task, all in exemplars, whose labels say what they know."""
        new = torch.arange(classes, device=batch.images.device) >= self.old
        if batch.source is None:
            return new.expand(len(batch.images), -1)
        return new | (batch.source != TASK)[:, None]

    def channels(self, rule: Channels, batch: Batch, outputs: Outputs, matches: Matches) -> Tensor | None:
        """``channels`` of ``Detector.loss`` by a rule: [B, C] or [B, P, C] bool, None for all.

        Args:
            matches: of the real boxes alone.
        """
        if rule == "auto":
            rule = "matched" if "objectness" in self.detector.traits else "new"
        if rule == "all":
            return None
        taught = self.taught(batch, outputs.logits.shape[2])
        if rule == "new":
            return taught
        return taught[:, None, :] | matches.positive[..., None]

    def spared(self, batch: Batch, outputs: Outputs) -> Targets:
        """The batch's boxes, which say nothing of the old classes: ``losses.supervise`` then takes no position that
        looks like an old object for background."""
        taught, known = self.taught(batch, outputs.logits.shape[2]), batch.targets.known
        return replace(batch.targets, known=taught if known is None else known & taught)

    def requires(self) -> frozenset[str]:
        """Traits these settings need: ``needs``, and what an option asks for beyond it."""
        return self.needs

    @property
    def exact_teacher(self) -> bool:
        """True: these settings read the teacher's weights, or need it as it was trained, its batch normalisation not
        folded away. The run then needs ``train.teacher=exact``, which ``run_defaults`` can set."""
        return False

    @property
    def needs_first_task(self) -> bool:
        """True: the first task is this method's own, because it trains it otherwise than fine-tuning does or gathers
        something there. ``ciod compare`` then does not share it with other methods, and ``first=`` warns or is refused.

        By default the code of a user's class decides: True where it overrides ``loss``, ``begin_task`` or another
        moment of training, unless that begins with ``if self.teacher is None: return super()…`` (or ``self.old``). A
        class sets it by ``needs_first_task: ClassVar[bool] = False``. At the end of another run's first task only
        ``begin_task`` and ``end_task`` are called, on the trained detector.
        """
        return bool(first_task.hooks(type(self)))

    def fresh(self) -> list[nn.Module]:
        """Parts that are new in this task: their batch normalisation gathers statistics, whatever train.norm keeps."""
        return []

    def before_step(self) -> None:
        """After backward and clipping, before the optimiser's step."""

    def end_task(self, task: Task) -> None:
        """After a task's last step, before it is evaluated."""

    def state(self) -> dict[str, Any]:
        """What must survive a crash and go from task to task; tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what ``state`` gave."""

    def check(self) -> list[str]:
        """Sentences about settings that contradict each other; shown with all other configuration errors."""
        return []
