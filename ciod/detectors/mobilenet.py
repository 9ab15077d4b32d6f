"""YOLOX on MobileNetV1 (Howard et al. 2017, arXiv 1704.04861): a small backbone trained on ImageNet, without boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.core.files import is_file
from ciod.detectors.base import Detector, Input
from ciod.detectors.files.checkpoint import read_checkpoint
from ciod.detectors.layers.backbones import Backbone
from ciod.detectors.layers.necks import PAFPN
from ciod.detectors.yolox import YOLOX

# (output channels at width 1, stride) of the 13 separable blocks
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1))
_STAGES = ((0, 3), (3, 5), (5, 11), (11, 13))  # stem and blocks 0-2 end at stride 4, then 8, 16, 32
_HALF = (127.5, 127.5, 127.5)  # 0..255 to [-1, 1]


class SameConv(nn.Module):
    """Convolution, batch normalisation (eps 1e-3), ReLU6, with TensorFlow's "same" padding.

    At stride 2 an even side is padded only at the right and bottom, as in the training of the ImageNet weights.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.act = nn.ReLU6()  # in place it would copy its input, which the backward pass needs
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel > 1:
            height, width = (self._padding(int(n)) for n in x.shape[2:])
            x = F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
        return self.act(self.bn(self.conv(x)))

    def _padding(self, side: int) -> int:
        """Total pixels of padding along a side."""
        return max(0, (-(-side // self.stride) - 1) * self.stride + self.kernel - side)


class Separable(nn.Module):
    """A depthwise 3×3 and a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.dw = SameConv(inputs, inputs, 3, stride, groups=inputs)
        self.pw = SameConv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw(self.dw(x))


class MobileNetV1(Backbone):
    """MobileNetV1 without its classifier, divided into the stages of ``Backbone``.

    Args:
        width: multiplier of all channels; 0.75 gives maps of 192, 384 and 768 channels.
        weights: path to a state dict of ImageNet weights (``conv1.…``, ``blocks.N.dw.…``, ``fc.…``), or None.
        frozen: freeze stem, first stage and statistics even if ``weights`` is None, because they are loaded later.

    Raises:
        CiodError: the file does not exist or contains another network.
    """

    def __init__(self, width: float = 0.75, weights: str | None = None, *, frozen: bool = False):
        super().__init__()
        channels = [int(c * width) for c, _ in BLOCKS]
        before = [int(32 * width), *channels]
        blocks = [Separable(before[i], c, stride) for i, (c, (_, stride)) in enumerate(zip(channels, BLOCKS))]
        self.stem = SameConv(3, before[0], 3, 2)
        self.stage1, self.stage2, self.stage3, self.stage4 = (nn.Sequential(*blocks[a:b]) for a, b in _STAGES)
        self.channels = tuple(channels[end - 1] for _, end in _STAGES[1:])
        self.pretrained = frozen or bool(weights)
        if weights:
            self._load(Path(weights))
        self.hold()

    def _load(self, path: Path) -> None:

        if not is_file(path):
            raise CiodError(f"detector.backbone_weights: there is no file {path}.")
        state = rename(read_checkpoint(path))
        wrong = [k for k, v in self.state_dict().items() if k not in state or state[k].shape != v.shape]
        if wrong:
            raise CiodError(
                f"detector.backbone_weights: {path} is not a MobileNetV1 of this width; {len(wrong)} tensors are "
                f"missing or have another shape, for example {wrong[0]}."
            )
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})


def rename(state: dict[str, Any]) -> dict[str, Any]:
    """``conv1`` and ``blocks.N`` of the weight file → stem and stages; other names are unchanged."""
    place = {}
    for stage, (a, b) in enumerate(_STAGES, 1):
        place |= {f"blocks.{i}.": f"stage{stage}.{i - a}." for i in range(a, b)}
    out = {}
    for key, value in state.items():
        head = next((p for p in place if key.startswith(p)), None)
        out[place[head] + key[len(head) :] if head else key.replace("conv1.", "stem.", 1)] = value
    return out


class YOLOXMobileNet(YOLOX):
    """YOLOX's PAFPN and head, 96 channels wide and depthwise, on MobileNetV1 × 0.75. RGB in [-1, 1]."""

    variants = {"yolox-mobilenet": 0.75}  # noqa: RUF012 (like its base)

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "yolox-mobilenet",
        size: int | None = None,
        backbone_weights: str | None = None,
        frozen: bool = False,
    ):
        if backbone_weights == "imagenet":
            raise CiodError("detector.backbone_weights: there is no download for yolox-mobilenet; give a file.")
        input_spec = Input(size=size or 416, mean=_HALF, std=_HALF)
        settings: dict[str, Any] = {"name": name, "size": input_spec.size}
        Detector.__init__(self, class_names, settings, input_spec)
        self.backbone = MobileNetV1(self.variants[name], backbone_weights, frozen=frozen)
        settings["frozen"] = self.backbone.pretrained
        self.neck = PAFPN(self.backbone.channels, 96, 1, depthwise=True)
        self._add_head(96, depthwise=True)
