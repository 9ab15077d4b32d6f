"""What the detectors of the DETR family share: queries from an encoder, a decoder that refines them, matching, losses.

The layers are those of ``transformers``; how they are put together for ciod, the matching and the losses are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.base import Detector, Input
from ciod.detectors.dense import class_targets, in_class_loss
from ciod.detectors.layers.class_layers import ClassLinear, RankedLinear
from ciod.detectors.query import matching

ANCHOR, INSIDE = 0.05, 0.01  # side of an anchor of the finest level, and its least distance to the border, as shares


class QueryDetector(Detector):
    """A detector whose encoder chooses the queries (Zhao et al., CVPR 2024, arXiv 2304.08069).

    ``Outputs`` hold the queries of the decoder's last layer, which are the answers, then those of the earlier layers,
    then the encoder's own predictions at the places it chose. Every set is matched and trained alike.
    """

    traits = frozenset({"query", "first_stage", "features"})
    extra = "detr"
    multi_label = True
    run_defaults: Mapping[str, Any] = {"train.clip": 1.0, "train.weight_decay": 1e-4, "eval.nms_iou": 1.0}
    bounded: ClassVar[bool] = True
    """Whether boxes are always shares between 0 and 1 of the image. Others can be larger, and are clamped to the image
    for training; sides that the network gives a negative length have none."""

    network: Any
    """The model of ``transformers`` without its outer head."""

    def __init__(self, class_names: Sequence[str], settings: dict[str, Any], input_spec: Input):
        super().__init__(class_names, settings, input_spec)
        self.nms_iou = 1.0  # one query per object: nothing to suppress

    def _set_network(self, network: Any) -> None:
        """Takes a network of ``transformers`` over; its class layers are replaced by ones that can grow."""
        width, layers = network.config.d_model, network.config.decoder_layers
        network.enc_score_head = RankedLinear(width, self.num_classes)
        network.decoder.class_embed = nn.ModuleList(ClassLinear(width, self.num_classes) for _ in range(layers))
        self.network = network
        self.train()

    def train(self, mode: bool = True) -> QueryDetector:
        super().train(mode)
        for module in self.network.modules():  # in train mode these look for infinite values, which waits for a GPU
            if type(module).__name__.endswith("EncoderLayer"):
                module.training = False
        return self

    def ask(self, images: Tensor, maps: Sequence[Tensor]) -> Outputs:
        """The answers to the queries that the maps of the encoder give.

        Args:
            images: [B, 3, H, W], only for their shape.
            maps: [B, F, h, w] per level, finest first.
        """
        network = self.network
        more = [maps[-1]] * (len(network.decoder_input_proj) - len(maps))  # coarser levels, made of the coarsest
        sources = [project(m) for project, m in zip(network.decoder_input_proj, [*maps, *more], strict=True)]
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in sources]
        tokens = torch.cat([m.flatten(2) for m in sources], 2).transpose(1, 2)  # [B, T, d]
        anchors, inside = self._anchors(shapes, tokens.device)
        encoded = network.enc_output(tokens * inside)
        logits = network.enc_score_head(encoded).float()
        corrected = network.enc_bbox_head(encoded).float() + anchors
        queries = min(network.config.num_queries, tokens.shape[1])
        chosen = network.enc_score_head.best(logits).topk(queries, dim=1).indices
        first = bx.gather_rows(corrected, chosen)
        sizes = torch.tensor(shapes, device="cpu")  # RT-DETRv2 compares them with the number of tokens
        decoded = self.decode_queries(
            inputs_embeds=bx.gather_rows(encoded, chosen).detach(),
            encoder_hidden_states=tokens,
            reference_points=first.detach(),
            spatial_shapes=sizes,
            spatial_shapes_list=shapes,
            level_start_index=torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]]),
        )
        units = [*decoded.intermediate_reference_points.float().unbind(1)][::-1] + [first.sigmoid()]
        found = [*decoded.intermediate_logits.float().unbind(1)][::-1] + [bx.gather_rows(logits, chosen)]
        units = units if self.bounded else [torch.cat([u[..., :2], u[..., 2:].clamp(min=0)], -1) for u in units]
        frame = (int(images.shape[3]), int(images.shape[2]))
        nowhere = tokens.new_zeros(0, dtype=torch.float32)
        return Outputs(
            torch.cat(found, 1),
            matching.pixels(torch.cat(units, 1), frame),
            nowhere.view(0, 2),
            nowhere,
            features=list(maps),
            answers=queries,
            frame=frame,
            **self.of_decoder(decoded),
        )

    def decode_queries(self, **given: Any) -> Any:
        """What the decoder of ``transformers`` returns, for every layer."""
        return self.network.decoder(**given)

    def of_decoder(self, decoded: Any) -> dict[str, Any]:
        """Further fields of ``Outputs`` that a family's decoder gives."""
        return {}

    @staticmethod
    def _anchors(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """A box around every cell, as logits of its shares of the image [T, 4]; whether it is well inside [T, 1]."""
        found = []
        for level, (height, width) in enumerate(shapes):
            y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
            x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
            side = torch.full((height, width), ANCHOR * 2.0**level, device=device)
            centre = [x.expand(height, width), y[:, None].expand(height, width)]
            found.append(torch.stack([*centre, side, side], -1).flatten(0, 1))
        anchors = torch.cat(found)
        inside = ((anchors > INSIDE) & (anchors < 1 - INSIDE)).all(1, keepdim=True)
        beyond = torch.finfo(torch.float32).max
        return (anchors / (1 - anchors)).log().masked_fill(~inside, beyond), inside

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """See ``matching.hungarian``: it waits for the device once."""
        return matching.hungarian(self._within(outputs), targets)

    def _within(self, outputs: Outputs) -> Outputs:
        """The boxes as they are trained."""
        return outputs if self.bounded else replace(outputs, boxes=matching.inside(outputs))

    def loss(
        self,
        outputs: Outputs,
        targets: Targets,
        matches: Matches,
        *,
        counted: Tensor | None = None,
        channels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """cls (varifocal loss) over all queries except those whose match is not counted; box (5 × L1 of shares of the
        image) and giou (2 × (1 - GIoU)) over counted matches. Each is summed over the sets of queries and divided by
        the number of counted boxes."""
        outputs = self._within(outputs)
        assert outputs.frame is not None
        supervision = L.supervise(outputs, targets, matches, counted, channels)
        sets = outputs.logits.shape[1] // (outputs.answers or outputs.logits.shape[1])
        n = L.normaliser(supervision.counted.sum().float() / sets)
        label = targets.labels.gather(1, matches.target)
        quality = class_targets(outputs.logits, matches, label, matches.iou, supervision.counted)
        hit = class_targets(outputs.logits, matches, label, torch.ones_like(matches.iou), supervision.counted) > 0
        cls = self.class_loss(outputs.logits, quality, hit)
        if supervision.channels is not None:
            cls = cls * supervision.channels
        own = bx.gather_rows(outputs.boxes, matches.position)
        real = bx.gather_rows(targets.boxes, matches.target)
        apart = (matching.shares(own, outputs.frame) - matching.shares(real, outputs.frame)).abs().sum(-1)
        weights = self.network.config
        return {
            "cls": L.masked_sum(cls.sum(2), in_class_loss(matches, supervision)) / n,
            "box": weights.weight_loss_bbox * L.masked_sum(apart, supervision.counted) / n,
            "giou": weights.weight_loss_giou * L.masked_sum(1 - bx.giou(own, real), supervision.counted) / n,
            **self.more_losses(outputs, targets, matches, supervision.counted, n),
        }

    def more_losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor, n: Tensor
    ) -> dict[str, Tensor]:
        """Losses that a family adds.

        Args:
            counted: [B, K] bool, matches that are trained.
            n: boxes of one set of queries, averaged over processes.
        """
        return {}

    def class_loss(self, logits: Tensor, quality: Tensor, hit: Tensor) -> Tensor:
        """Varifocal loss as RT-DETR has it, elementwise: its weight has no gradient, and a match without overlap has
        none.

        Args:
            quality: IoU at the class of a counted match, 0 elsewhere.
            hit: whether it is the class of a counted match.
        """
        config = self.network.config
        gap = config.focal_loss_alpha * logits.detach().sigmoid().pow(config.focal_loss_gamma)
        return config.weight_loss_vfl * L.bce(logits, quality) * torch.where(hit, quality, gap)
