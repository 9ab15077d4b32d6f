"""A plain PyTorch training loop for YOLOX: the honest baseline of ``benchmarks.accuracy``.

Written as one would write it in an afternoon: pictures are decoded with Pillow, resized and flipped; losses are the
published ones (Ge et al. 2021, YOLOX: SimOTA, IoU-weighted class targets, IoU loss × 5, objectness everywhere), image
by image; SGD with Nesterov momentum, warm-up, cosine and averaged weights, as in the paper's recipe. Only the network
and the evaluation are ciod's, so that all rows of the benchmark start from the same weights and are scored alike.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.reference import assign, overlap_of
from ciod.core.types import Outputs
from ciod.data.index import Index
from ciod.detectors.base import Detector

LR_PER_IMAGE = 0.01 / 64  # the paper's learning rate, for each image of the batch
SCALES = (0.5, 1.5)  # of the picture against the batch image


class Pictures(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Decoded pictures [3, S, S], boxes [n, 4] in pixels of the batch image, labels [n]; flipped and scaled at random.

    Args:
        size: side of the batch image in pixels.
    """

    def __init__(self, index: Index, size: int, fill: float):
        self.index, self.size, self.fill = index, size, round(fill)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        with Image.open(self.index.files[i]) as file:
            picture = file.convert("RGB")
        rows = self.index.of_image(i)
        boxes, labels = self.index.boxes[rows], self.index.labels[rows]
        scale = self.size / max(picture.size) * float(torch.empty(()).uniform_(*SCALES))
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BILINEAR)
        boxes = boxes * scale
        if torch.rand(()) < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes[:, 0::2] = picture.width - boxes[:, 2::-2]
        left, top = (round(float(torch.rand(())) * (self.size - side)) for side in picture.size)
        canvas = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
        canvas.paste(picture, (left, top))
        moved = (boxes + np.array([left, top, left, top], np.float32)).clip(0, self.size)
        area, before = np.prod(moved[:, 2:] - moved[:, :2], 1), np.prod(boxes[:, 2:] - boxes[:, :2], 1)
        kept = area > 0.3 * before
        image = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)
        return image, torch.from_numpy(moved[kept]), torch.from_numpy(np.asarray(labels[kept], np.int64))


def collate(items: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    images, boxes, labels = zip(*items, strict=True)
    return torch.stack(images), list(boxes), list(labels)


def loss(outputs: Outputs, boxes: list[Tensor], labels: list[Tensor]) -> Tensor:
    """YOLOX's loss, as a loop over images; divided by the number of matched positions in the batch."""
    assert outputs.objectness is not None
    total, matches = torch.zeros(()), 0
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        position, target, overlap = assign(outputs, i, box, label)
        hot = torch.zeros_like(outputs.objectness[i])
        hot[position] = 1
        total = total + F.binary_cross_entropy_with_logits(outputs.objectness[i], hot, reduction="sum")
        if not len(position):
            continue
        matches += len(position)
        logits = outputs.logits[i, position]
        wanted = F.one_hot(label[target], logits.shape[1]) * overlap[:, None]
        total = total + F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        total = total + 5 * (1 - overlap_of(outputs.boxes[i, position], box[target]).square()).sum()
    return total / max(1, matches)


def groups(model: nn.Module) -> list[dict[str, object]]:
    """Weights with weight decay; biases and normalisation without."""
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1 and not n.endswith("bias")]
    chosen = {id(p) for p in decayed}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]


def train(
    detector: Detector,
    index: Index,
    *,
    epochs: int,
    batch: int,
    seed: int,
    after_epoch: Callable[[int, Detector], None],
) -> None:
    """Trains ``detector`` in place.

    Args:
        after_epoch: called with the number of finished epochs and a model that has the averaged weights.
    """
    torch.manual_seed(seed)
    pictures = Pictures(index, detector.input.size, detector.input.fill)
    loader = DataLoader(pictures, batch, shuffle=True, drop_last=True, collate_fn=collate)
    lr = LR_PER_IMAGE * batch
    optimizer = torch.optim.SGD(groups(detector), lr=lr, momentum=0.9, nesterov=True)  # type: ignore[arg-type]
    averaged = copy.deepcopy(detector)
    total, warm, step = epochs * len(loader), min(len(loader), epochs * len(loader) // 5), 0
    for epoch in range(epochs):
        detector.train()
        for images, boxes, labels in loader:
            if step < warm:
                rate = lr * ((step + 1) / warm) ** 2
            else:
                rate = lr * (0.05 + 0.95 * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
            value = loss(detector(images), boxes, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            step += 1
            average(averaged, detector, decay=0.9998 * (1 - math.exp(-step / 2000)))
        after_epoch(epoch + 1, averaged)


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves ``averaged`` towards ``model``; ``decay`` is the share of it that stays."""
    for old, new in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if old.dtype.is_floating_point:
            old.mul_(decay).add_(new, alpha=1 - decay)
        else:
            old.copy_(new)
