"""A detector or a distillation that lacks a part is refused when it is made, not in its first step."""

from __future__ import annotations

import pytest

from ciod.detectors.base import Detector, Input
from ciod.methods.base.distillation import Distillation


def test_a_detector_without_its_parts():
    with pytest.raises(TypeError, match=r"abstract.*forward.*loss.*match.*trunk"):
        Detector([], {}, Input())  # type: ignore[abstract]


def test_a_distillation_without_its_term():
    with pytest.raises(TypeError, match=r"abstract.*distill"):
        Distillation()  # type: ignore[abstract]


def test_a_detector_may_make_the_masks_itself():
    """As every detector once did, by replacing loss."""

    def loss(self, outputs, targets, matches, *, counted=None, channels=None):
        return {"cls": outputs}

    parts = {"forward": loss, "match": loss, "trunk": loss, "loss": loss}
    detector = type("Own", (Detector,), parts)([], {}, Input())
    assert detector.loss(3, None, None) == {"cls": 3}
    with pytest.raises(NotImplementedError, match=r"Own has a loss of its own"):
        detector.losses(None, None, None, None)
