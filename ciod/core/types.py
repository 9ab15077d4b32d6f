"""Every tensor that is passed between modules: its shape and unit, stated once.

Letters: B images of a batch, P positions of a detector (grid cells, or queries of a transformer), C classes, N boxes of
an image (padded to the batch's longest list), K matches of an image (padded).
Boxes are ``xyxy`` in pixels of the batch image unless stated otherwise. Labels are positions in the order in which
classes arrived; the ids of a data set appear only in ``data.formats`` and ``evaluation.ap``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from ciod.core.kinds import finest


@dataclass
class Targets:
    """The ground truth of a batch; padded, so that no step loops over images."""

    boxes: Tensor  # [B, N, 4]
    labels: Tensor  # [B, N] int64; padding is 0
    valid: Tensor  # [B, N] bool; False = padding
    # Where labels are incomplete. None: they are complete.
    doubtful: Tensor | None = None  # [B, N] bool; positions matched to such a box are neither positive nor negative
    known: Tensor | None = None  # [B, C] bool; False = that class is not labelled in that image
    background: Tensor | None = (
        None  # [B] bool; False = a position without a match may still be an object (a pool image)
    )

    @classmethod
    def pad(cls, boxes: list[Tensor], labels: list[Tensor]) -> Targets:
        """From one [n, 4] and one [n] tensor per image. N is at least 1, so shapes are never empty."""
        n = max([1, *(len(b) for b in boxes)])
        out = cls(
            torch.zeros(len(boxes), n, 4),
            torch.zeros(len(boxes), n, dtype=torch.long),
            torch.zeros(len(boxes), n, dtype=torch.bool),
        )
        for i, (b, y) in enumerate(zip(boxes, labels, strict=True)):
            out.boxes[i, : len(b)] = b
            out.labels[i, : len(b)] = y
            out.valid[i, : len(b)] = True
        return out

    def __add__(self, other: Targets) -> Targets:
        """The boxes of ``self``, then those of ``other``; an index < N of ``self`` belongs to ``self``.

        The ``known`` classes of an image are those of either side; ``background`` holds if it holds on both sides.
        """
        doubtful = None
        if self.doubtful is not None or other.doubtful is not None:
            sides = (t.doubtful if t.doubtful is not None else torch.zeros_like(t.valid) for t in (self, other))
            doubtful = torch.cat([*sides], 1)
        return Targets(
            torch.cat([self.boxes, other.boxes], 1),
            torch.cat([self.labels, other.labels], 1),
            torch.cat([self.valid, other.valid], 1),
            doubtful,
            _either(self.known, other.known, torch.logical_or),
            _either(self.background, other.background, torch.logical_and),
        )

    def to(self, device: torch.device | str) -> Targets:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in given.items() if v is not None})


def _either(a: Tensor | None, b: Tensor | None, both: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    """The one that is not None, or ``both`` of them combined."""
    return b if a is None else a if b is None else both(a, b)


TASK, MEMORY, POOL, KNOWN = 0, 1, 2, 3  # where an image of a batch comes from; KNOWN: the task's, completely labelled


@dataclass
class Batch:
    """One batch, decoded and augmented once: teacher and student see the same pixels."""

    images: Tensor  # [B, 3, H, W] RGB, 0..255 (uint8 from the loader; detectors normalise)
    targets: Targets
    names: list[str]  # the file of each image, for messages
    sizes: Tensor  # [B, 2] height, width of each original image
    scales: Tensor  # [B] batch pixels per original pixel
    index: Tensor  # [B] row of each image in its Index
    broken: list[str] = field(default_factory=list[str])  # files that could not be read; the next image replaces each
    source: Tensor | None = None  # [B] int64 TASK, MEMORY, POOL or KNOWN; None: every image is the task's
    frames: Tensor | None = None  # [B, 4] the ``Frame`` of each test image; None: training images

    def to(self, device: torch.device | str) -> Batch:
        source = None if self.source is None else self.source.to(device, non_blocking=True)
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, targets=self.targets.to(device), source=source)


_OF_DENSE = ("points", "strides", "levels", "parts", "anchors", "root")
OF_POSITIONS = frozenset((*_OF_DENSE, "answers", "frame", "shapes", "rpn_anchors", "rpn_levels"))
"""Fields of ``Outputs`` that are the same for every image; all others have one row per image."""
PER_POSITION = ("logits", "boxes", "objectness", "distribution", "refs")
"""Fields of ``Outputs`` of a query detector with [B, P, ...]."""


@dataclass
class Outputs:
    """Raw predictions of a detector, the same in train and eval mode, except that eval mode corrects boxes of branches.

    Positions of a dense detector are ordered by level, then row-major; teacher and student have the same order.
    Positions of a query detector are sets of queries: those of the last layer, which are the answers, then those of the
    earlier layers, which only train. Their order differs between teacher and student. All is float32, also under AMP.
    """

    logits: Tensor  # [B, P, C]
    boxes: Tensor  # [B, P, 4], decoded and differentiable
    points: Tensor  # [P, 2] x, y of each position in pixels, as the detector counts: the cell's centre, or its corner
    strides: Tensor  # [P] pixels per cell; points and strides are empty for queries, which have no place
    objectness: Tensor | None = None  # [B, P] logits of the second factor of the score; FCOS: centre-ness
    distribution: Tensor | None = None  # [B, P, 4, R] logits of distances left, top, right, bottom; of queries fewer
    refs: Tensor | None = None  # [B, P, 4] boxes that a distribution of queries corrects: centre and sides, as shares
    features: list[Tensor] = field(default_factory=list[Tensor])  # [B, F, h, w] per level, of the neck
    towers: list[Tensor] = field(default_factory=list[Tensor])  # [B, F, h, w] per level: the input of the class layer
    box_towers: list[Tensor] = field(default_factory=list[Tensor])  # [B, F, h, w] per level: that of the box layer
    maps: list[Tensor] = field(default_factory=list[Tensor])  # [B, F, h, w] per level, of the backbone, for an arbiter
    near: Tensor | None = None  # [B, F, h, w] in train mode, what the newest branch reads at its boxes to correct them
    levels: tuple[int, ...] = ()  # positions of each level; their sum is P
    parts: tuple[int, ...] = ()  # positions of the detector itself, then of each branch; (): there is no branch
    anchors: Tensor | None = None  # [P, 4] the boxes that predictions correct, if a detector has them
    deltas: Tensor | None = None  # [B, P, 4] corrections of the anchors, as the head returns them (RetinaNet)
    coarse: Tensor | None = None  # [B, P, 4] the boxes before the correction by a second stage (VFNet)
    root: bool = False  # scores, but for branches, are square roots of class × objectness (torchvision's FCOS)
    answers: int | None = None  # only this many positions, the first ones, are detections; None: all
    frame: tuple[int, int] | None = None  # width and height of the batch image, if boxes are learnt as shares of it
    asked: Tensor | None = None  # [B, Q] int64 tokens that an encoder chose; or [B, Q, 2d] learnt (``decode_at``)
    starts: Tensor | None = None  # [B, Q, 2 or 4] where each query starts, as the decoder takes it
    memory: Tensor | None = None  # [B, T, d] what the decoder looks at
    shapes: tuple[tuple[int, int], ...] = ()  # height and width of each level of the memory
    first: Tensor | None = None  # [B, T, C] class logits of the encoder, at every token in the same order
    states: Tensor | None = None  # [B, Q, d] of the last layer, whose class head gives the answers

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """Outputs of the parts of a batch → outputs of the batch."""
        if len(parts) == 1:
            return parts[0]
        given: dict[str, Any] = {}
        for name in (f.name for f in fields(parts[0]) if f.name not in OF_POSITIONS):
            values = [getattr(p, name) for p in parts]
            if isinstance(values[0], list):
                given[name] = [torch.cat(maps) for maps in zip(*values, strict=True)]
            elif values[0] is not None:
                given[name] = torch.cat(values)
        return replace(parts[0], **given)

    def answer(self) -> Outputs:
        """The positions that are detections: for evaluation, teachers, exporters. For a dense detector: all."""
        n = self.answers
        if n is None or n == self.logits.shape[1]:
            return self
        narrow = {k: None if v is None else v[:, :n] for k in PER_POSITION for v in [getattr(self, k)]}
        return replace(self, **narrow)

    def probability(self) -> Tensor:
        """[B, P, C]: the probability of each class, without objectness."""
        return self.logits.sigmoid()

    def scores(self) -> Tensor:
        """[B, P, C]: the probability by which detections are ranked (class, times objectness if there is one)."""
        return self.combine(self.probability())

    def combine(self, probability: Tensor) -> Tensor:
        """Class probabilities [B, P] or [B, P, C] → scores of that shape."""
        if self.objectness is None:
            return probability
        quality = self.objectness.sigmoid()
        product = probability * (quality if probability.dim() == 2 else quality[..., None])
        if not self.root:
            return product
        if len(self.parts) < 2:
            return product.sqrt()
        own = self.parts[0]  # branches have products
        return torch.cat([product[:, :own].sqrt(), product[:, own:]], 1)


@dataclass
class Matches:
    """Which positions are matched with which target: K slots per image; unused slots are not ``valid``."""

    position: Tensor  # [B, K] int64 in 0..P
    target: Tensor  # [B, K] int64 in 0..N
    iou: Tensor  # [B, K] IoU of the predicted box with the target's, no gradient
    valid: Tensor  # [B, K] bool
    positive: Tensor  # [B, P] bool: positions with a match
    ignored: Tensor | None = None  # [B, P] bool: positions that are neither matched nor background


class Detection(NamedTuple):
    """One of ``Detections``."""

    name: str
    """Its class; ``class 3`` where classes have no names."""
    score: float
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the original image
    label: int  # position in class_names


@dataclass(repr=False, eq=False)
class Detections:
    """The detections of one image, as numpy arrays; boxes are in pixels of the original image.

    Raises:
        ValueError: lengths or shapes do not match, a score is not in 0..1, a label has no name, or a box is not
            finite or has its corners in the wrong order.
    """

    boxes: np.ndarray  # [n, 4] xyxy
    scores: np.ndarray  # [n] 0..1, highest first
    labels: np.ndarray  # [n] positions in class_names
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.boxes = np.asarray(self.boxes, dtype=np.float32)
        self.scores = np.asarray(self.scores, dtype=np.float32)
        self.labels = np.asarray(self.labels, dtype=np.int64)
        n = len(self.scores)
        if self.boxes.shape != (n, 4) or self.labels.shape != (n,):
            raise ValueError(
                f"boxes must be [n, 4], scores [n], labels [n]; got {self.boxes.shape}, {self.scores.shape}, "
                f"{self.labels.shape}"
            )
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ValueError(f"scores must be in 0..1; got {self.scores.min()}..{self.scores.max()}")
        if n and (self.labels.min() < 0 or (self.class_names and self.labels.max() >= len(self.class_names))):
            raise ValueError(
                f"labels must be from 0 to {len(self.class_names) - 1}, the number of the last class; got "
                f"{np.unique(self.labels).tolist()}"
            )
        if not np.isfinite(self.boxes).all() or (self.boxes[:, 2:] < self.boxes[:, :2]).any():
            raise ValueError("boxes must be finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")

    @classmethod
    def of(cls, boxes: Tensor, scores: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Detections:
        """From tensors [n, 4], [n], [n] on any device."""
        return cls(boxes.float().cpu().numpy(), scores.float().cpu().numpy(), labels.cpu().numpy(), class_names)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        """Yields the detections, the highest score first: ``for name, score, box, label in found``."""
        for box, score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True):
            yield Detection(self._name(label), score, tuple(box), label)

    @overload
    def __getitem__(self, which: int) -> Detection: ...
    @overload
    def __getitem__(self, which: slice | np.ndarray | Sequence[int]) -> Detections: ...
    def __getitem__(self, which: int | slice | np.ndarray | Sequence[int]) -> Detection | Detections:
        """``found[0]`` is one detection; ``found[:5]``, a mask and a list of indices give ``Detections``.

        Raises:
            IndexError: there are fewer.
        """
        if isinstance(which, (int, np.integer)):
            box, label = self.boxes[which].tolist(), int(self.labels[which])
            return Detection(self._name(label), float(self.scores[which]), tuple(box), label)
        if isinstance(which, slice):
            return self.keep(np.arange(len(self))[which])
        mask = np.asarray(which)
        return self.keep(mask if mask.size else mask.astype(int))

    def __repr__(self) -> str:
        if not len(self):
            return "Detections(nothing)"
        count = {int(y): int((self.labels == y).sum()) for y in np.unique(self.labels)}
        counts = ", ".join(f"{n} {self._name(y)}" for y, n in count.items())
        return f"Detections({counts}; scores {self.scores.min():.2f} to {self.scores.max():.2f})"

    def _name(self, label: int) -> str:
        return self.class_names[label] if self.class_names else f"class {label}"

    def finest(self, parents: Mapping[str, str]) -> Detections:
        """One name per box where a class became several: see ``kinds.finest``."""
        return self.keep(finest([d.name for d in self], self.boxes, self.scores, parents))

    def above(self, score: float) -> Detections:
        """The detections whose score is above ``score``."""
        return self.keep(self.scores > score)

    def only(self, *names: str) -> Detections:
        """The detections of these classes.

        Raises:
            CiodError: a name is not a class.
        """
        from ciod.core.errors import CiodError, did_you_mean

        for name in names:
            if name not in self.class_names:
                raise CiodError(f"There is no class '{name}'; {did_you_mean(name, self.class_names)}")
        return self.keep(np.isin(self.labels, [self.class_names.index(n) for n in names]))

    def to_dataframe(self) -> Any:
        """As a ``pandas.DataFrame`` with the columns class, score, x1, y1, x2, y2.

        Raises:
            CiodError: pandas is not installed.
        """
        pandas = _package("pandas")
        columns = {f: self.boxes[:, i] for i, f in enumerate(("x1", "y1", "x2", "y2"))}
        names = [self._name(y) for y in self.labels.tolist()]
        return pandas.DataFrame({"class": names, "score": self.scores, **columns})

    def to_fiftyone(self, width: int, height: int) -> Any:
        """As ``fiftyone.Detections``, for a field of a sample; FiftyOne gives boxes as shares of the picture.

        Args:
            width, height: of the original image, in pixels.

        Raises:
            CiodError: FiftyOne is not installed.
        """
        fiftyone = _package("fiftyone")
        found: list[Any] = []
        for name, score, (x1, y1, x2, y2), _ in self:
            box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
            found.append(fiftyone.Detection(label=name, bounding_box=box, confidence=score))
        return fiftyone.Detections(detections=found)

    def to_label_studio(self, width: int, height: int, **names: str) -> dict[str, Any]:
        """As a prediction of Label Studio. Args: width, height: of the original image; names: see
        ``core.label_studio.results``."""
        from ciod.core.label_studio import results

        called, scores = [self._name(y) for y in self.labels.tolist()], [round(s, 4) for s in self.scores.tolist()]
        result = results(self.boxes.tolist(), called, scores, width, height, **names)
        return {"model_version": "ciod", "score": min(scores, default=0.0), "result": result}

    def to_supervision(self) -> Any:
        """As ``supervision.Detections``, with ``data["class_name"]``, for its annotators, trackers and zones.

        Raises:
            CiodError: supervision is not installed.
        """
        supervision = _package("supervision")
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            data={"class_name": np.array([self._name(int(y)) for y in self.labels])},
        )

    def keep(self, mask: np.ndarray) -> Detections:
        """The detections where ``mask`` is true (or whose indices it holds)."""
        return Detections(self.boxes[mask], self.scores[mask], self.labels[mask], self.class_names)

    def to_list(self) -> list[dict[str, Any]]:
        """One JSON-ready dict per detection: class, score, box (x1, y1, x2, y2)."""
        names = self.class_names or range(int(self.labels.max(initial=0)) + 1)
        rows = zip(self.boxes, self.scores, self.labels, strict=True)
        return [
            {"class": names[y], "score": round(float(s), 4), "box": [round(float(v), 2) for v in b]} for b, s, y in rows
        ]


def _package(name: str) -> Any:
    """An optional package. Raises CiodError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        from ciod.core.errors import CiodError

        raise CiodError(f"{name} is not installed: pip install {name}") from error


class Frame(NamedTuple):
    """Where a picture is in its batch image: x of the batch image is x of the picture × ``across`` + ``left``."""

    across: float
    down: float
    left: float = 0.0
    top: float = 0.0


def in_original(found: Detections, frame: float | Sequence[float], height: int, width: int) -> Detections:
    """Boxes of a batch image → pixels of the original picture, clipped to it.

    Args:
        frame: a ``Frame``, or the scale of a picture at the top left.
    """
    across, down, left, top = Frame(frame, frame) if isinstance(frame, (int, float)) else frame
    boxes = (found.boxes - np.array([left, top] * 2, np.float32)) / np.array([across, down] * 2, np.float32)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    return Detections(boxes, found.scores, found.labels, found.class_names)
