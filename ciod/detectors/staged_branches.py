"""Staged detectors that can get branches: which class is on which part, the arbiter between them, growth, selection."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ciod.core.errors import CiodError
from ciod.core.types import Outputs
from ciod.detectors.layers import branch as br
from ciod.detectors.layers.arbiter import Arbiter
from ciod.detectors.layers.class_layers import ClassConv, ClassRows
from ciod.detectors.layers.maps_branch import MapsBranch
from ciod.detectors.layers.modules import Layers
from ciod.detectors.staged import StagedDetector

STRIDES = (8, 16, 32)  # of the maps that a branch reads


class StagedBranches(StagedDetector):
    """A detector with a part of its own and branches beside it. Subclasses implement ``make_branch`` and call
    ``start_parts`` when their head is made.

    Attributes:
        branches: in order of arrival.
        width: channels that the widths of a branch are derived from.
        parts: class indices of the detector itself, of each branch.
    """

    branches: Layers[br.Branch | MapsBranch]
    channel_of: Tensor  # [parts, C]: see branch.table_of
    width: int
    parts: list[list[int]]

    def make_children(self, columns: Sequence[int], inner: Sequence[int], parent: int) -> br.ChildBranch:
        """A branch of ``columns``, kinds of the class ``parent``; for detectors with the trait ``children``.

        Raises:
            CiodError: this detector does not have the trait.
        """
        raise CiodError(f"A class of a {self.settings['name']} cannot become several; only one of a YOLOX can.")

    @abstractmethod
    def make_branch(self, columns: Sequence[int], new: int, inner: Sequence[int]) -> br.Branch | MapsBranch:
        """A branch of ``columns``, the last ``new`` of which only it has; ``inner``: see ``add_branch``."""

    def start_parts(self, width: int) -> None:
        """The detector itself is the only part. ``width``: see the class."""
        self.width = width
        self.branches = Layers()
        self.parts = [list(range(self.num_classes))]
        self._index_parts()

    def scores(self, outputs: Outputs) -> Tensor:
        """[B, P, C]; with an arbiter, those of branches are multiplied by the probability that the branch is right."""
        scores = outputs.scores()
        if self.arbiter is None or not self.arbiter.on or not outputs.maps:
            return scores
        return self.arbiter.weigh(scores, outputs.boxes, outputs.maps, self.judged, first=outputs.parts[0])

    @property
    def judged(self) -> list[list[int]]:
        """Of each branch the classes whose objects the arbiter takes for the branch's: its own, and where a class
        became several, the class and all its kinds, since an object of a kind is one of the class too."""
        known = set() if self.arbiter is None else {r for r in self.arbiter.listed if r < self.num_classes}
        above = self.parents
        first = list(self.class_names)
        for i, name in enumerate(first):
            while name in above:
                name = above[name]
            first[i] = name
        return [
            [*columns, *(c for c in known - set(columns) if first[c] in {first[k] for k in columns})]
            for columns in self.parts[1:]
        ]

    @property
    def owned(self) -> Tensor:
        """[parts, C] bool: which part has a channel for which class."""
        width = self.channel_of.new_tensor([len(c) for c in self.parts])
        return self.channel_of < width[:, None]

    def add_arbiter(self, rows: int | None = None) -> Arbiter:
        """An arbiter between the branches, without statistics yet. See ``Detector.add_arbiter``."""
        nothing = 0 if rows is None else rows - self.num_classes
        self.arbiter = Arbiter(self.backbone.channels, STRIDES, self.num_classes, nothing).to(self.device)
        return self.arbiter

    def grow(self, names: Sequence[str]) -> None:
        known = self.num_classes
        super().grow(names)
        if self.arbiter is not None:
            self.arbiter.grow(len(names))
        self.parts[0] += range(known, self.num_classes)
        self._index_parts()

    def add_branch(
        self, names: Sequence[str], *, taught: Sequence[str] = (), inner: Sequence[int] | None = None
    ) -> br.Branch | MapsBranch:
        """Adds classes as a separate branch: all existing outputs stay bit-identical.

        Args:
            names: new classes.
            taught: known classes that the branch also predicts; NMS merges its boxes with the others.
            inner: channels of its bottleneck per level, 0 for none; None: ``branch.default_widths``.

        Raises:
            CiodError: a new name is already known, a taught one is not, or there are no classes.
        """
        self._check_new(names)
        columns = br.columns_of(self.class_names, names, taught)
        inner = list(inner if inner is not None else br.default_widths(self.width))
        added = self.make_branch(columns, len(names), inner)
        self._append(added, names, {"branch": len(names), "taught": [*taught], "inner": inner})
        return added

    def add_children(self, parent: str, names: Sequence[str], *, inner: Sequence[int] | None = None) -> br.ChildBranch:
        """Adds kinds of a class as a branch: they are found where the class is, in its boxes, and all existing outputs
        stay bit-identical.

        Args:
            parent: a known class. Where several parts predict it, its first part counts.
            names: new classes.
            inner: see ``add_branch``.

        Raises:
            CiodError: a new name is already known, the parent is not, or there are no names.
        """
        self._check_new(names)
        if parent not in self.class_names or not names:
            raise CiodError(f"Children need names and a known class as their parent; got {[*names]} and {parent!r}.")
        inner = list(inner if inner is not None else br.default_widths(self.width))
        columns = list(range(self.num_classes, self.num_classes + len(names)))
        added = self.make_children(columns, inner, self.class_names.index(parent))
        self._append(added, names, {"branch": len(names), "taught": [], "inner": inner, "parent": parent})
        return added

    def _append(self, added: br.Branch | MapsBranch, names: Sequence[str], step: dict[str, Any]) -> None:
        self.branches.append(added.to(self.device).train(self.training))
        self.class_names = (*self.class_names, *names)
        self.parts.append(list(added.columns))
        if self.arbiter is not None:
            self.arbiter.grow(len(names))
        self.growth.append(step)
        self._index_parts()

    def rename(self, names: Mapping[str, str]) -> None:
        super().rename(names)
        for step in self.growth:
            if "parent" in step:
                step["parent"] = names.get(step["parent"], step["parent"])

    def newest(self, outputs: Outputs) -> Outputs:
        """The positions of the branch added last."""
        return br.last(outputs, len(STRIDES))

    def class_modules(self) -> dict[str, ClassConv]:
        """The growing layers of the head; the classes of a branch are fixed."""
        return {n: m for n, m in super().class_modules().items() if n.startswith("head.")}

    def class_layers(self) -> Iterator[ClassRows]:
        for rows in super().class_layers():
            yield ClassRows(rows.name, rows.tensor, self.parts[0][rows.first])
        for b, branch in enumerate(self.branches):
            for i, level in enumerate(branch.levels):
                for rows in level.cls.rows(f"branches.{b}.levels.{i}.cls"):
                    yield ClassRows(rows.name, rows.tensor, branch.columns[rows.first])

    def _select(self, kept: list[int]) -> None:
        place = {old: new for new, old in enumerate(kept)}
        for b in self.branches:
            if not isinstance(b, br.ChildBranch) or b.parent in place:
                continue
            if staying := [self.class_names[c] for c in b.columns if c in place]:
                raise CiodError(
                    f"{self.class_names[b.parent]} cannot be removed without {', '.join(staying)}, which read its "
                    "boxes and scores; leave it out when predicting (classes=)."
                )
        for layer in self.class_modules().values():
            layer.select([i for i, c in enumerate(self.parts[0]) if c in place])
        first, growth, branches, parts = 0, [], [], [[place[c] for c in self.parts[0] if c in place]]
        numbered = iter(self.branches)
        for step in self.growth:
            size = step["branch"] if "branch" in step else step["rows"]
            left = sum(first <= c < first + size for c in kept)
            first += size
            if "branch" not in step:
                growth += [{"rows": left}] if left else []
                continue
            branch = next(numbered)
            names = {self.class_names[c] for c in kept}
            if branch.select(place):
                growth.append({**step, "branch": left, "taught": [n for n in step["taught"] if n in names]})
                branches.append(branch)
                parts.append(list(branch.columns))
        self.growth, self.parts, self.branches = growth, parts, Layers(branches)
        if self.arbiter is not None:
            self.arbiter.select(kept)
        self._index_parts(len(kept))

    def _index_parts(self, classes: int | None = None) -> None:
        table = br.table_of(self.parts, self.num_classes if classes is None else classes).to(self.device)
        self.register_buffer("channel_of", table, persistent=False)
