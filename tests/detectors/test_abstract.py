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
