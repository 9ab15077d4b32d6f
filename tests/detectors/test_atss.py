"""ATSS for a whole batch at once against the algorithm written out box by box."""

from __future__ import annotations

import pytest
import torch

from ciod.core import boxes as bx
from ciod.detectors.assigners.atss import atss
from tests import fixed


def atss_by_hand(outputs, boxes, *, k: int = 9, scale: float = 8) -> dict[int, int]:
    """Algorithm 1 of the paper, box by box, for one image: position → box."""
    best: dict[int, tuple[float, int]] = {}
    for j, box in enumerate(boxes.tolist()):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        chosen, first = [], 0
        for n in outputs.levels:
            level = range(first, first + n)
            points = outputs.points.tolist()
            chosen += sorted(level, key=lambda p: (points[p][0] - cx) ** 2 + (points[p][1] - cy) ** 2)[:k]
            first += n
        reach = outputs.strides * scale / 2
        anchors = torch.cat([outputs.points - reach[:, None], outputs.points + reach[:, None]], 1)
        ious = bx.iou(anchors[chosen], torch.tensor(box).expand(len(chosen), 4)).tolist()
        mean = sum(ious) / len(ious)
        limit = mean + (sum((u - mean) ** 2 for u in ious) / (len(ious) - 1)) ** 0.5
        for p, u in zip(chosen, ious):
            x, y = outputs.points[p].tolist()
            if u >= limit and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01 and u > best.get(p, (-1,))[0]:
                best[p] = (u, j)
    return {p: j for p, (_, j) in best.items()}


@pytest.mark.parametrize("seed", range(5))
def test_atss_equals_the_rule_written_out(seed):
    outputs = fixed.random_outputs(seed, 3, images=3)
    targets = fixed.boxes_at_random(seed, [6, 0, 2], classes=3)
    matches = atss(outputs, targets)
    for b, n in enumerate((6, 0, 2)):
        ok = matches.valid[b]
        found = dict(zip(matches.position[b, ok].tolist(), matches.target[b, ok].tolist()))
        assert found == atss_by_hand(outputs, targets.boxes[b, :n])
        assert torch.nonzero(matches.positive[b]).squeeze(1).tolist() == sorted(found)
        overlap = bx.iou(outputs.boxes[b, matches.position[b, ok]], targets.boxes[b, matches.target[b, ok]])
        assert torch.equal(matches.iou[b, ok], overlap)
