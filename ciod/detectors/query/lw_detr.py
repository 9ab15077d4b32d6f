"""LW-DETR (Chen et al. 2024, arXiv 2406.03459) and RF-DETR (Robinson et al. 2025, arXiv 2511.09554)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ciod.core import boxes as bx
from ciod.core.types import Outputs
from ciod.detectors.layers.class_layers import ClassLinear, RankedLinear
from ciod.detectors.query import matching
from ciod.detectors.query.branches import QueryBranches, head_of
from ciod.detectors.query.encoder import cell_boxes
from ciod.detectors.query.whole import WholeDetector

GAMMA, LEAST = 2.0, 0.01  # of the class loss: focus of negatives, least target of a match
DECODER: dict[str, Any] = {
    "d_model": 64,
    "decoder_layers": 2,
    "decoder_ffn_dim": 128,
    "decoder_n_points": 2,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "num_queries": 50,
    "group_detr": 3,
    "c2f_num_blocks": 1,
    "dropout": 0.0,
}
PICO: dict[str, Any] = {
    "model_type": "lw_detr",
    "backbone_config": {
        "model_type": "lw_detr_vit",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 192,
        "pretrain_image_size": 192,
        "num_windows": 4,
        "window_block_indices": [0, 1],
        "out_indices": [1, 3],
    },
    "projector_scale_factors": [2.0, 1.0, 0.5],
    **DECODER,
}
RF_PICO: dict[str, Any] = {
    "model_type": "rf_detr",
    "backbone_config": {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 192,
        "patch_size": 8,
        "num_windows": 2,
        "use_mask_token": False,
        "out_indices": [1, 3],
    },
    **DECODER,
}


class LWDETR(QueryBranches, WholeDetector):
    """LW-DETR: an encoder chooses the first boxes, and what a query asks for is learnt, by its rank among them.

    In train mode there are several groups of queries (Group DETR, arXiv 2207.13085), each with the sets of queries of
    all layers and of the encoder; in eval mode there is the first group alone. Losses are means over groups.
    """

    variants: ClassVar[Mapping[str, Any]] = {
        "lwdetr-pico": PICO
    }  # ours: for demonstrations and small machines; no official weights
    model_type = "lw_detr"
    traits = QueryBranches.traits | {"first_stage"}

    def inner(self, model: Any) -> Any:
        network = model.model
        network.bbox_embed = model.bbox_embed
        backbone = network.backbone.backbone
        unused = backbone.encoder.layer[
            max(backbone.config.out_indices) :
        ]  # they answer nothing, so they learn nothing
        unused.requires_grad_(False)
        if getattr(backbone.embeddings, "mask_token", None) is not None:
            backbone.embeddings.mask_token.requires_grad_(False)
        return network

    def _set_network(self, network: Any) -> None:
        config = network.config
        network.class_embed = ClassLinear(config.d_model, self.num_classes)
        groups = (RankedLinear(config.d_model, self.num_classes) for _ in range(config.group_detr))
        network.enc_out_class_embed = nn.ModuleList(groups)
        self.network = network
        self.start_parts(config.num_queries)
        self.train()

    def copy_head(self, queries: int) -> nn.Module:
        """With as many groups of queries, of each the first ones."""
        encoder = ("enc_output", "enc_output_norm", "enc_out_bbox_embed", "enc_out_class_embed")
        tables = ("query_feat", "reference_point_embed")
        head = head_of(self.network, (*encoder, *tables, "decoder", "class_embed", "bbox_embed"), queries)
        for name in tables:
            old = getattr(self.network, name).weight.detach().unflatten(0, (-1, self.network.config.num_queries))
            setattr(head, name, nn.Embedding.from_pretrained(old[:, :queries].flatten(0, 1).clone(), freeze=False))
        return head

    def tensors_of(self, model: Any) -> dict[str, Tensor]:
        return {key.removeprefix("model."): value for key, value in model.state_dict().items()}

    def trunk(self) -> list[nn.Module]:
        return [self.network.backbone]

    def encode(self, images: Tensor) -> list[Tensor]:
        """Normalised images → maps [B, d, h, w], finest first."""
        both = self.network.backbone
        with _same_positions(both.backbone.embeddings):
            maps = both.backbone(images).feature_maps
        found = both.projector(maps)
        return [found] if isinstance(found, Tensor) else list(found)

    def forward(self, images: Tensor) -> Outputs:
        return self.answered(images, self.encode(self.normalise(images)))

    @property
    def groups(self) -> int:
        """Number of groups of queries: ``group_detr`` in train mode, 1 in eval mode."""
        return self._groups_of(self.network)

    @staticmethod
    def _groups_of(head: Any) -> int:
        """Attention splits its queries by its own flag."""
        return head.config.group_detr if head.decoder.layers[0].self_attn.training else 1

    def ask(self, images: Tensor, maps: Sequence[Tensor], head: Any) -> Outputs:
        network, groups = head, self._groups_of(head)
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        tokens = torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2)  # [B, T, d]
        queries = min(network.config.num_queries, tokens.shape[1])
        proposals, inside = _proposals(shapes, tokens.device)
        seen = tokens * inside
        chosen = [self._choose(network, group, seen, proposals, inside, queries) for group in range(groups)]
        first, first_logits = torch.stack([c[0] for c in chosen], 1), torch.stack([c[1] for c in chosen], 1)
        content, moves = (
            table.weight.unflatten(0, (-1, network.config.num_queries))[:groups, :queries].flatten(0, 1)
            for table in (network.query_feat, network.reference_point_embed)
        )
        refs = refined(first.detach().flatten(1, 2), moves.float())
        sizes = torch.tensor(shapes, device="cpu")  # a reference is a box: attention reads sizes from the list alone
        decoded = network.decoder(
            inputs_embeds=content.repeat(tokens.shape[0], 1, 1),
            reference_points=refs,
            spatial_shapes=sizes,
            spatial_shapes_list=shapes,
            level_start_index=torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]]),
            valid_ratios=tokens.new_ones(tokens.shape[0], len(shapes), 2),
            encoder_hidden_states=tokens,
        )
        states = decoded.intermediate_hidden_states.transpose(0, 1).flip(
            1
        )  # [B, L, groups × Q, d], the last layer first
        units = refined(refs[:, None], network.bbox_embed(states).float())
        frame = (int(images.shape[3]), int(images.shape[2]))
        nowhere = tokens.new_zeros(0, dtype=torch.float32)
        return Outputs(
            self._sets(network.class_embed(states).float(), first_logits),
            matching.pixels(self._sets(units, first), frame),
            nowhere.view(0, 2),
            nowhere,
            features=list(maps),
            answers=queries,
            frame=frame,
        )

    @staticmethod
    def _choose(
        network: Any, group: int, tokens: Tensor, proposals: Tensor, inside: Tensor, queries: int
    ) -> tuple[Tensor, Tensor]:
        """Boxes [B, Q, 4] and logits [B, Q, C] of the encoder at the places that it chooses for a group."""
        encoded = network.enc_output_norm[group](network.enc_output[group](tokens))
        head = network.enc_out_class_embed[group]
        logits = head(encoded).float()
        boxes = refined(proposals, network.enc_out_bbox_embed[group](encoded).float())
        best = head.best(logits).masked_fill(~inside[:, 0], -torch.inf)
        places = best.topk(queries, dim=1).indices
        return bx.gather_rows(boxes, places), bx.gather_rows(logits, places)

    def _sets(self, of_layers: Tensor, of_encoder: Tensor) -> Tensor:
        """[B, L, groups × Q, n] and [B, groups, Q, n] → [B, groups × (L + 1) × Q, n]: by group, the encoder last."""
        groups, queries, columns = of_encoder.shape[1:]
        each = of_layers.reshape(*of_layers.shape[:2], groups, queries, columns).transpose(1, 2)
        sets = torch.cat([each, of_encoder[:, :, None]], 2)
        return sets.reshape(sets.shape[0], groups * sets.shape[2] * queries, columns)  # in a graph, of any batch

    def groups_in(self, sets: int) -> int:
        return sets // (self.network.config.decoder_layers + 1)

    def box_weights(self) -> tuple[float, float]:
        config = self.network.config
        return float(config.bbox_loss_coefficient), float(config.giou_loss_coefficient)

    def class_loss(self, logits: Tensor, quality: Tensor, hit: Tensor) -> Tensor:
        """IoU-aware cross-entropy (Cai et al., ICCV 2023, as LW-DETR has it, section 3.2), elementwise: the target of a
        match is p^α × IoU^(1-α), and others are weighed by p²."""
        config = self.network.config
        p, alpha = logits.sigmoid(), config.focal_alpha
        target = (p.detach().pow(alpha) * quality.pow(1 - alpha)).clamp(min=LEAST)
        yes, no = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
        matched = -target * yes - (1 - target) * no
        return config.class_loss_coefficient * torch.where(hit, matched, -p.pow(GAMMA) * no)


class RFDETR(LWDETR):
    """RF-DETR: LW-DETR on a DINOv2 whose attention has windows, with one level."""

    variants: ClassVar[Mapping[str, Any]] = {"rfdetr-pico": RF_PICO}
    model_type = "rf_detr"


def refined(start: Tensor, move: Tensor) -> Tensor:
    """Boxes [..., 4] (centre and sides as shares of the image), moved by shares of their sides and scaled by powers of
    e."""
    return torch.cat([move[..., :2] * start[..., 2:] + start[..., :2], move[..., 2:].exp() * start[..., 2:]], -1)


def _proposals(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """A box around every cell [T, 4], 0 near the border of the image; whether it is well inside [T, 1]."""
    proposals, inside = cell_boxes(shapes, device)
    return proposals * inside, inside


@contextmanager
def _same_positions(embeddings: Any) -> Iterator[None]:
    """While a graph is traced for ONNX, vectors of positions are constants: it has no operator that resizes them as
    torch does, and its pictures have one size."""
    tracer: Any = torch._C
    state = tracer._get_tracing_state()
    if state is None:
        yield
        return
    name = "interpolate_pos_encoding" if hasattr(embeddings, "interpolate_pos_encoding") else "get_absolute_positions"
    plain = getattr(embeddings, name)

    def constant(*given: Any) -> Tensor:
        tracer._set_tracing_state(None)
        try:
            return plain(*(int(v) if i >= len(given) - 2 else v for i, v in enumerate(given))).detach()
        finally:
            tracer._set_tracing_state(state)

    setattr(embeddings, name, constant)
    try:
        yield
    finally:
        delattr(embeddings, name)
