"""New classes get a separate branch on the frozen detector: old outputs stay bit-identical."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from ciod.core.types import Batch
from ciod.data.index import Index
from ciod.data.scenarios.scenario import Task
from ciod.detectors import statistics
from ciod.detectors.base import Detector
from ciod.detectors.branched import Branched, has_branches
from ciod.methods.base.method import Method

Width = Annotated[int, Field(ge=0)]


class FreezeBranch(Method):
    """Freezes the old detector; new classes get a separate small head per level."""

    needs: ClassVar[frozenset[str]] = frozenset({"branches"})
    uses_teacher: ClassVar[bool] = False
    learns_background: ClassVar[bool] = True

    inner: tuple[Width, Width, Width] | None = None
    """Channels of the branch's bottleneck at strides 8, 16 and 32; 0: no bottleneck. None: 1/10, 3/8 and 5/8
    of the head's. ``ciod extend`` leaves out stride 8 if the new objects are large."""

    _background: list[Index] = PrivateAttr(default_factory=list)

    @property
    def _branched(self) -> Branched:
        """The detector; because of ``needs`` it has branches."""
        assert has_branches(self.detector)
        return self.detector

    def learn_background(self, pictures: Index) -> None:
        """Keeps them for the arbiter's statistics."""
        self._background.append(pictures)

    def grow(self, detector: Detector, names: Sequence[str], taught: Sequence[str] = ()) -> None:
        """The first task's classes get rows, all later ones a branch."""
        if detector.num_classes and (names or taught):
            assert has_branches(detector)
            detector.add_branch(names, taught=taught, inner=self.inner)
        else:
            detector.grow(names)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if len(self._branched.branches):
            statistics.standardise(self._branched, task.train)
            self.detector.requires_grad_(False)
            self._branched.branches[-1].requires_grad_(True)

    def fresh(self) -> list[nn.Module]:
        """The branch of this task, whose batch normalisation has no statistics yet."""
        branches = self._branched.branches
        return [branches[-1]] if len(branches) else []

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The detector's own losses on the branch's positions. Only the branch is trained, so only it is computed."""
        if not len(self._branched.branches):
            return super().loss(batch)
        outputs = self._branched.newest(self.student(batch.images))
        matches = self.detector.match(outputs, batch.targets)
        return self.detector.loss(outputs, batch.targets, matches)

    def end_task(self, task: Task) -> None:
        """Statistics of the task's objects, for the arbiter between the branches."""
        if len(self._branched.branches):
            statistics.gather(self._branched, task.train, without=self._background)
