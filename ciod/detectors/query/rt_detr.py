"""RT-DETR (Zhao et al., CVPR 2024, arXiv 2304.08069) and RT-DETRv2 (Lv et al. 2024, arXiv 2407.17140)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.core.types import Outputs
from ciod.detectors.base import Input
from ciod.detectors.layers import backbones
from ciod.detectors.layers.necks import PAFPN
from ciod.detectors.query import configs
from ciod.detectors.query.encoder import EncoderQueries
from ciod.detectors.query.whole import WholeDetector
from ciod.detectors.staged import StagedDetector

DECODER: dict[str, Any] = {
    "d_model": 64,
    "decoder_in_channels": [64, 64, 64],
    "decoder_layers": 2,
    "decoder_ffn_dim": 128,
    "decoder_attention_heads": 4,
    "num_queries": 50,
    "encoder_hidden_dim": 64,
    "encoder_ffn_dim": 128,
    "encoder_attention_heads": 4,
    "hidden_expansion": 0.5,
}
PICO: dict[str, Any] = {
    "model_type": "rt_detr",
    "freeze_backbone_batch_norms": False,
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "out_indices": [2, 3, 4],
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
    "encoder_in_channels": [32, 64, 128],
    **DECODER,
}


class HybridEncoder(EncoderQueries, WholeDetector):
    """RT-DETR and those that follow it, on the backbone and the encoder of their network."""

    def forward(self, images: Tensor) -> Outputs:
        return self.answered(images, self.encode(self.normalise(images)))

    def encode(self, images: Tensor) -> Sequence[Tensor]:
        """Normalised images → maps [B, F, h, w] of the encoder, finest first."""
        maps = self.network.backbone.model(images).feature_maps
        projected = [project(m) for project, m in zip(self.network.encoder_input_proj, maps, strict=True)]
        return self.network.encoder(projected).last_hidden_state

    def trunk(self) -> list[nn.Module]:
        return [self.network.backbone, self.network.encoder_input_proj, self.network.encoder]


class RTDETR(HybridEncoder):
    """RT-DETR on its own backbone and hybrid encoder."""

    variants: ClassVar[Mapping[str, Any]] = {
        "rtdetr-pico": PICO
    }  # ours: for demonstrations and small machines; no official weights
    model_type = "rt_detr"


class RTDETRv2(HybridEncoder):
    """RT-DETRv2: the decoder's attention samples other numbers of points per level."""

    variants: ClassVar[Mapping[str, Any]] = {"rtdetrv2-pico": {**PICO, "model_type": "rt_detr_v2"}}
    model_type = "rt_detr_v2"


class RTDETRCSP(EncoderQueries, StagedDetector):
    """RT-DETR's decoder on the trunk of YOLOX-nano, whose weights fit: ``weights=yolox_nano.pth``."""

    variants: ClassVar[Mapping[str, Any]] = {
        "rtdetr-csp-pico": (0.33, 0.25, True)
    }  # deepen, widen, depthwise: see yolox.VARIANTS

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "rtdetr-csp-pico",
        size: int | None = None,
        backbone_weights: str | None = None,
    ):
        if backbone_weights not in (None, "random"):
            raise CiodError(f"detector.backbone_weights: {name} takes none; write weights=FILE for a whole model.")
        input_spec = Input(size=size or 192, bgr=True)
        super().__init__(class_names, {"name": name, "size": input_spec.size}, input_spec)
        deepen, widen, depthwise = self.variants[name]
        self.backbone = backbones.build((deepen, widen, depthwise))
        self.neck = PAFPN(self.backbone.channels, int(256 * widen), round(3 * deepen), depthwise=depthwise)
        network = configs.network(configs.configuration(PICO, ["one"], name), name).model
        del network.backbone, network.encoder_input_proj, network.encoder
        self._set_network(network)

    def respond(self, images: Tensor, maps: list[Tensor], features: list[Tensor]) -> Outputs:
        return self.answered(images, features)
