"""D-FINE (Peng et al., ICLR 2025, arXiv 2410.13842) and DEIMv2 (Huang et al. 2025, arXiv 2509.20787)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ciod.core import losses as L
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.query import distribution as fine
from ciod.detectors.query import matching
from ciod.detectors.query.rt_detr import DECODER, HybridEncoder

PICO: dict[str, Any] = {
    "model_type": "d_fine",
    "freeze_backbone_batch_norms": False,
    "backbone_config": {
        "model_type": "hgnet_v2",
        "out_indices": [2, 3, 4],
        "embedding_size": 16,
        "hidden_sizes": [32, 64, 96, 128],
        "depths": [1, 1, 1, 1],
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 32, 64, 96],
        "stage_mid_channels": [16, 16, 24, 32],
        "stage_out_channels": [32, 64, 96, 128],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False, False, True, True],
        "stage_kernel_size": [3, 3, 5, 5],
        "stage_numb_of_layers": [2, 2, 2, 2],
        "use_learnable_affine_block": True,
    },
    "encoder_in_channels": [64, 96, 128],
    "depth_mult": 0.34,
    **DECODER,
}


class Shared(nn.Module):
    """One head that all layers of a decoder have, without a name for each of them."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def __getitem__(self, layer: int) -> nn.Module:
        return self.head


class DFINE(HybridEncoder):
    """D-FINE: each side of a box is a distribution of its distance, which every layer of the decoder refines.

    Sets of queries are those of RT-DETR and, before the encoder's, the boxes that the first layer starts from.
    """

    variants: ClassVar[Mapping[str, Any]] = {
        "dfine-pico": PICO
    }  # ours: for demonstrations and small machines; no official weights
    model_type = "d_fine"
    traits = HybridEncoder.traits | {"box_distribution"}
    bounded = False

    def _set_network(self, network: Any) -> None:
        decoder = network.decoder
        for name in ("up", "reg_scale"):  # constants, which no optimiser must see
            value = getattr(decoder, name).detach()
            delattr(decoder, name)
            decoder.register_buffer(name, value)
        if getattr(network.config, "share_bbox_head", False):
            decoder.bbox_embed = Shared(decoder.bbox_embed[0])
        super()._set_network(network)

    def own_name(self, key: str) -> str:
        before, shared, layer = key.partition("decoder.bbox_embed.")
        if shared and isinstance(self.network.decoder.bbox_embed, Shared):
            return f"{before}{shared}head.{layer.partition('.')[2]}"
        return key

    def decode_queries(self, decoder: Any, **given: Any) -> Any:
        mode, decoder.training = decoder.training, True  # else the last layer alone answers; its layers keep their mode
        try:
            return decoder(**given)
        finally:
            decoder.training = mode

    def of_decoder(self, decoded: Any) -> dict[str, Any]:
        corners = decoded.intermediate_predicted_corners.float().unflatten(-1, (4, -1))  # [B, L, Q, 4, R]
        refs = decoded.initial_reference_points.float()  # [B, L, Q, 4]
        return {"distribution": corners.flip(1).flatten(1, 2), "refs": refs.flip(1).flatten(1, 2)}

    def box_matches(
        self, outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor, n: Tensor
    ) -> tuple[Matches, Tensor, Tensor]:
        """The union of the matches of all sets (GO-LSD), unless a configuration of DEIMv2 says otherwise."""
        if not getattr(self.network.config, "use_dense_one_to_one", True):
            return matches, counted, n
        matches, counted = matching.union(outputs, targets, matches, counted)
        sets = outputs.logits.shape[1] // (outputs.answers or outputs.logits.shape[1])
        return matches, counted, L.normaliser(counted.sum().float() / sets)

    def more_losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor, n: Tensor
    ) -> dict[str, Tensor]:
        """fgl (fine-grained localisation) of every layer's distributions and ddf (decoupled distillation focal loss),
        by which each earlier layer learns those of the last one. See ``distribution``."""
        config = self.network.config
        fgl = fine.localisation(outputs, targets, matches, counted, config.up * config.reg_scale, config.reg_scale)
        ddf = fine.distillation(outputs, matches, counted)
        return {"fgl": config.weight_loss_fgl * fgl / n, "ddf": config.weight_loss_ddf * ddf}


class DEIMv2(DFINE):
    """DEIMv2: D-FINE with a leaner decoder and a class loss that is aware of the match (MAL).

    Its smallest sizes, with the light encoder, are trained without the losses of distributions, as by their authors.
    """

    variants: ClassVar[Mapping[str, Any]] = {
        "deimv2-pico": {**PICO, "model_type": "deimv2", "focal_loss_gamma": 1.5}
    }  # ours, and not the size that its authors call Pico
    model_type = "deimv2"

    def encode(self, images: Tensor) -> Sequence[Tensor]:
        return self.network.encoder(self.network.conv_encoder(images)).feature_maps

    def trunk(self) -> list[nn.Module]:
        return [self.network.conv_encoder, self.network.encoder]

    def class_loss(self, logits: Tensor, quality: Tensor, hit: Tensor) -> Tensor:
        """Match-aware loss (Huang et al., CVPR 2025, arXiv 2412.04234): the target is a power of the IoU, the weight of
        a match is 1."""
        config = self.network.config
        gap = logits.detach().sigmoid().pow(config.focal_loss_gamma)
        gap = gap if config.mal_alpha is None else config.mal_alpha * gap
        weight = torch.where(hit, torch.ones_like(gap), gap)
        return config.weight_loss_mal * weight * L.bce(logits, quality.pow(config.focal_loss_gamma))

    def more_losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor, n: Tensor
    ) -> dict[str, Tensor]:
        if self.network.config.encoder_type == "lite":
            return {}
        return super().more_losses(outputs, targets, matches, counted, n)
