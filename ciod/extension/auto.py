"""What ``method=auto`` of ``ciod extend`` means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ciod import detectors

if TYPE_CHECKING:
    from ciod.detectors.base import Detector


def method_for(detector: Detector) -> tuple[str, str]:
    """The method for a detector and the reason, which may be empty.

    A branch, where the detector can have one. A checkpoint of transformers gets one only if it has one already: with a
    branch transformers could not load it.
    """
    if "branches" not in detector.traits:
        return "pseudo_label", ""
    if str(detector.settings["name"]).startswith(detectors.HF) and not len(getattr(detector, "branches", ())):
        return "pseudo_label", (
            "so that export hf= can write the model back; method=freeze_branch keeps old detections bit-identical"
        )
    return "freeze_branch", ""
