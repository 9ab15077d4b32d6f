"""Queries that an encoder chooses: the places of its best class scores (RT-DETR, Zhao et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ciod.core import boxes as bx
from ciod.core.types import Outputs
from ciod.detectors.layers.class_layers import ClassLinear, RankedLinear
from ciod.detectors.query import matching
from ciod.detectors.query.branches import QueryBranches, head_of

ANCHOR, INSIDE = 0.05, 0.01  # side of an anchor of the finest level, and its least distance to the border, as shares


class EncoderQueries(QueryBranches):
    """A detector whose encoder chooses the queries (arXiv 2304.08069).

    The last set of ``Outputs`` is the encoder's own predictions at the places it chose.
    """

    traits = QueryBranches.traits | {"first_stage", "given_queries"}

    def _set_network(self, network: Any) -> None:
        """Takes a network of ``transformers`` over; its class layers are replaced by ones that can grow."""
        width, layers = network.config.d_model, network.config.decoder_layers
        network.enc_score_head = RankedLinear(width, self.num_classes)
        network.decoder.class_embed = nn.ModuleList(ClassLinear(width, self.num_classes) for _ in range(layers))
        self.network = network
        self.start_parts(network.config.num_queries)
        self.train()

    def copy_head(self, queries: int) -> nn.Module:
        parts = ("decoder_input_proj", "enc_output", "enc_score_head", "enc_bbox_head", "decoder")
        return head_of(self.network, parts, queries)

    def ask(self, images: Tensor, maps: Sequence[Tensor], head: Any) -> Outputs:
        """See ``QueryBranches``: the queries are the places that the encoder chooses."""
        network = head
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
        content = bx.gather_rows(encoded, chosen).detach()
        frame = (int(images.shape[3]), int(images.shape[2]))
        of_encoder = (bx.gather_rows(logits, chosen), first.sigmoid())
        outputs = self._decoded(network, content, first.detach(), tokens, shapes, frame, [of_encoder])
        return replace(outputs, features=list(maps), asked=chosen, first=logits)

    def decode_at(self, outputs: Outputs, asked: Tensor, starts: Tensor) -> Outputs:
        assert outputs.memory is not None and outputs.frame is not None
        _, inside = self._anchors(outputs.shapes, outputs.memory.device)
        content = self.network.enc_output(bx.gather_rows(outputs.memory * inside, asked)).detach()  # as in training
        return self._decoded(self.network, content, starts, outputs.memory, outputs.shapes, outputs.frame, [])

    def _decoded(
        self,
        head: Any,
        content: Tensor,
        starts: Tensor,
        tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        frame: tuple[int, int],
        more: Sequence[tuple[Tensor, Tensor]],
    ) -> Outputs:
        """The sets of the decoder's layers, the last one first, then ``more``: logits, and boxes as shares."""
        sizes = torch.tensor(shapes, device="cpu")  # RT-DETRv2 compares them with the number of tokens
        decoded = self.decode_queries(
            head.decoder,
            inputs_embeds=content,
            encoder_hidden_states=tokens,
            reference_points=starts,
            spatial_shapes=sizes,
            spatial_shapes_list=list(shapes),
            level_start_index=torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]]),
        )
        units = [*decoded.intermediate_reference_points.float().unbind(1)][::-1] + [u for _, u in more]
        found = [*decoded.intermediate_logits.float().unbind(1)][::-1] + [z for z, _ in more]
        units = units if self.bounded else [torch.cat([u[..., :2], u[..., 2:].clamp(min=0)], -1) for u in units]
        nowhere = tokens.new_zeros(0, dtype=torch.float32)
        return Outputs(
            torch.cat(found, 1),
            matching.pixels(torch.cat(units, 1), frame),
            nowhere.view(0, 2),
            nowhere,
            answers=content.shape[1],
            frame=frame,
            starts=starts,
            memory=tokens,
            shapes=tuple(shapes),
            **self.of_decoder(decoded),
        )

    def decode_queries(self, decoder: Any, **given: Any) -> Any:
        """What a decoder of ``transformers`` returns, for every layer."""
        return decoder(**given)

    def of_decoder(self, decoded: Any) -> dict[str, Any]:
        """Further fields of ``Outputs`` that a family's decoder gives."""
        return {}

    @staticmethod
    def _anchors(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """The boxes of ``cell_boxes`` as logits [T, 4]; whether each is well inside [T, 1]."""
        anchors, inside = cell_boxes(shapes, device)
        beyond = torch.finfo(torch.float32).max
        return (anchors / (1 - anchors)).log().masked_fill(~inside, beyond), inside


def cell_boxes(shapes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """A box around every cell of every level, from which the encoder's predictions start.

    Args:
        shapes: height and width of each level, in cells.

    Returns:
        Centre and sides as shares of the image [T, 4], and whether the box is well inside the image [T, 1].
    """
    found = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        side = torch.full((height, width), ANCHOR * 2.0**level, device=device)
        centre = [x.expand(height, width), y[:, None].expand(height, width)]
        found.append(torch.stack([*centre, side, side], -1).flatten(0, 1))
    boxes = torch.cat(found)
    return boxes, ((boxes > INSIDE) & (boxes < 1 - INSIDE)).all(1, keepdim=True)
