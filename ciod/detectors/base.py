"""The contract of a detector, and the functions that every detector inherits: growing, freezing, predicting."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor, nn

from ciod.core.boxes import best_of_parts, suppress
from ciod.core.errors import CiodError
from ciod.core.files import nfc
from ciod.core.types import Detections, Matches, Outputs, Targets
from ciod.data.text_files import same_names
from ciod.detectors.layers.class_layers import ClassConv, ClassRows
from ciod.detectors.masked_loss import MaskedLoss

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

    from ciod.data.augment import Placement
    from ciod.detectors.layers.arbiter import Arbiter

    Picture: TypeAlias = str | Path | np.ndarray | Image.Image

IMAGENET: dict[str, Any] = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}  # of an Input, 0..255


FOLDED = (
    "The teacher's weights are not those of a student: its batch normalisation is folded into its convolutions. A "
    "method that reads, mixes or averages them needs exact_teacher (a property that is True) and train.teacher=exact."
)


@dataclass(frozen=True)
class Input:
    """How images must be prepared for a detector. Part of its settings, so that a model file is enough to use it."""

    size: int = 416  # the longest side is scaled to this; the batch image is size × size, filled at right and bottom
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # subtracted, in 0..255, RGB order
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False  # swap channels after normalising
    fill: float = 114.0  # value of the border, 0..255
    place: Placement = "corner"  # where the image is put, see ``augment.Placement``


class Detector(nn.Module, MaskedLoss):
    """A detector. Subclasses implement ``forward``, ``match``, ``losses`` and ``trunk``, and set ``traits`` and
    ``variants``.

    ``forward`` is the same in train and eval mode (except for batch normalisation), so outputs of teacher and student
    can be compared. A detector never sees ids of a data set: label ``i`` is ``class_names[i]``.
    """

    traits: ClassVar[frozenset[str]] = frozenset()
    """Properties on which methods rely: ``dense`` (positions are cells, which are the same in teacher and student),
    ``objectness`` (trained at every position, including background), ``centerness`` (instead of objectness, trained
    only at matches), ``box_distribution``, ``features``, ``head_inputs`` (stored features can be answered:
    ``HeadInputs``), ``branches``, ``children`` (a class can get kinds of its own on a branch), ``query`` (positions are
    queries, which show different objects in teacher and student), ``first_stage`` (an encoder chooses the queries),
    ``learnt_queries`` (they are the same for every picture), ``given_queries`` (the decoder can be asked another
    detector's queries), ``rois`` (positions are regions that a first stage proposes, which differ between teacher and
    student; classes and background are one softmax).
    """
    variants: ClassVar[Mapping[str, Any]] = {}
    """Names of this family, each with its architecture."""
    extra: ClassVar[str | None] = None
    """The extra of ciod with the packages that the network needs: ``pip install 'ciod[EXTRA]'``."""
    run_defaults: Mapping[str, Any] = {}
    """Defaults of this detector for settings of the run, by dotted key; the user and the method override them."""
    folded: bool = False
    """Whether batch normalisation is folded into the convolutions of a teacher, whose weights then differ."""
    multi_label: ClassVar[bool] = False
    """Default of ``eval.multi_label``: whether every class of a position makes a detection."""

    mean: Tensor
    std: Tensor

    def __init__(self, class_names: Sequence[str], settings: dict[str, Any], input_spec: Input):
        super().__init__()
        self.class_names: tuple[str, ...] = same_names(class_names)
        self.settings = settings  # JSON-ready; detectors.build(**settings) makes the same architecture
        self.input = input_spec
        self.lineage: list[dict[str, Any]] = []  # one entry per task: its classes and their data
        self.growth: list[dict[str, Any]] = [{"rows": len(class_names)}] if class_names else []  # how they came
        self.score_threshold, self.nms_iou = 0.001, 0.65
        self.arbiter: Arbiter | None = None  # weighs branches against each other, if there are any
        self.one_label = True  # ``decode`` can give a position only its best class
        self.lacks_in_onnx = ""  # operators of the network that ONNX does not have
        self.register_buffer("mean", torch.tensor(input_spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(input_spec.std).view(3, 1, 1), persistent=False)

    @classmethod
    def default_backbone(cls, name: str) -> str | None:
        """Default backbone weights of variant ``name``: ``imagenet`` or None.

        A variant that is a number has a ResNet of that depth as backbone; torchvision has its weights.
        """
        return "imagenet" if isinstance(cls.variants.get(name), int) else None

    # What a subclass implements -------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, images: Tensor) -> Outputs:
        """[B, 3, H, W] RGB 0..255 → Outputs in float32."""

    @abstractmethod
    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """Assigns positions to targets. No gradient, no device synchronisation."""

    def class_layers(self) -> Iterator[ClassRows]:
        """Every tensor with one row per class, in order of arrival. Override this if there are other layers than
        ClassConv."""
        for name, layer in self.class_modules().items():
            yield from layer.rows(name)

    def class_modules(self) -> dict[str, ClassConv]:
        """The layers that grow, by module name."""
        return {n: m for n, m in _modules(self) if isinstance(m, ClassConv)}

    @abstractmethod
    def trunk(self) -> list[nn.Module]:
        """The parts that do not depend on classes, which ``load=trunk`` loads: backbone and neck."""

    # Inherited ---------------------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 or float [B, 3, H, W] RGB 0..255 → the input of the backbone."""
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        return x.flip(1) if self.input.bgr else x

    def grow(self, names: Sequence[str]) -> None:
        """Adds classes. Old logits of any image stay bit-equal; new ones start at p = 0.01.

        Raises:
            CiodError: a name is already known or is given twice.
        """
        names = [nfc(n) for n in names]
        self._check_new(names)
        if not names:
            return
        for layer in self.class_modules().values():
            layer.grow(len(names))
            layer.to(self.device)  # the first rows of a layer have no earlier rows
        self.class_names = (*self.class_names, *names)
        self.growth.append({"rows": len(names)})

    def select(self, names: Sequence[str]) -> None:
        """Keeps only these classes, in their order of arrival; their outputs do not change.

        Raises:
            CiodError: a name is not known, or no class is left.
        """
        names = [nfc(n) for n in names]
        unknown = [n for n in names if n not in self.class_names]
        if unknown or not names:
            raise CiodError(f"The detector does not know {', '.join(map(repr, unknown)) or 'what to keep: no name'}.")
        kept = [i for i, n in enumerate(self.class_names) if n in names]
        self._select(kept)
        self.class_names = tuple(self.class_names[i] for i in kept)

    def _select(self, kept: list[int]) -> None:
        """Keeps the class indices ``kept``, ascending, in layers and ``growth``."""
        for layer in self.class_modules().values():
            layer.select(kept)
        sizes = next(iter(self.class_modules().values())).sizes
        self.growth = [{"rows": n} for n in sizes]

    def rename(self, names: Mapping[str, str]) -> None:
        """Renames classes.

        Raises:
            CiodError: a name is not known, or two classes would have the same name.
        """
        names = {nfc(a): nfc(b) for a, b in names.items()}
        unknown = [n for n in names if n not in self.class_names]
        renamed = tuple(names.get(n, n) for n in self.class_names)
        if unknown or len(set(renamed)) < len(renamed):
            what = f"does not know {unknown[0]!r}" if unknown else "would have two classes with the same name"
            raise CiodError(f"The detector {what}.")
        self.class_names = renamed
        for step in self.growth:
            if "taught" in step:
                step["taught"] = [names.get(n, n) for n in step["taught"]]

    def _check_new(self, names: Sequence[str]) -> None:
        twice = [n for i, n in enumerate(names) if n in self.class_names or n in list(names)[:i]]
        if twice:
            raise CiodError(f"The detector already knows {', '.join(map(repr, twice))}; a class can be added once.")

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As for any module.

        Raises:
            CiodError: it is a folded teacher, whose weights are not those of a student.
        """
        if self.folded:
            raise CiodError(FOLDED)
        return super().named_parameters(prefix, recurse, remove_duplicate)

    def frozen(self) -> Self:
        """An independent copy in eval mode, without gradients."""
        twin = copy.deepcopy(self).eval()
        for _, p in nn.Module.named_parameters(twin):
            p.requires_grad_(False)
        return twin

    def add_arbiter(self, rows: int | None = None) -> Arbiter | None:
        """An arbiter without statistics, for detectors with branches; None for others.

        Args:
            rows: rows of its statistics; None: one per class.
        """
        return None

    def scores(self, outputs: Outputs) -> Tensor:
        """[B, P, C]: the scores by which detections are ranked."""
        return outputs.scores()

    def box_of(self, outputs: Outputs, image: int, positions: Tensor, labels: Tensor) -> Tensor:
        """[n, 4]: the boxes of these labels [n] at these positions [n] of an image."""
        return outputs.boxes[image, positions]

    @torch.no_grad()
    def decode(
        self,
        outputs: Outputs,
        *,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int = 100,
        classes: Tensor | None = None,
        multi_label: bool = False,
    ) -> list[Detections]:
        """Outputs → detections in pixels of the batch image: one label per position, class-aware NMS.

        Args:
            max_detections: maximum per image of the detector itself, and as many for each branch: new classes
                never push out old boxes.
            classes: [C] bool, labels that may be found (default: all).
            multi_label: every class of a position above ``score_threshold`` makes a detection, not only the best.
        """
        floor = self.score_threshold if score_threshold is None else score_threshold
        limit = self.nms_iou if nms_iou is None else nms_iou
        outputs = outputs.answer()
        scores = self.scores(outputs)
        if classes is not None:
            scores = scores.masked_fill(~classes, 0)
        label_of = None
        if scores.shape[2] and not multi_label:
            scores, label_of = scores.max(2, keepdim=True)
        found: list[Detections] = []
        for i in range(len(scores)):  # evaluation, not training: images have different numbers of detections
            # If a network has diverged, some boxes are not finite; NaN is never above the threshold.
            finite = outputs.boxes[i].isfinite().all(1, keepdim=True)
            at, label = torch.nonzero((scores[i] > floor) & finite, as_tuple=True)
            score = scores[i, at, label]
            order = score.argsort(descending=True, stable=True)
            order = order[best_of_parts(at[order], outputs.parts, 5000)]
            score, label = score[order], label[order] if label_of is None else label_of[i, at[order], 0]
            boxes = self.box_of(outputs, i, at[order], label)
            kept = suppress(boxes, score, label, limit)
            kept = kept[best_of_parts(at[order][kept], outputs.parts, max_detections)]
            found.append(Detections.of(boxes[kept], score[kept], label[kept], self.class_names))
        return found

    @property
    def parents(self) -> dict[str, str]:
        """Class → the class that it is a kind of, where a class became several (``ciod extend split=``)."""
        known: dict[str, str] = {}
        first = 0
        for step in self.growth:
            size = step["branch"] if "branch" in step else step["rows"]
            if "parent" in step:
                known |= {n: str(step["parent"]) for n in self.class_names[first : first + size]}
            first += size
        return known

    @overload
    def predict(
        self,
        image: Picture,
        *,
        score_threshold: float = ...,
        nms_iou: float | None = ...,
        max_detections: int = ...,
        classes: Sequence[str] | None = ...,
        batch: int = ...,
        finest: bool = ...,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        image: Sequence[Picture],
        *,
        score_threshold: float = ...,
        nms_iou: float | None = ...,
        max_detections: int = ...,
        classes: Sequence[str] | None = ...,
        batch: int = ...,
        finest: bool = ...,
    ) -> list[Detections]: ...
    def predict(
        self,
        image: Picture | Sequence[Picture],
        *,
        score_threshold: float = 0.3,
        nms_iou: float | None = None,
        max_detections: int = 100,
        classes: Sequence[str] | None = None,
        batch: int = 8,
        finest: bool = False,
    ) -> Detections | list[Detections]:
        """Detections in one image, or in each image of a list.

        Args:
            image: a file, an array [H, W, 3] RGB 0..255, a PIL image; or a list (or [B, H, W, 3]) of them.
            classes: only these are found (default: all).
            batch: images per forward pass.
            finest: a box has one name where a class became several: see ``core.kinds.finest``.

        Returns:
            Boxes in pixels of the upright image (EXIF rotation applied).

        Raises:
            DataError: an image cannot be read.
            ConfigError: a class the detector does not know.
        """
        from ciod.detectors.inference import stream

        several = isinstance(image, (list, tuple)) or (isinstance(image, np.ndarray) and image.ndim == 4)
        results = stream(
            self,
            image if several else [image],  # type: ignore[arg-type]
            batch=batch,
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            max_detections=max_detections,
            classes=classes,
            finest=finest,
        )
        found: list[Detections] = []
        for _, _, detections in results:
            if isinstance(detections, Exception):
                raise detections
            found.append(detections)
        return found if several else found[0]


def _modules(module: Any) -> Iterator[tuple[str, nn.Module]]:
    """``named_modules`` with the documented types."""
    yield from module.named_modules()
