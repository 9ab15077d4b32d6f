"""Detectors in parts: a part of their own, and branches beside it with further classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ciod.core.errors import CiodError
from ciod.core.types import Outputs
from ciod.detectors.branched import Branched
from ciod.detectors.layers import branch as br
from ciod.detectors.layers.arbiter import Arbiter
from ciod.detectors.layers.class_layers import ClassConv
from ciod.detectors.layers.modules import Layers


class Parted(Branched):
    """Which class is on which part, the arbiter between the branches, growth, selection. Subclasses call
    ``start_parts`` when their head is made; a branch has ``columns`` and ``select`` as ``branch.Branch`` does.

    Attributes:
        branches: in order of arrival.
        width: see ``Branched``.
        parts: class indices of the detector itself, of each branch.
    """

    branches_only: ClassVar[bool] = False
    """Whether only further branches can be trained once there is one."""

    branches: Layers[Any]
    parts: list[list[int]]
    channel_of: Tensor  # [parts, C]: see branch.table_of

    @abstractmethod
    def judged_maps(self) -> tuple[Sequence[int], Sequence[int]]:
        """Channels and strides of the maps that an arbiter reads."""

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
        """Per branch, the classes that the arbiter counts as the branch's: its own, and if a class became several, the
        class and all its kinds, since an object of a kind is one of the class too."""
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
        self.arbiter = Arbiter(*self.judged_maps(), self.num_classes, nothing).to(self.device)
        return self.arbiter

    def grow(self, names: Sequence[str]) -> None:
        """Adds classes to the detector itself. See ``Detector.grow``.

        Raises:
            CiodError: there are branches, and rows beside them could not be trained (``branches_only``).
        """
        if self.branches_only and names and len(self.branches):
            raise CiodError(
                f"{self.settings['name']} has branches already, so classes can be added only on a further branch: use "
                "method=freeze_branch."
            )
        known = self.num_classes
        super().grow(names)
        if self.arbiter is not None:
            self.arbiter.grow(len(names))
        self.parts[0] += range(known, self.num_classes)
        self._index_parts()

    def _append(self, added: Any, names: Sequence[str], step: dict[str, Any]) -> None:
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

    def class_modules(self) -> dict[str, ClassConv]:
        """The growing layers of the head; the classes of a branch are fixed."""
        return {n: m for n, m in super().class_modules().items() if not n.startswith("branches.")}

    def _select(self, kept: list[int]) -> None:
        place = {old: new for new, old in enumerate(kept)}
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
