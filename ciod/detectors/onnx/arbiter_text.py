"""The statistics of an arbiter as text, for the metadata of an ONNX file."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from ciod.core.errors import CiodError
from ciod.detectors.base import Detector
from ciod.detectors.layers.arbiter import Arbiter


def encode(arbiter: Arbiter) -> str:
    """The statistics of an arbiter as text."""
    state = {k: v.detach().cpu().contiguous() for k, v in arbiter.state_dict().items()}
    return base64.b64encode(save(state)).decode("ascii")


def decode(detector: Detector, content: str, path: Path) -> None:
    """Gives the detector the arbiter of its file.

    Args:
        content: as ``encode`` made it.
        path: the file, for messages.

    Raises:
        CiodError: the statistics do not fit the classes and maps of the file.
    """
    try:
        state = load(base64.b64decode(content, validate=True))
        detector.add_arbiter(len(state["count"]))
        assert detector.arbiter is not None
        detector.arbiter.load_state_dict(state)
    except (binascii.Error, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CiodError(
            f"{path} is damaged: the arbiter's statistics in its metadata do not fit its classes and maps. Use "
            "a copy as ciod wrote it, if there is one."
        ) from error
