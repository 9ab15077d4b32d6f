"""What the detectors of the DETR family share: matching and losses. How they find their queries is in the subclasses.

The layers are those of ``transformers``; how they are put together for ciod, the matching and the losses are here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.errors import CiodError
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.base import Detector, Input
from ciod.detectors.dense import class_targets, in_class_loss
from ciod.detectors.query import matching


class QueryDetector(Detector):
    """A detector that answers queries.

    ``Outputs`` hold the queries of the decoder's last layer, which are the answers, then those of the earlier layers,
    then what the encoder predicts, if it does. Every set is matched and trained alike.
    """

    traits = frozenset({"query", "features"})
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

    @abstractmethod
    def _set_network(self, network: Any) -> None:
        """Takes a network of ``transformers`` over; its class layers are replaced by ones that can grow."""

    def train(self, mode: bool = True) -> QueryDetector:
        super().train(mode)
        for module in self.network.modules():  # in train mode these look for infinite values, which waits for a GPU
            if type(module).__name__.endswith("EncoderLayer"):
                module.training = False
        return self

    def decode_at(self, outputs: Outputs, asked: Tensor, starts: Tensor) -> Outputs:
        """What the decoder answers to queries that another detector had, looking at this one's picture (trait
        ``given_queries``).

        Args:
            outputs: of this detector, for the same pictures.
            asked, starts: those of the other one's ``Outputs``.

        Returns:
            Sets of the decoder's layers, the last one first; query i of each is query i of the other detector.

        Raises:
            CiodError: the detector does not have that trait.
        """
        raise CiodError(
            f"{self.settings['name']} takes no queries of another detector: query_kd and sikd cannot use it. "
            "Choose another method or detector."
        )

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """See ``matching.hungarian``: it waits for the device once."""
        return matching.hungarian(self._within(outputs), targets)

    def _within(self, outputs: Outputs) -> Outputs:
        """The boxes as they are trained."""
        return outputs if self.bounded else replace(outputs, boxes=matching.inside(outputs))

    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """cls (varifocal loss) over all queries except those whose match is not counted; box (5 × L1 of shares of the
        image) and giou (2 × (1 - GIoU)) over counted matches. Each is summed over the sets of queries and divided by
        the number of counted boxes."""
        outputs = self._within(outputs)
        assert outputs.frame is not None
        sets = outputs.logits.shape[1] // (outputs.answers or outputs.logits.shape[1])
        n = self.groups_in(sets) * L.normaliser(supervision.counted.sum().float() / sets)
        label = targets.labels.gather(1, matches.target)
        quality = class_targets(outputs.logits, matches, label, matches.iou, supervision.counted)
        hit = class_targets(outputs.logits, matches, label, torch.ones_like(matches.iou), supervision.counted) > 0
        cls = self.class_loss(outputs.logits, quality, hit)
        if supervision.channels is not None:
            cls = cls * supervision.channels
        found = {"cls": L.masked_sum(cls.sum(2), in_class_loss(matches, supervision)) / n}
        matches, placed, n = self.box_matches(outputs, targets, matches, supervision.counted, n)
        own = bx.gather_rows(outputs.boxes, matches.position)
        real = bx.gather_rows(targets.boxes, matches.target)
        apart = (matching.shares(own, outputs.frame) - matching.shares(real, outputs.frame)).abs().sum(-1)
        l1, giou = self.box_weights()
        return found | {
            "box": l1 * L.masked_sum(apart, placed) / n,
            "giou": giou * L.masked_sum(1 - bx.giou(own, real), placed) / n,
            **self.more_losses(outputs, targets, matches, placed, n),
        }

    def groups_in(self, sets: int) -> int:
        """Groups of queries that so many sets are of; losses are means over groups, and sums over the sets of each."""
        return 1

    def box_matches(
        self, outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor, n: Tensor
    ) -> tuple[Matches, Tensor, Tensor]:
        """The matches by which boxes are trained, which of them count, and the divisor of their losses.

        Args:
            counted: [B, K] bool, matches that are trained.
            n: boxes of one set of queries, averaged over processes.
        """
        return matches, counted, n

    def box_weights(self) -> tuple[float, float]:
        """Weights of the L1 distance and of GIoU."""
        config = self.network.config
        return config.weight_loss_bbox, config.weight_loss_giou

    def more_losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor, n: Tensor
    ) -> dict[str, Tensor]:
        """Losses that a family adds. The arguments are those of ``box_matches``, and ``n`` is its divisor."""
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
