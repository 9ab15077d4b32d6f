"""Query detectors whose whole network is one of ``transformers``: our small variants, and ``hf:FOLDER``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.core.types import Outputs
from ciod.data.augment import Placement
from ciod.detectors.base import Input
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
    ):
        name = name or next(iter(self.variants))
        if backbone_weights not in (None, "random"):
            raise CiodError(f"detector.backbone_weights: {name} takes none; write weights=FILE for a whole model.")
        settings: dict[str, Any] = {"name": name, "size": size or 192}
        input_spec = Input(size=size or 192, std=(255.0, 255.0, 255.0), fill=0.0)
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
        super().__init__(class_names, settings, input_spec)
        if name.startswith(configs.PREFIX):
            self.run_defaults = FINE_TUNED
        self.config = found
        built = configs.configuration(found, ["one"], name)
        self._set_network(configs.network(built, name).model)

    def own_name(self, key: str) -> str:
        """The name in ``network`` of a tensor that is no class layer, from its name in ``transformers``."""
        return key

    def forward(self, images: Tensor) -> Outputs:
        return self.ask(images, self.encode(self.normalise(images)))

    def encode(self, images: Tensor) -> Sequence[Tensor]:
        """Normalised images → maps [B, F, h, w] of the encoder, finest first."""
        maps = self.network.backbone.model(images).feature_maps
        projected = [project(m) for project, m in zip(self.network.encoder_input_proj, maps, strict=True)]
        return self.network.encoder(projected).last_hidden_state

    def trunk(self) -> list[nn.Module]:
        return [self.network.backbone, self.network.encoder_input_proj, self.network.encoder]


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
