"""Classes that are kinds of another class, their parent: one name per box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ciod.core.boxes import iou_table

SAME = 0.65  # IoU of two names of one box, as in non-maximum suppression
CLEAR = 0.5  # share of the parent's score from which a kind names the box


def finest(names: Sequence[str], boxes: np.ndarray, scores: np.ndarray, parents: Mapping[str, str]) -> np.ndarray:
    """[n] bool: which detections stay so that each box has one name.

    A box of a class goes where a kind of it has the same box and at least half of its score; of several kinds in one
    box the surest stays. Otherwise the class itself names the box.

    Args:
        names, boxes, scores: of n detections; boxes are [n, 4] xyxy.
        parents: kind → class, as ``Detector.parents``.
    """
    kept = np.ones(len(names), bool)
    name = np.array(names, dtype=object)
    for parent in dict.fromkeys(parents.values()):
        whole = np.flatnonzero(name == parent)
        kinds = np.flatnonzero([parents.get(n) == parent for n in name])
        if not len(whole) or not len(kinds):
            continue
        same = iou_table(boxes[whole], boxes[kinds]) >= SAME
        score = np.where(same, scores[kinds], -1.0)
        clear = score.max(1) >= CLEAR * scores[whole]
        kept[kinds[same.any(0)]] = False
        kept[kinds[score.argmax(1)[clear]]] = True
        kept[whole[clear]] = False
    return kept
