"""What ``method=auto`` of ``ciod extend`` means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ciod import detectors

if TYPE_CHECKING:
    from ciod.detectors.base import Detector


def method_for(detector: Detector) -> tuple[str, str]:
    """The method for a detector and the reason, which may be empty.

    A branch, where the detector can have one. A model of transformers or MMDetection gets one only if it has one
    already: with a branch they could not load it.
    """
    if "branches" not in detector.traits:
        return "pseudo_label", ""
    name = str(detector.settings["name"])
    back = "hf" if name.startswith(detectors.HF) else "mmdet" if name.startswith("mmdet:") else None
    if back is not None and not len(getattr(detector, "branches", ())):
        return "pseudo_label", (
            f"so that export {back}= can write the model back; method=freeze_branch keeps old detections bit-identical"
        )
    return "freeze_branch", ""
