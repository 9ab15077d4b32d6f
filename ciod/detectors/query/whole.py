"""Query detectors whose whole network is one of ``transformers``: our small variants, and ``hf:FOLDER``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.data.augment import Placement
from ciod.detectors.base import Input
from ciod.detectors.layers.backbones import load_resnet
from ciod.detectors.query import configs, hf
from ciod.detectors.query.detector import QueryDetector

FINE_TUNED: Mapping[str, Any] = {"train.clip": 0.1, "train.weight_decay": 1e-4, "eval.nms_iou": 1.0}
"""``run_defaults`` of a checkpoint: its authors' recipes clip so."""


class WholeDetector(QueryDetector):
    """A detector on its own backbone and encoder. ``settings`` are the keyword arguments of ``build``; of ``hf:FOLDER``
    they hold the configuration and how pictures are given, so that a model file is enough.

    Args:
        name: a variant; or ``hf:FOLDER``, or ``hf:OWNER/NAME`` of huggingface.co.
        size: side of the input in pixels.
        backbone_weights: ``random`` for a network that is trained from nothing; only then batch normalisation of the
            backbone is trained.
        frozen: the backbone's stem, first stage and normalisations are fixed, because its weights are loaded later.
        config: configuration as JSON, instead of reading ``name``.
        mean, std, place: with ``config``, how pictures are given; see ``Input``.

    Raises:
        CiodError: ``transformers`` is not installed, no such folder, or it holds another kind of network.
    """

    model_type: ClassVar[str]

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "",
        size: int | None = None,
        backbone_weights: str | None = None,
        config: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        place: Placement | None = None,
        frozen: bool = False,
    ):
        name = name or next(iter(self.variants))
        pretrained = self.default_backbone(name) is not None
        if backbone_weights not in (None, "random") and not pretrained:
            raise CiodError(f"detector.backbone_weights: {name} takes none; write weights=FILE for a whole model.")
        input_spec = self.input_of_variant(name, size)
        settings: dict[str, Any] = {"name": name, "size": input_spec.size}
        found = self.variants.get(name)
        if name.startswith(configs.PREFIX):
            given: dict[str, Any] = {"config": config, "size": size, "mean": mean, "std": std, "place": place}
            settings = {"name": name, **given} if config is not None else hf.settings_of(name)
            settings["size"] = size or settings["size"]
            found = _checked(settings["config"], name)
            if backbone_weights == "random":
                found["freeze_backbone_batch_norms"] = False
                settings["config"] = json.dumps(found)
            input_spec = hf.input_from(settings)
        assert found is not None
        resnet = None
        if pretrained:
            resnet = None if frozen or backbone_weights in (None, "random") else self.resnet(str(backbone_weights))
            settings["frozen"] = frozen or resnet is not None
            found = {**found, configs.TRAINED: settings["frozen"]}
        step = configs.multiple(found)
        if input_spec.size % step:
            raise CiodError(f"size={input_spec.size}: {name} takes a multiple of {step} pixels.")
        super().__init__(class_names, settings, input_spec)
        if name.startswith(configs.PREFIX):
            self.run_defaults = FINE_TUNED
        self.config = found
        built = configs.configuration(found, ["one"], name)
        model = configs.network(built, name)
        if resnet is not None:
            fill_resnet(model.model.backbone.model, resnet)
        self._set_network(self.inner(model))

    def input_of_variant(self, name: str, size: int | None) -> Input:
        return Input(size=size or 192, std=(255.0, 255.0, 255.0), fill=0.0)

    def resnet(self, weights: str) -> nn.Module | None:
        """torchvision's ResNet-50 with ``weights``; None: the download failed, with a warning."""
        net = torchvision.models.resnet50(weights=None)
        return net if load_resnet(net, 50, weights) else None

    def own_name(self, key: str) -> str:
        """The name in ``network`` of a tensor that is not of a class layer, from its name in ``transformers``."""
        return key

    def inner(self, model: Any) -> Any:
        """The part of a whole model of ``transformers`` that becomes ``network``."""
        return model.model

    def tensors_of(self, model: Any) -> dict[str, Tensor]:
        """The tensors of a whole model of ``transformers`` under their names in ``network``; they share its memory."""
        return {self.own_name(key): value for key, value in model.model.state_dict().items()}

    @staticmethod
    def separate(model: Any) -> None:
        """Gives layers of a whole model of ``transformers`` that share tensors their own, as this detector has them."""


@torch.no_grad()
def fill_resnet(backbone: nn.Module, resnet: nn.Module) -> None:
    """The weights of torchvision's ResNet into the one of ``transformers``, which has other names for them."""
    state, layers = resnet.state_dict(), {"conv": "convolution", "bn": "normalization"}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] in ("conv1", "bn1"):
            found[f"embedder.embedder.{layers[parts[0][:-1]]}.{parts[1]}"] = value
        elif parts[0].startswith("layer"):
            stage, block, layer = int(parts[0][5:]) - 1, parts[1], parts[2]
            if layer == "downsample":
                place = f"shortcut.{('convolution', 'normalization')[int(parts[3])]}"
            else:
                place = f"layer.{int(layer[-1]) - 1}.{layers[layer[:-1]]}"
            found[f"encoder.stages.{stage}.layers.{block}.{place}.{parts[-1]}"] = value
    wanted = backbone.state_dict().keys()
    backbone.load_state_dict({k: v for k, v in found.items() if k in wanted})


def _checked(text: str, name: str) -> dict[str, Any]:
    """A configuration of a model file, checked like one of a folder."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CiodError(
            f"{name}: the configuration in its settings is not JSON. Use a copy of the model, if there is one."
        )
    return configs.plain(found, name)
