"""ABR: boxes of old objects are pasted into new pictures, and the teacher's attention on its regions is kept.

Paper: Liu et al., "Augmented Box Replay: Overcoming Foreground Shift for Incremental Object Detection", ICCV 2023
(Faster R-CNN). docs/methods/abr.md has the formulas and says what is certain, inferred and different.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
import torchvision
from pydantic import Field, PrivateAttr
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core.types import Batch, Targets
from ciod.detectors.rcnn import sampling
from ciod.detectors.rcnn.outputs import RoIOutputs
from ciod.methods.base.distillation import Fraction, Weight
from ciod.methods.base.regions import Judged, RegionDistillation, box_error, chosen, mean
from ciod.methods.mma import unbiased_distillation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ciod.data.index import Index
    from ciod.data.scenarios.scenario import Task

PLACES = 10  # tried for each crop; the one that covers least of the boxes is taken
CENTRE = (0.4, 0.6)  # of a mosaic, as shares of the picture
KIND, WHICH, PLACE, SHARE, MIDDLE = 11, 12, 13, 15, 17  # of ``sampling.draws``; PLACE and SHARE have one per pasted box
SMALLEST = 8.0  # side in pixels of the batch image below which a box is not kept


class ABR(RegionDistillation):
    """Boxes of old objects are pasted into new pictures; the teacher's classes and attention are distilled."""

    distillation_terms = frozenset({"distill_cls", "distill_box", "distill_attention"})
    needs_first_task: ClassVar[bool] = False  # type: ignore[assignment]  # it is fine-tuning; boxes are kept at its end
    paper: ClassVar[str] = "Augmented Box Replay, ICCV 2023"

    crops: Annotated[int, Field(ge=1)] = 2000
    """Boxes that are kept of all old classes together, equally many of each: those nearest to the mean of the class's
    features."""
    side: Annotated[int, Field(ge=16, le=256)] = 96
    """Pixels of each side of a kept box, whatever its shape. 2000 boxes of 96 pixels take 55 MB."""
    mixup: Fraction = 0.25
    """Share of the pictures into which two old boxes are blended."""
    mosaic: Fraction = 0.25
    """Share of the pictures that are replaced by four old boxes."""
    weight: Weight = 1.0
    """α: weight of the distillation of classes and boxes."""
    attention_weight: Weight = 1.0
    """β: weight of the distillation of attention."""
    gamma: Weight = 1.0
    """γ: weight of the difference of the attention itself, within that term. The authors have 5 for 19+1."""

    _pixels: Tensor = PrivateAttr(default_factory=lambda: torch.zeros(0, 3, 1, 1, dtype=torch.uint8))
    _shapes: Tensor = PrivateAttr(default_factory=lambda: torch.zeros(0, 2))  # width, height ÷ side of the batch image
    _labels: Tensor = PrivateAttr(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def check(self) -> list[str]:
        if self.mixup + self.mosaic > 1:
            return [f"method.mixup={self.mixup:g} and method.mosaic={self.mosaic:g} are shares: their sum is above 1."]
        return []

    def state(self) -> dict[str, Any]:
        return {"pixels": self._pixels, "shapes": self._shapes, "labels": self._labels}

    def load_state(self, state: dict[str, Any]) -> None:
        self._pixels, self._shapes, self._labels = state["pixels"], state["shapes"], state["labels"]

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        device = self.detector.device
        self._pixels, self._shapes, self._labels = (v.to(device) for v in (self._pixels, self._shapes, self._labels))

    # Training -----------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None or not len(self._labels):
            return super().loss(batch)
        return super().loss(self.pasted(batch))

    @torch.no_grad()
    def pasted(self, batch: Batch) -> Batch:
        """The batch with old boxes in some of its pictures. What is drawn depends on each picture's pixels alone, as in
        ``rcnn.sampling``: batches may be divided among processes, and nothing waits for the device."""
        key = sampling.keys(batch.images)
        kind = sampling.draws(key, 1, KIND)[:, 0]
        mixed, whole = kind < self.mixup, (kind >= self.mixup) & (kind < self.mixup + self.mosaic)
        which = (sampling.draws(key, 4, WHICH) * len(self._labels)).long()
        images, blended = self.blend(batch, which[:, :2], mixed, key)
        images, tiles = self.tile(images, which, whole, key)
        real = replace(batch.targets, valid=batch.targets.valid & ~whole[:, None])
        known = batch.targets.known
        labels = self._labels[which]
        old = [
            Targets(boxes, labels[:, : boxes.shape[1]], used[:, None].expand(-1, boxes.shape[1]), known=known)
            for boxes, used in ((blended, mixed), (tiles, whole))
        ]
        return replace(batch, images=images, targets=real + old[0] + old[1])

    def blend(self, batch: Batch, which: Tensor, used: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Two crops in every used picture: λ × picture + (1 - λ) × crop, λ of Beta(2, 5), where they cover least.

        Returns:
            Pictures as float32, and the boxes [B, 2, 4].
        """
        images, boxes, valid = batch.images.float(), batch.targets.boxes, batch.targets.valid
        n, size = len(images), images.shape[2]
        placed: list[Tensor] = []
        for slot in range(which.shape[1]):
            extent = (self._shapes[which[:, slot]] * size).clamp(SMALLEST, size - 1)[:, None]  # [B, 1, 2]
            corner = sampling.draws(key, 2 * PLACES, PLACE + slot).view(n, PLACES, 2) * (size - extent)
            tried = torch.cat([corner, corner + extent], 2)
            covered = bx.pairwise_iou(tried, boxes).masked_fill(~valid[:, None], 0).sum(2)
            box = tried.gather(1, covered.argmin(1)[:, None, None].expand(-1, 1, 4))
            # the second smallest of six uniform numbers has the distribution Beta(2, 5)
            share = sampling.draws(key, 6, SHARE + slot).sort(1).values[:, 1].view(-1, 1, 1, 1)
            crop, inside = self.drawn(which[:, slot], box[:, 0], size)
            images = torch.where(inside & used.view(-1, 1, 1, 1), share * images + (1 - share) * crop, images)
            boxes, valid = torch.cat([boxes, box], 1), torch.cat([valid, torch.ones_like(valid[:, :1])], 1)
            placed.append(box)
        return images, torch.cat(placed, 1)

    def tile(self, images: Tensor, which: Tensor, used: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Four crops that fill every used picture, around a random centre; and the boxes [B, 4, 4]."""
        size = images.shape[2]
        low, high = CENTRE
        x, y = (size * (low + (high - low) * sampling.draws(key, 2, MIDDLE))).unbind(1)
        none, end = torch.zeros_like(x), torch.full_like(x, size)
        corners = ((none, none, x, y), (x, none, end, y), (none, y, x, end), (x, y, end, end))
        boxes = torch.stack([torch.stack(c, 1) for c in corners], 1)
        for slot in range(4):
            crop, inside = self.drawn(which[:, slot], boxes[:, slot], size)
            images = torch.where(inside & used.view(-1, 1, 1, 1), crop, images)
        return images, boxes

    def drawn(self, which: Tensor, box: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Kept boxes [B] stretched to boxes [B, 4] of a picture: [B, 3, size, size], and the pixels inside
        [B, 1, size, size]."""
        centre = torch.arange(size, device=box.device) + 0.5
        x = (centre - box[:, :1]) / (box[:, 2:3] - box[:, :1])  # [B, size], 0..1 inside
        y = (centre - box[:, 1:2]) / (box[:, 3:] - box[:, 1:2])
        grid = torch.stack([x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], 3) * 2 - 1
        crop = F.grid_sample(self._pixels[which].float(), grid, padding_mode="border", align_corners=False)
        return crop, (grid.abs() <= 1).all(3)[:, None]

    def supervised(self, outputs: RoIOutputs, knowledge: RoIOutputs, batch: Batch) -> dict[str, Tensor]:
        """Unbiased cross-entropy: where no box is, the probability of background or any old class is trained."""
        matches = self.detector.match(outputs, batch.targets)
        taught, targets = self.taught(batch, outputs.logits.shape[2]), batch.targets
        channels = taught[:, None] | matches.positive[..., None]
        # Boxes are regions, too: of these a class counts that counts at any proposal, and pasted ones have old classes.
        # The last proposal is the least probable, or padding.
        old = (targets.valid & ~taught.gather(1, targets.labels)).any(1)
        last = torch.arange(channels.shape[1], device=old.device) == channels.shape[1] - 1
        channels = channels | (old[:, None] & last)[..., None]
        return self.detector.loss(outputs, targets, matches, channels=channels)

    def distill(
        self, outputs: RoIOutputs, knowledge: RoIOutputs, mine: Judged, theirs: Judged, valid: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        at, _ = chosen(knowledge)
        regions = bx.gather_rows(knowledge.proposals, at)
        pooled = [self.rcnn.pool(o.features, regions).unflatten(0, at.shape) for o in (outputs, knowledge)]
        return {
            "distill_cls": self.weight * unbiased_distillation(mine.logits, theirs.logits, valid),
            "distill_box": self.weight * box_error(mine, theirs, valid, self.old),
            "distill_attention": self.attention_weight * attention_error(pooled[0], pooled[1], valid, self.gamma),
        }

    # The kept boxes ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def end_task(self, task: Task) -> None:
        """Keeps the boxes nearest to the mean of their class, and fewer of each earlier class."""
        super().end_task(task)
        if not len(task.train.labels):
            return
        old, seen = len(task.old_classes), len(task.seen_classes)
        quota = max(1, self.crops // max(1, seen))
        of_each = [torch.nonzero(self._labels == c)[:quota, 0] for c in range(old)]
        rows = torch.cat([torch.zeros(0, dtype=torch.long, device=self.detector.device), *of_each])
        places, labels, features = self.seen(task.train)
        nearest = [rows[:0]]
        for c in range(old, seen):
            own = torch.nonzero(labels == c)[:, 0]
            apart = (features[own] - features[own].mean(0)).norm(dim=1)
            nearest.append(own[apart.argsort()[:quota]])
        new = torch.cat(nearest)
        pixels, shapes = self.cut(task.train, places[new])
        before = self._pixels[rows] if len(rows) else pixels[:0]
        self._pixels = torch.cat([before, pixels])
        self._shapes = torch.cat([self._shapes[rows], shapes])
        self._labels = torch.cat([self._labels[rows], labels[new]])

    def seen(self, images: Index) -> tuple[Tensor, Tensor, Tensor]:
        """For every box: its picture and its number in it [n, 2], its class [n], and the mean of its maps [n, F]."""
        places, labels, features = [], [], []
        training = self.detector.training
        self.detector.eval()
        for batch in self.plain(images):
            targets = batch.targets
            image, number = torch.nonzero(targets.valid, as_tuple=True)
            pooled = self.rcnn.pool(self.detector(batch.images).features, targets.boxes).mean((2, 3))
            places.append(torch.stack([batch.index.to(image.device)[image], number], 1))
            labels.append(targets.labels[image, number])
            features.append(pooled.float().unflatten(0, targets.valid.shape)[image, number])
        self.detector.train(training)
        return torch.cat(places), torch.cat(labels), torch.cat(features)

    def cut(self, images: Index, places: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes by picture and number there [n, 2]: pixels [n, 3, side, side], and shapes [n, 2]."""
        rows, where = places[:, 0].unique(return_inverse=True)
        pixels = torch.zeros(len(places), 3, self.side, self.side, dtype=torch.uint8, device=places.device)
        shapes = torch.zeros(len(places), 2, device=places.device)
        for batch in self.plain(images.select(rows.cpu().numpy())):
            mine = torch.nonzero(torch.isin(where, batch.index.to(where.device)))[:, 0]
            image = (where[mine][:, None] == batch.index.to(where.device)).int().argmax(1)
            boxes = batch.targets.boxes[image, places[mine, 1]]
            rois = torch.cat([image[:, None].float(), boxes], 1)
            crop = torchvision.ops.roi_align(batch.images.float(), rois, self.side, aligned=True)
            pixels[mine] = crop.round().clamp(0, 255).to(torch.uint8)
            shapes[mine] = (boxes[:, 2:] - boxes[:, :2]) / batch.images.shape[2]
        return pixels, shapes

    def plain(self, images: Index) -> Iterator[Batch]:
        """Pictures without augmentation, as the detector takes them."""
        from ciod.data.loader import batches, eval_loader

        given = self.detector.input
        loader = eval_loader(images, given.size, given.fill, batch=8, workers=0, pin=False, place=given.place)
        for batch in batches(loader):
            yield batch.to(self.detector.device)


def attention_error(mine: Tensor, theirs: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """How far the maps of regions are from the teacher's where it looks, and how far the attention itself is.

    A = places × softmax over the places of the mean of squared channels. Mean over the real regions of
    mean((F_S √A_T - F_T √A_T)²) + γ mean |A_S - A_T|.

    Args:
        mine, theirs: [B, R, F, h, w] of student and teacher.
        valid: [B, R] bool.
    """
    student, teacher = (attention(maps) for maps in (mine, theirs))
    apart = ((mine - theirs).square() * teacher[:, :, None]).mean((2, 3, 4))
    return mean(apart + gamma * (student - teacher).abs().mean((2, 3)), valid)


def attention(maps: Tensor) -> Tensor:
    """[B, R, F, h, w] → [B, R, h, w] with a mean of 1."""
    energy = maps.float().square().mean(2)
    share = energy.flatten(2).softmax(2) * (energy.shape[2] * energy.shape[3])
    return share.view_as(energy)
