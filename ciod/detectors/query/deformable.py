"""Deformable DETR (Zhu et al., ICLR 2021, arXiv 2010.04159): learnt queries, with or without box refinement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ciod.core import losses as L
from ciod.core.types import Outputs
from ciod.detectors.base import IMAGENET, Input
from ciod.detectors.layers.class_layers import ClassLinear
from ciod.detectors.query import matching
from ciod.detectors.query.branches import QueryBranches, head_of
from ciod.detectors.query.whole import WholeDetector

CLASS_WEIGHT = 2.0  # of the paper, table 4 and section A.4; transformers has 1
PICO: dict[str, Any] = {
    "model_type": "deformable_detr",
    "freeze_backbone_batch_norms": False,
    "backbone_config": {
        "model_type": "resnet",
        "out_indices": [2, 3, 4],
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
    "d_model": 64,
    "num_queries": 50,
    "num_feature_levels": 3,
    "encoder_layers": 1,
    "encoder_ffn_dim": 128,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 128,
    "decoder_attention_heads": 4,
    "dropout": 0.0,
    "with_box_refine": True,
}
R50: dict[str, Any] = {
    "model_type": "deformable_detr",
    "backbone_config": {"model_type": "resnet", "out_indices": [2, 3, 4]},  # its defaults are a ResNet-50
}


class Levels(nn.Module):
    """The learnt vector of each level, as a part that a trunk can hold."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(weight.shape))
        with torch.no_grad():
            self.weight.copy_(weight)


