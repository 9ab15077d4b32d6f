"""Staged detectors that can get branches, which read the maps of their backbone, neck and head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ciod.core.errors import CiodError
from ciod.core.types import Outputs
from ciod.detectors.layers import branch as br
from ciod.detectors.layers.class_layers import ClassRows
from ciod.detectors.layers.maps_branch import MapsBranch
from ciod.detectors.layers.modules import Layers
from ciod.detectors.layers.refiner import HIDDEN, Refiner, corrected
from ciod.detectors.packing import Packs, Shape
from ciod.detectors.parted import Parted
from ciod.detectors.staged import StagedDetector

STRIDES = (8, 16, 32)  # of the maps that a branch reads


class StagedBranches(StagedDetector, Parted, Packs):
    """Branches of a staged detector. Subclasses implement ``make_branch``, ``towers`` and ``of_branch``."""

    branches: Layers[br.Branch | MapsBranch]  # type: ignore[assignment]
    second_stage = True
    _shapes: tuple[int, list[list[Shape]]] = (0, [])  # size of the images, and shapes of the maps of each level

    @abstractmethod
    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the class layers and the box layers of the head take, per level."""

    @abstractmethod
    def of_branch(self, i: int, read: Sequence[Sequence[Tensor]]) -> Outputs:
        """Outputs of a branch, with only its own classes, from ``read_maps``."""

    def read_maps(
        self, maps: Sequence[Tensor], features: Sequence[Tensor], towers: tuple[Sequence[Tensor], Sequence[Tensor]]
    ) -> list[list[Tensor]]:
        """What a branch reads at strides 8, 16 and 32: the backbone's map, the neck's, and those of both towers."""
        return [list(level) for level in zip(maps, features, *towers, strict=False)]

    # Training from kept maps --------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Outputs:
        """As ``StagedDetector.forward``; of rows of ``packed`` the positions of the newest branch alone."""
        if images.ndim != 2:
            return super().forward(images)
        maps = iter(self.unpacked(images))
        return self.of_newest([[next(maps) for _ in level] for level in self._level_shapes()])

    def of_newest(self, read: Sequence[Sequence[Tensor]]) -> Outputs:
        """Outputs of the branch added last, with the channels of all classes."""
        newest = len(self.branches) - 1
        return br.scatter_classes(self.of_branch(newest, read), self.channel_of[newest + 1])

    def branch_maps(self, images: Tensor) -> list[Tensor]:
        maps, features = self.extract(images.to(self.device))
        return [m for level in self.read_maps(maps, features, self.towers(features)) for m in level]

    def map_shapes(self) -> list[Shape]:
        return [shape for level in self._level_shapes() for shape in level]

    @torch.no_grad()
    def _level_shapes(self) -> list[list[Shape]]:
        size = self.input.size
        if self._shapes[0] != size:
            modes = [(m, m.training) for m in self.modules()]
            self.eval()  # so that no statistics change
            maps, features = self.extract(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=self.device))
            read = self.read_maps(maps, features, self.towers(features))
            for module, mode in modes:
                module.training = mode
            self._shapes = size, [[(m.shape[2], m.shape[3], m.shape[1]) for m in level] for level in read]
        return self._shapes[1]

    def make_children(
        self, columns: Sequence[int], inner: Sequence[int], parent: int, refiner: Refiner | None
    ) -> br.ChildBranch:
        """A branch of ``columns``, kinds of the class ``parent``; for detectors with the trait ``children``.

        Raises:
            CiodError: this detector does not have the trait.
        """
        raise CiodError(f"A class of a {self.settings['name']} cannot become several; only one of a YOLOX can.")

    @abstractmethod
    def make_branch(
        self, columns: Sequence[int], new: int, inner: Sequence[int], refiner: Refiner | None
    ) -> br.Branch | MapsBranch:
        """A branch of ``columns``, the last ``new`` of which only it has; ``inner``: see ``add_branch``."""

    def corrected(self, i: int, part: Outputs, early: Tensor) -> Outputs:
        """The positions of branch ``i``. In eval mode its second stage corrects them; in train mode it does not, but
        those of the newest branch get what it learns from.

        Args:
            early: [B, F, h, w], the backbone's map of the lowest stride.
        """
        newest = i == len(self.branches) - 1
        return corrected(self.branches[i].refiner, part, early, training=self.training, learns=newest)

    def judged_maps(self) -> tuple[Sequence[int], Sequence[int]]:
        """Those of the backbone."""
        return self.backbone.channels, STRIDES

    def add_branch(
        self,
        names: Sequence[str],
        *,
        taught: Sequence[str] = (),
        inner: Sequence[int] | None = None,
        refine: bool | int = True,
        rescore: bool = True,
    ) -> br.Branch | MapsBranch:
        """Adds classes as a separate branch: all existing outputs stay bit-identical.

        Args:
            names: new classes.
            taught: known classes that the branch also predicts; NMS merges its boxes with the others.
            inner: channels of its bottleneck per level, 0 for none; None: ``branch.default_widths``.
            refine: whether there is a second stage, which corrects its boxes (``refiner.Refiner``); a number: its
                hidden units.
            rescore: whether the second stage corrects the scores of its classes too, if there are several.

        Raises:
            CiodError: a new name is already known, a taught one is not, or there are no classes.
        """
        self._check_new(names)
        columns = br.columns_of(self.class_names, names, taught)
        inner = list(inner if inner is not None else br.default_widths(self.width))
        hidden = HIDDEN if refine is True else int(refine)
        rescore = rescore and hidden > 0 and len(columns) > 1
        refiner = self._second_stage(hidden, br.row_blocks(len(columns), len(names)) if rescore else ())
        added = self.make_branch(columns, len(names), inner, refiner)
        step = {"branch": len(names), "taught": [*taught], "inner": inner}
        step |= {"refine": hidden} if hidden else {}
        self._append(added, names, step | ({"rescore": True} if rescore else {}))
        return added

    def _second_stage(self, hidden: int, blocks: Sequence[int], *, boxes: bool = True) -> Refiner | None:
        """See ``Refiner``; None without hidden units."""
        channels, strides = self.judged_maps()
        return Refiner(channels[0], strides[0], hidden, blocks, boxes=boxes) if hidden else None

    def add_children(
        self, parent: str, names: Sequence[str], *, inner: Sequence[int] | None = None, refine: bool | int = True
    ) -> br.ChildBranch:
        """Adds kinds of a class as a branch: they are found where the class is, in its boxes, and all existing outputs
        stay bit-identical.

        Args:
            parent: a known class. Where several parts predict it, its first part counts.
            names: new classes.
            inner, refine: see ``add_branch``.

        Raises:
            CiodError: a new name is already known, the parent is not, or there are no names.
        """
        self._check_new(names)
        if parent not in self.class_names or not names:
            raise CiodError(f"Children need names and a known class as their parent; got {[*names]} and {parent!r}.")
        inner = list(inner if inner is not None else br.default_widths(self.width))
        columns = list(range(self.num_classes, self.num_classes + len(names)))
        hidden = HIDDEN if refine is True else int(refine)
        refiner = self._second_stage(hidden, [len(names)], boxes=False)
        added = self.make_children(columns, inner, self.class_names.index(parent), refiner)
        step = {"branch": len(names), "taught": [], "inner": inner, "parent": parent}
        self._append(added, names, step | ({"refine": hidden, "rescore": True} if hidden else {}))
        return added

    def newest(self, outputs: Outputs) -> Outputs:
        """The positions of the branch added last."""
        return br.last(outputs, len(STRIDES))

    def class_layers(self) -> Iterator[ClassRows]:
        for rows in super().class_layers():
            yield ClassRows(rows.name, rows.tensor, self.parts[0][rows.first])
        for b, branch in enumerate(self.branches):
            for i, level in enumerate(branch.levels):
                for rows in level.cls.rows(f"branches.{b}.levels.{i}.cls"):
                    yield ClassRows(rows.name, rows.tensor, branch.columns[rows.first])
            if branch.refiner is not None:
                for rows in branch.refiner.cls.rows(f"branches.{b}.refiner.cls"):
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
        super()._select(kept)
