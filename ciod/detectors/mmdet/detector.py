"""Dense detectors of MMDetection 3 (onedl-mmdetection): ``detector=mmdet:CONFIG``.

One adapter over public interfaces: the model is built from its config and called (``extract_feat``, ``bbox_head``);
its coder decodes boxes and its assigner matches. Class layers are replaced by ones that grow (``ClassConv``).
``heads`` has the differences between heads; ``config`` reads configs.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ciod.core import losses as L
from ciod.core.types import Detections, Matches, Outputs, Targets
from ciod.detectors.dense import flatten
from ciod.detectors.gfl import integral
from ciod.detectors.mmdet import build, heads
from ciod.detectors.mmdet import config as configs
from ciod.detectors.mmdet.branches import MMDetBranches, first_part

Maps = Sequence[Tensor]


def traits_of(name: str) -> frozenset[str]:
    """The traits of ``mmdet:CONFIG``, without building it.

    Raises:
        CiodError: no such config, or its head is not supported.
    """
    given = name.removeprefix(configs.PREFIX)
    model = configs.read(given)
    return _traits(model, heads.recipe_of(model, given))


def _traits(model: dict[str, Any], recipe: heads.Recipe) -> frozenset[str]:
    bins = model["bbox_head"]["type"] == "GFLHead"
    return recipe.traits | {"branches"} | ({"box_distribution"} if bins else frozenset())


class MMDet(MMDetBranches):
    """See the module. ``settings`` are the keyword arguments of ``build``; they hold the config, so that a model file
    is enough.

    Args:
        name: ``mmdet:`` and a config file, or the name of one of MMDetection's own.
        size: longest side of the images (default: that of the config, rounded up to a multiple of 32).
        backbone_weights: for ResNets, as ``DetectorSettings.backbone_weights``.
        frozen: freeze what the config freezes even if ``backbone_weights`` is None, because weights are loaded later. A
            backbone without weights is trained completely.
        config: the model's config as JSON, instead of reading ``name``.

    Raises:
        CiodError: MMDetection is not installed, no such config, or a head that is not supported.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str,
        size: int | None = None,
        backbone_weights: str | None = None,
        frozen: bool = False,
        config: str | None = None,
    ):
        given = name.removeprefix(configs.PREFIX)
        model = configs.read(given) if config is None else configs.loads(config, name)
        configs.check_apart(model, name)  # so that a saved model can always be read
        configs.require()
        self.recipe = heads.recipe_of(model, given)
        self.config = model
        input_spec = configs.input_spec(model, size)
        stem = configs.PREFIX + Path(given).name.removesuffix(".py")
        super().__init__(class_names, {"name": stem, "size": input_spec.size, "config": json.dumps(model)}, input_spec)
        self.one_label = not self.recipe.several
        self.traits = _traits(model, self.recipe)  # type: ignore[misc]  # per instance, because heads differ
        self.model = build.network(model, max(1, len(class_names)), given)
        heads.check_head(self.head, self.recipe, given)
        deformable = any("DeformConv" in type(m).__name__ for m in self.model.modules())
        if deformable or type(self.head).__name__ == "TOODHead":
            self.lacks_in_onnx = "deformable convolutions"
        for place in build.class_layers(model, given):
            build.put(
                self.model, place, build.growing(self.model.get_submodule(place), len(class_names), self.head, given)
            )
        self.start_parts(int(self.head.in_channels))
        self._count()
        test = model.get("test_cfg") or {}
        self.nms_iou = float((test.get("nms") or {}).get("iou_threshold", 0.65))
        self.nms_pre = int(test.get("nms_pre", -1))
        if backbone_weights not in (None, "random"):
            frozen = build.load_backbone(self.model.backbone, model["backbone"], str(backbone_weights)) or frozen
        self.hold(frozen)

    @property
    def head(self) -> Any:
        return self.model.bbox_head

    def hold(self, on: bool) -> None:
        """Freezes the parts of the backbone that the config freezes, if there are weights; else trains all of it."""
        self.settings["frozen"] = on
        backbone: Any = self.model.backbone
        given = self.config["backbone"]
        for key, free in (("frozen_stages", -1), ("norm_eval", False)):
            if key in given and hasattr(backbone, key):
                setattr(backbone, key, given[key] if on else free)
        if not on:
            backbone.requires_grad_(True)
        self.train(self.training)  # where MMDetection's backbones freeze

    @classmethod
    def default_backbone(cls, name: str) -> str | None:
        return configs.pretrained(name.removeprefix(configs.PREFIX))

    def forward(self, images: Tensor) -> Outputs:
        if len(self.branches):
            return super().forward(images)
        return self.own(images, list(self.model.extract_feat(self.normalise(images))), ([], []))

    def own(self, images: Tensor, features: list[Tensor], towers: tuple[list[Tensor], list[Tensor]]) -> Outputs:
        # In eval mode two heads return other values (FCOS pixels, VFNet no first boxes); this does not change the mode
        # of their layers.
        mode, self.head.training = self.head.training, True
        try:
            maps = self.head(tuple(features))
        finally:
            self.head.training = mode
        return self.assemble(*maps, features=features)

    def assemble(self, cls: Maps, reg: Maps, third: Maps = (), *, features: Maps = ()) -> Outputs:
        """The head's raw maps → Outputs.

        Args:
            cls: [B, C, h, w] per level, or [B, C, A, h, w] with A anchors per cell.
            reg: [B, A × 4 × bins, h, w] per level, as the head returns it in train mode.
            third: objectness, centre-ness or IoU; VFNet: the corrected distances.
        """
        head, kind = self.head, type(self.head).__name__
        a_cell = getattr(head, "num_base_priors", 1)
        points, anchors, strides, levels = self._priors(cls)
        step = strides[:, None]
        logits = torch.cat([_rows(m) for m in cls], 1).float()
        raw = torch.cat([_boxes(m, a_cell) for m in reg], 1).float()
        more: dict[str, Any] = {}
        if kind == "TOODHead":  # its classes are already probabilities, and its boxes are decoded, in strides
            logits = torch.logit(logits, eps=1e-7)
            boxes = raw * step
        elif kind == "YOLOXHead":
            centre = points + raw[..., :2] * step
            half = raw[..., 2:].clamp(max=10).exp() * step / 2  # as in detectors.yolox
            boxes, points = torch.cat([centre - half, centre + half], 2), points + step / 2
        elif kind == "GFLHead":
            more["distribution"] = raw.unflatten(2, (4, head.reg_max + 1))
            boxes = _decode(head, points, integral(more["distribution"]) * step)
        elif kind == "VFNetHead":
            more["coarse"] = _decode(head, points, raw)
            boxes = _decode(head, points, flatten(third))
        elif anchors is not None:
            boxes = _decode(head, anchors, raw)
            more["deltas"] = raw
        else:
            boxes = _decode(head, points, raw * step if getattr(head, "norm_on_bbox", False) else raw)
        if self.recipe.factor:
            more["objectness"] = torch.cat([_boxes(m, a_cell, 1) for m in third], 1)[..., 0].float()
        return Outputs(
            logits,
            boxes,
            points,
            strides,
            features=list(features),
            levels=levels,
            anchors=anchors,
            root=self.recipe.root,
            **more,
        )

    def _priors(self, maps: Maps) -> tuple[Tensor, Tensor | None, Tensor, tuple[int, ...]]:
        """Points [P, 2], anchors [P, 4] or None, strides [P], positions of each level."""
        sizes, device = [tuple(m.shape[-2:]) for m in maps], maps[0].device
        given = self.head.prior_generator.grid_priors(sizes, device=device)
        levels = tuple(len(p) for p in given)
        side = [s[0] if isinstance(s, (tuple, list)) else s for s in self.head.prior_generator.strides]
        strides = torch.cat([torch.full((n,), float(s), device=device) for n, s in zip(levels, side, strict=True)])
        priors = torch.cat(given)
        anchors = priors if priors.shape[1] == 4 else None
        if hasattr(self.head, "atss_prior_generator"):
            anchors = torch.cat(self.head.atss_prior_generator.grid_priors(sizes, device=device))
        points = priors if priors.shape[1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2
        return points, anchors, strides, levels

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """By the head's own assigner; see ``mmdet_heads.match``. With branches: ``match_branch``."""
        if len(self.branches):
            return self.match_branch(outputs, targets)
        return heads.match(self.head, outputs, targets)

    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """The head's losses under ciod's names: cls, box and, where it has them, obj, centerness, iou, dfl, coarse.
        With branches: ``losses_of_branch``."""
        if len(self.branches):
            return self.losses_of_branch(outputs, targets, matches, supervision)
        return heads.losses(self.head, self.recipe, outputs, targets, matches, supervision)

    def trunk(self) -> list[nn.Module]:
        return [getattr(self.model, part) for part in ("backbone", "neck") if hasattr(self.model, part)]

    def grow(self, names: Sequence[str]) -> None:
        super().grow(names)
        self._count()

    def _select(self, kept: list[int]) -> None:
        super()._select(kept)
        self._count()

    def _count(self) -> None:
        """Sets the head's own number of classes."""
        self.head.num_classes = self.head.cls_out_channels = len(self.parts[0])

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
        """As in MMDetection: except for YOLOX, a position has several labels, whatever ``multi_label`` is, and the
        config's ``nms_pre`` best of each level enter NMS. Boxes are first clipped to the batch image (except TOOD's).
        PAA's boxes are averaged with those they suppress. Branches are decoded as ``Detector.decode`` does."""
        given: dict[str, Any] = {
            "score_threshold": score_threshold,
            "nms_iou": nms_iou,
            "max_detections": max_detections,
            "classes": classes,
        }
        if not self.recipe.several:
            return super().decode(outputs, multi_label=multi_label, **given)
        if outputs.parts:
            own = self._decode(first_part(outputs), **given)
            return self.decode_with_branches(outputs, own, multi_label=True, **given)
        return self._decode(outputs, **given)

    def _decode(
        self,
        outputs: Outputs,
        *,
        score_threshold: float | None,
        nms_iou: float | None,
        max_detections: int,
        classes: Tensor | None,
    ) -> list[Detections]:
        """``decode`` in MMDetection's way, without branches."""
        floor = self.score_threshold if score_threshold is None else score_threshold
        limit = self.nms_iou if nms_iou is None else nms_iou
        probability, scores = outputs.logits.sigmoid(), outputs.scores()
        if self.recipe.root:
            probability = scores
        if classes is not None:
            probability = probability.masked_fill(~classes, 0)
        boxes = _cut(outputs) if self.recipe.cut else outputs.boxes
        found = []
        for i in range(len(boxes)):
            place, label = self._candidates(probability[i], floor, outputs.levels)
            side = boxes[i, place, 2:] - boxes[i, place, :2]
            real = (side > 0).all(1) & boxes[i, place].isfinite().all(1)
            place, label = place[real], label[real]
            score = scores[i, place, label]
            kept = torchvision.ops.batched_nms(boxes[i, place], score, label, limit)[:max_detections]
            place, label, score, chosen = place[kept], label[kept], score[kept], boxes[i, place[kept]]
            if getattr(self.head, "with_score_voting", False) and len(kept):
                best = torch.cat([chosen, score[:, None]], 1)
                best, label = self.head.score_voting(best, label, boxes[i], probability[i], floor)
                order = best[:, 4].argsort(descending=True, stable=True)
                chosen, score, label = best[order, :4], best[order, 4], label[order]
            found.append(Detections.of(chosen, score, label, self.class_names))
        return found

    def _candidates(self, probability: Tensor, floor: float, levels: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Positions and labels of one image above ``floor``, at most ``nms_pre`` per level."""
        places, labels, first = [], [], 0
        for n in levels:
            part = probability[first : first + n]
            if self.recipe.root and 0 < self.nms_pre < n:  # PAA's best positions, with all their labels
                best = part.amax(1).topk(self.nms_pre).indices
                part = torch.zeros_like(part).index_copy(0, best, part[best])
            place, label = torch.nonzero(part > floor, as_tuple=True)
            if 0 < self.nms_pre < len(place) and not self.recipe.root:
                best = part[place, label].sort(descending=True).indices[: self.nms_pre]
                place, label = place[best], label[best]
            places.append(place + first)
            labels.append(label)
            first += n
        return torch.cat(places), torch.cat(labels)


def _rows(logits: Tensor) -> Tensor:
    """[B, C, h, w] or [B, C, A, h, w] → [B, h × w × A, C]."""
    if logits.dim() == 4:
        return logits.flatten(2).transpose(1, 2)
    last = logits.permute(0, 3, 4, 2, 1)
    return last.reshape(last.shape[0], last.shape[1] * last.shape[2] * last.shape[3], last.shape[4])


def _boxes(values: Tensor, anchors: int, width: int = 0) -> Tensor:
    """[B, A × R, h, w] → [B, h × w × A, R]."""
    last = values.permute(0, 2, 3, 1)
    width = width or last.shape[3] // anchors
    return last.reshape(last.shape[0], last.shape[1] * last.shape[2] * anchors, width)


def _decode(head: Any, priors: Tensor, raw: Tensor) -> Tensor:
    """Decodes the head's outputs [B, P, 4] with its box coder, for points [P, 2] or anchors [P, 4]."""
    # Added, not expanded: a traced graph must have the size of any batch.
    flat = (priors + raw[..., :1].detach() * 0).flatten(0, 1)
    return head.bbox_coder.decode(flat, raw.reshape(-1, 4)).view_as(raw)


def _cut(outputs: Outputs) -> Tensor:
    """Boxes clipped to the batch image, whose size follows from the finest level."""
    if not outputs.features:
        return outputs.boxes
    height, width = outputs.features[0].shape[-2:]
    stride = outputs.strides[0]
    most = torch.stack([width * stride, height * stride, width * stride, height * stride])
    return torch.minimum(outputs.boxes.clamp(min=0), most)
