"""Branches for dense detectors whose head is not YOLOX's: the branch is a small YOLOX head on their maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ciod.core import losses as L
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.assigners.sim_ota import sim_ota
from ciod.detectors.layers import branch as br
from ciod.detectors.layers.maps_branch import Channels, MapsBranch
from ciod.detectors.layers.refiner import Refiner
from ciod.detectors.staged_branches import STRIDES, StagedBranches
from ciod.detectors.yolox import YOLOX, assemble, loss_of


class MapsBranches(StagedBranches):
    """A dense detector with a head of its own, and branches that predict as YOLOX does.

    Its own positions and those of a branch differ: in number, in how they are matched and in their losses. Only the
    newest branch can be trained, so in train mode a detector with branches computes that one alone.
    """

    branches_only = True

    @abstractmethod
    def own(self, images: Tensor, features: list[Tensor], towers: tuple[list[Tensor], list[Tensor]]) -> Outputs:
        """The positions of the detector itself.

        Args:
            images: [B, 3, H, W], only for their shape and device.
            features: the neck's maps.
            towers: as the method of that name returns them.
        """

    # Forward ------------------------------------------------------------------------------------------------------

    def respond(self, images: Tensor, maps: list[Tensor], features: list[Tensor]) -> Outputs:
        """In train mode the positions of the newest branch alone, if there are branches."""
        towers = self.towers(features)
        if not len(self.branches):
            return self.own(images, features, towers)
        read = self.read_maps(maps, features, towers)
        if self.training:
            return self.of_newest(read)
        own = self.own(images, features, towers)
        if own.objectness is None:  # 1 to the last bit of a float32: the scores stay those of before
            own = replace(own, objectness=own.boxes.new_full(own.boxes.shape[:2], -br.OFF))
        if self.arbiter is not None:
            own = replace(own, maps=maps)
        parts = [own, *(self.of_branch(i, read) for i in range(len(self.branches)))]
        return br.append([br.scatter_classes(p, row) for p, row in zip(parts, self.channel_of, strict=True)])

    def separate(self, images: Tensor) -> tuple[list[Outputs], list[Tensor]]:
        """Outputs of the detector itself and of each branch, with only their own classes, and the backbone's maps."""
        maps, features = self.extract(images)
        towers = self.towers(features)
        read = self.read_maps(maps, features, towers)
        branches = [self.of_branch(i, read) for i in range(len(self.branches))]
        return [self.own(images, features, towers), *branches], maps

    def of_branch(self, i: int, read: Sequence[Sequence[Tensor]]) -> Outputs:
        branch = self.branches[i]
        assert isinstance(branch, MapsBranch)
        return self.corrected(i, assemble(*branch(read), strides=branch.strides), read[0][0])

    # Training of the newest branch --------------------------------------------------------------------------------

    def match_branch(self, outputs: Outputs, targets: Targets) -> Matches:
        """SimOTA on the newest branch, with the targets of its classes."""
        before = outputs.logits.shape[1] - self.newest(outputs).logits.shape[1]
        found = sim_ota(self.newest(outputs), br.only(targets, self.channel_of[-1] < len(self.parts[-1])))
        if not before:
            return found
        positive = torch.nn.functional.pad(found.positive, (before, 0))
        return replace(found, position=found.position + before, positive=positive)

    def in_loss(
        self, outputs: Outputs, matches: Matches, channels: Tensor | None
    ) -> tuple[Outputs, Matches, Tensor | None]:
        """With branches: the newest, because nothing else is trained."""
        if not len(self.branches):
            return outputs, matches, channels
        newest = self.newest(outputs)
        before = outputs.logits.shape[1] - newest.logits.shape[1]
        if before:
            # Unused slots are at position 0 of the branch.
            position = (matches.position - before).clamp(min=0)
            matches = replace(matches, position=position, positive=matches.positive[:, before:])
            if channels is not None and channels.ndim == 3:
                channels = channels[:, before:]
        return newest, matches, channels

    def losses_of_branch(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """YOLOX's losses on the newest branch. See ``Detector.losses``."""
        refiner = self.branches[-1].refiner
        return loss_of(outputs, targets, matches, supervision, YOLOX.box_weight, refiner, self.channel_of[-1])

    @torch.no_grad()
    def observe(self, images: Tensor) -> None:
        """Measures the maps that the newest branch reads, on pictures; from then on it reads them standardised.

        Args:
            images: [n, 3, size, size] RGB 0..255; some dozens.
        """
        branch = self.branches[-1]
        assert isinstance(branch, MapsBranch)
        sums: list[list[list[Tensor]]] = []
        for chunk in images.split(8):
            maps, features = self.extract(chunk.to(self.device))
            read = self.read_maps(maps, features, self.towers(features))
            sums.append([[_sums(m) for m in level] for level in read])
        for level, of_level in zip(branch.levels, zip(*sums, strict=True), strict=True):
            for standard, of_map in zip(level.standards, zip(*of_level, strict=True), strict=True):
                total, squares, count = torch.stack(of_map).sum(0)
                mean = total / count
                deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
                standard.measured(mean.float(), deviation.float())

    # Classes ------------------------------------------------------------------------------------------------------

    def make_branch(
        self, columns: Sequence[int], new: int, inner: Sequence[int], refiner: Refiner | None
    ) -> MapsBranch:
        towers = (self.width, self.width)
        levels = [Channels(s, c, self.width, towers) for s, c in zip(STRIDES, self.backbone.channels, strict=True)]
        return MapsBranch(levels, columns, new, inner, refiner)


def _sums(m: Tensor) -> Tensor:
    """[B, F, h, w] → [3, F] float64: sum, sum of squares and count of each channel."""
    rows = m.double().transpose(0, 1).flatten(1)
    return torch.stack([rows.sum(1), rows.square().sum(1), torch.full_like(rows[:, 0], rows.shape[1])])
