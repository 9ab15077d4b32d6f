"""The contract of a method. The base class is plain fine-tuning; a subclass implements a paper."""

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
"""Class channels that the real boxes of a task supervise. Labelled exemplars supervise all channels.

- ``new``: only the new classes (ERD, YOLO LwF). The images contain unlabelled old objects, so old channels are not
  trained.
- ``matched``: the new classes everywhere, and all classes at positions matched with a real box, because a box of a new
  class shows no unlabelled old object.
- ``auto``: ``matched`` on a detector with objectness, else ``new``. With objectness, classes are trained only at
  matches, never at an unlabelled old object. ``new`` would leave old rows high on new objects that look similar, and
  a detector with one label per position would then label them as old. If nothing else constrains old-class logits,
  ``matched`` drives them to zero.
- ``all``: every class, at every position of the detector's loss.
"""


class Method(BaseModel):
    """Base of every method: its fields are the settings, with the paper's defaults; ``loss`` is the method.

    The engine calls ``begin_task``, then ``loss`` for every batch, then ``end_task``. It owns backward, clipping,
    the optimiser, AMP and EMA; a method never does. On the first task there is no teacher.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, arbitrary_types_allowed=True)

    needs: ClassVar[frozenset[str]] = frozenset()
    """Traits that the detector must have."""
    uses_teacher: ClassVar[bool] = True
    """False: no teacher is made, which saves its memory."""
    learns_background: ClassVar[bool] = False
    """True: the method uses pictures without an object of the task, mixed into the batches (``learn_background``)."""
    needs_unlabelled: ClassVar[bool] = False
    """True: the method needs images without labels (a pool)."""
    distillation_terms: ClassVar[frozenset[str]] = frozenset()
    """Names of the losses in ``loss`` that hold the student near its teacher. If all of them are 0 for an epoch, the
    run warns that nothing is taught. The report draws them in a separate colour."""
    run_defaults: ClassVar[dict[str, Any]] = {}
    """Defaults of this method for settings of the run, by dotted key; the user can override them."""
    paper: ClassVar[str] = ""

    _student: Callable[[Tensor], Outputs] = PrivateAttr()
    _detector: Detector = PrivateAttr()
    _teacher: Teacher | None = PrivateAttr(default=None)
    _task: Task | None = PrivateAttr(default=None)
    _again: Tensor | None = PrivateAttr(default=None)  # [old] bool: old classes that the task teaches again

    @property
    def student(self) -> Callable[[Tensor], Outputs]:
        """The module to train: the detector, wrapped in DDP if there are several processes."""
        return self._student

    @property
    def detector(self) -> Detector:
        """The detector itself, for ``match`` and ``loss``."""
        return self._detector

    @property
    def teacher(self) -> Teacher | None:
        """The frozen detector of the previous task (``teacher.detector``), or None in the first task.

        Call it for its outputs. Its weights differ from the student's: by default (``train.teacher=folded``) batch
        normalisation is folded into its convolutions, so few weights have an equal one in the student. A method that
        reads, mixes or averages them by name overrides ``exact_teacher``; without it ``state_dict``, ``parameters``
        and ``named_parameters`` of the teacher raise CiodError.
        """
        return self._teacher

    @property
    def old(self) -> int:
        """Number of classes of the teacher: labels ``0 .. old - 1``."""
        return 0 if self._task is None else len(self._task.old_classes)

    def attach(
        self, student: Callable[[Tensor], Outputs], detector: Detector, teacher: Teacher | Detector | None
    ) -> None:
        """The engine calls it before ``begin_task``, and again with the student wrapped in DDP."""
        self._student, self._detector = student, detector
        self._teacher = Teacher(teacher) if isinstance(teacher, Detector) else teacher

    def grow(self, detector: Detector, names: Sequence[str], taught: Sequence[str] = ()) -> None:
        """Adds new classes to the detector, before ``attach``. ``taught``: known classes that are trained further."""
        detector.grow(names)

    def learn_background(self, pictures: Index) -> None:
        """Before ``begin_task``: pictures without an object of the task, which are also mixed into its batches."""

    def begin_task(self, task: Task) -> None:
        """Before a task's first step: freeze parts, build buffers. Call super."""
        self._task = task
        again = [n in task.repeated_classes for n in task.old_classes]
        self._again = torch.tensor(again, device=self._detector.device) if any(again) else None

    def draw(self, images: Index, workers: int = 0) -> Index | None:
        """Before a task's first step: ``images`` with boxes of old classes that the method adds once, for all steps;
        None: it adds none. The old classes then count as labelled in these images. The same in every process.

        Args:
            images: those of the task, and those mixed into them.
            workers: number of loader processes it may use.
        """
        return None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch; their sum is minimised. Every rank returns the same names."""
        outputs = self.student(batch.images)
        matches = self.detector.match(outputs, batch.targets)
        return self.detector.loss(outputs, batch.targets, matches)

    def teach(self, batch: Batch) -> Outputs:
        """The teacher's outputs for the same pixels that the student sees."""
        assert self._teacher is not None
        return self._teacher(batch.images)

    def taught(self, batch: Batch, classes: int) -> Tensor:
        """[B, C] bool: the classes that the task teaches in its images (the new ones, and old ones that it repeats),
        all classes in exemplars, whose ``known`` limits them."""
        new = torch.arange(classes, device=batch.images.device) >= self.old
        if self._again is not None:
            new[: self.old] |= self._again
        if batch.source is None:
            return new.expand(len(batch.images), -1)
        return new | (batch.source != TASK)[:, None]

    def channels(self, rule: Channels, batch: Batch, outputs: Outputs, matches: Matches) -> Tensor | None:
        """``channels`` of ``Detector.loss`` by a rule: [B, C] or [B, P, C] bool, None for all.

        Args:
            matches: only those of the real boxes.
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
        """The boxes of the batch, marked as incomplete for the old classes: ``losses.supervise`` then uses no position
        that looks like an old object as background."""
        taught, known = self.taught(batch, outputs.logits.shape[2]), batch.targets.known
        return replace(batch.targets, known=taught if known is None else known & taught)

    def requires(self) -> frozenset[str]:
        """Traits that these settings need: ``needs``, and those of single options."""
        return self.needs

    @property
    def exact_teacher(self) -> bool:
        """True: these settings read the teacher's weights, or need it as trained, without folded batch normalisation.
        The run then needs ``train.teacher=exact``, which ``run_defaults`` can set."""
        return False

    @property
    def cannot_repeat(self) -> str | None:
        """Why these settings cannot teach a class in a second task, on other images (docs/protocols.md); None: they
        can."""
        return None

    @property
    def needs_first_task(self) -> bool:
        """True: this method needs its own first task, because it trains it differently from fine-tuning or collects
        data there. ``ciod compare`` then does not share it with other methods, and ``first=`` is refused.

        By default the code of a user's class decides: True if it overrides ``loss``, ``begin_task`` or another hook of
        training, unless that begins with ``if self.teacher is None: return super()…`` (or ``self.old``). A class sets
        it by ``needs_first_task: ClassVar[bool] = False``. At the end of another run's first task only ``begin_task``
        and ``end_task`` are called, on the trained detector.
        """
        return bool(first_task.hooks(type(self)))

    def fresh(self) -> list[nn.Module]:
        """New parts of this task: their batch normalisation updates its statistics even if train.norm freezes the
        others."""
        return []

    def before_step(self) -> None:
        """After backward and clipping, before the optimiser's step."""

    def end_task(self, task: Task) -> None:
        """After a task's last step, before it is evaluated."""

    def state(self) -> dict[str, Any]:
        """State that must survive a crash and is kept from task to task; tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what ``state`` returned."""

    def check(self) -> list[str]:
        """Messages about contradictory settings; shown together with all other configuration errors."""
        return []