class DeformableDETR(QueryBranches, WholeDetector):
    """Deformable DETR: as many queries as were learnt, the same for every picture, so new classes change no old one.

    Each decoder layer has its own heads, also without box refinement, where those of the paper are one; heads of a
    checkpoint that are one become equal copies. Dropout of attention in the encoder is left out.
    """

    variants: ClassVar[Mapping[str, Any]] = {
        "ddetr-pico": PICO,  # ours: for demonstrations and small machines; no official weights
        "ddetr-r50": R50,  # of the paper, without box refinement: the detector of CL-DETR and SIKD
    }
    model_type = "deformable_detr"
    traits = QueryBranches.traits | {"learnt_queries", "given_queries"}

    @classmethod
    def default_backbone(cls, name: str) -> str | None:
        return "imagenet" if name == "ddetr-r50" else None

    def input_of_variant(self, name: str, size: int | None) -> Input:
        return Input(size=size or 640, **IMAGENET) if name == "ddetr-r50" else super().input_of_variant(name, size)

    def inner(self, model: Any) -> Any:
        network, layers = model.model, model.config.decoder_layers
        heads = nn.ModuleList(deepcopy(model.bbox_embed[0]) for _ in range(layers))
        if model.config.with_box_refine:
            network.decoder.bbox_embed = heads
        else:
            network.bbox_embed = heads
        network.levels = Levels(network.level_embed)
        del network.level_embed
        if not self.config.get("freeze_backbone_batch_norms", True):
            _trained(network.backbone)
        return network

    def _set_network(self, network: Any) -> None:
        width, layers = network.config.d_model, network.config.decoder_layers
        network.class_embed = nn.ModuleList(ClassLinear(width, self.num_classes) for _ in range(layers))
        self.network = network
        self.start_parts(network.config.num_queries)
        self.train()

    def copy_head(self, queries: int) -> nn.Module:
        """With some of the learnt queries, spread evenly over their order."""
        boxes = () if self.network.config.with_box_refine else ("bbox_embed",)
        head = head_of(self.network, ("reference_points", "decoder", "class_embed", *boxes), queries)
        old = self.network.query_position_embeddings.weight.detach()
        rows = torch.linspace(0, len(old) - 1, queries, device=old.device).round().long()
        head.query_position_embeddings = nn.Embedding.from_pretrained(old[rows], freeze=False)
        return head

    def own_name(self, key: str) -> str:
        key = key.removeprefix("model.")
        return "levels.weight" if key == "level_embed" else key

    def tensors_of(self, model: Any) -> dict[str, Tensor]:
        state = model.state_dict()
        if model.config.with_box_refine:  # the decoder's own heads are the same tensors
            state = {k: v for k, v in state.items() if not k.startswith("bbox_embed.")}
        found = {self.own_name(k): v for k, v in state.items()}
        return found if self.config.get("freeze_backbone_batch_norms", True) else _without_counts(found, self.network)

    @staticmethod
    def separate(model: Any) -> None:
        model.class_embed = nn.ModuleList(deepcopy(head) for head in model.class_embed)
        model.bbox_embed = nn.ModuleList(deepcopy(head) for head in model.bbox_embed)
        if model.config.with_box_refine:
            model.model.decoder.bbox_embed = model.bbox_embed

    def trunk(self) -> list[nn.Module]:
        network = self.network
        return [network.backbone, network.input_proj, network.levels, network.position_embedding, network.encoder]

    def forward(self, images: Tensor) -> Outputs:
        tokens, shapes = self._encode(self.normalise(images))
        return self.answered(images, self._maps(tokens, shapes))

    def ask(self, images: Tensor, maps: Sequence[Tensor], head: Any) -> Outputs:
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        tokens = torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2)
        asked = head.query_position_embeddings.weight.repeat(tokens.shape[0], 1, 1)
        starts = head.reference_points(asked.chunk(2, 2)[0]).sigmoid()
        frame = (int(images.shape[3]), int(images.shape[2]))
        return replace(self._decoded(head, asked, starts, tokens, shapes, frame), features=list(maps))

    def decode_at(self, outputs: Outputs, asked: Tensor, starts: Tensor) -> Outputs:
        assert outputs.memory is not None and outputs.frame is not None
        return self._decoded(self.network, asked, starts, outputs.memory, outputs.shapes, outputs.frame)

    def classify(self, states: Tensor) -> Tensor:
        """States [..., d] of the decoder's last layer → class logits [..., C]."""
        return self.network.class_embed[-1](states).float()

    def _encode(self, images: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """Tokens [B, T, d] of the encoder, finest level first, and height and width of each level."""
        network = self.network
        maps = list(network.backbone.model(images).feature_maps)
        sources = [project(m) for project, m in zip(network.input_proj, maps)]
        for project in network.input_proj[len(maps) :]:  # coarser levels: of the coarsest map, then of each other
            sources.append(project(maps[-1] if len(sources) == len(maps) else sources[-1]))
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in sources]
        positions = []
        for level, source in zip(network.levels.weight, sources, strict=True):
            place = network.position_embedding(shape=source.shape, device=source.device, dtype=torch.float32)
            positions.append(place.flatten(2).transpose(1, 2) + level)
        tokens = torch.cat([m.flatten(2) for m in sources], 2).transpose(1, 2)
        encoded = network.encoder(
            inputs_embeds=tokens, spatial_position_embeddings=torch.cat(positions, 1), **self._places(tokens, shapes)
        )
        return encoded.last_hidden_state, shapes

    @staticmethod
    def _places(tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """What attention must know about the levels; pictures fill the batch image."""
        each = [torch.full((), side, device=tokens.device) for shape in shapes for side in shape]  # without a copy
        sizes = torch.stack(each).view(-1, 2)
        return {
            "spatial_shapes": sizes,
            "spatial_shapes_list": list(shapes),
            "level_start_index": torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]]),
            "valid_ratios": tokens.new_ones(tokens.shape[0], len(shapes), 2),
        }

    @staticmethod
    def _maps(tokens: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Tokens → [B, d, h, w] per level."""
        each = tokens.transpose(1, 2).split([h * w for h, w in shapes], 2)
        return [m.reshape(*m.shape[:2], *s) for m, s in zip(each, shapes, strict=True)]  # for a batch of any size

    def _decoded(
        self,
        network: Any,
        asked: Tensor,
        starts: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        frame: tuple[int, int],
    ) -> Outputs:
        """Sets of queries of the decoder's layers, the last one first."""
        position, content = asked.chunk(2, 2)
        decoded = network.decoder(
            inputs_embeds=content,
            object_queries_position_embeddings=position,
            encoder_hidden_states=tokens,
            reference_points=starts,
            **self._places(tokens, shapes),
        )
        states = decoded.intermediate_hidden_states.unbind(1)
        before = [starts, *decoded.intermediate_reference_points.unbind(1)[:-1]]
        boxes = network.decoder.bbox_embed if network.config.with_box_refine else network.bbox_embed
        logits, units = [], []
        for layer, (state, start) in enumerate(zip(states, before, strict=True)):
            logits.append(network.class_embed[layer](state).float())
            moved, start = boxes[layer](state).float(), start.float().clamp(0, 1)
            place = (start.clamp(min=1e-5) / (1 - start).clamp(min=1e-5)).log()
            known = place.shape[-1]  # a point, or a box
            units.append(torch.cat([moved[..., :known] + place, moved[..., known:]], -1).sigmoid())
        nowhere = starts.new_zeros(0, dtype=torch.float32)
        return Outputs(
            torch.cat(logits[::-1], 1),
            matching.pixels(torch.cat(units[::-1], 1), frame),
            nowhere.view(0, 2),
            nowhere,
            answers=asked.shape[1],
            frame=frame,
            asked=asked,
            starts=starts,
            memory=tokens,
            shapes=tuple(shapes),
            states=states[-1].float(),
        )

    def box_weights(self) -> tuple[float, float]:
        config = self.network.config
        return float(config.bbox_loss_coefficient), float(config.giou_loss_coefficient)

    def class_loss(self, logits: Tensor, quality: Tensor, hit: Tensor) -> Tensor:
        """Focal loss (Lin et al., ICCV 2017, arXiv 1708.02002), elementwise."""
        target, p, alpha = hit.to(logits.dtype), logits.sigmoid(), self.network.config.focal_alpha
        apart = torch.where(hit, 1 - p, p)
        weight = torch.where(hit, alpha, 1 - alpha)
        return CLASS_WEIGHT * weight * apart.square() * L.bce(logits, target)


def _trained(backbone: nn.Module) -> None:
    """Normalisations that learn, in place of the constant ones, and layers that do."""
    for name, module in list(backbone.named_modules()):
        if type(module).__name__.endswith("FrozenBatchNorm2d"):
            above, _, leaf = name.rpartition(".")
            constant: Any = module.weight
            setattr(backbone.get_submodule(above), leaf, nn.BatchNorm2d(len(constant)))
    backbone.requires_grad_(True)


def _without_counts(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's constant normalisations have counted no batches."""
    counts = {k: torch.zeros_like(v) for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    return {**counts, **state}
