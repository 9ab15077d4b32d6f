"""Open-world measures: what a detector does on objects of classes that it has not learnt yet.

The detectors of this package have no class "unknown". A detection counts as one of an unknown object if it stands on
one and on no known object, whatever class it names. So the same detections are the good news (the object is seen:
U-Recall) and the bad (it is called something that it is not: A-OSE, WI).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.types import Detections
from ciod.data.index import Index

if TYPE_CHECKING:
    from ciod.data.scenarios.scenario import Scenario, Task

SAME = 0.5  # IoU from which a detection stands on an object
SHOWN = 0.05  # score from which A-OSE counts a detection, as ORE's evaluation
RECALL = 0.8  # at which WI compares precisions
PER_IMAGE = 100  # best detections of an image that count


@dataclass(frozen=True)
class OpenWorld:
    """The measures after a task; None where there is nothing to measure."""

    unknown_recall: float | None
    """U-Recall: share of the unknown objects on which a detection stands that stands on no known object."""
    open_set_error: int
    """A-OSE: number of unknown objects that are detected as a known class with a score of at least 0.05."""
    wilderness_impact: float | None
    """WI: by how much unknown objects lower the precision of the known classes at recall 0.8."""
    unknown_boxes: int
    """Unknown objects in the test images."""

    def line(self) -> str:
        """``U-Recall 12.3 %  A-OSE 40  WI 0.051  (325 unknown objects)``."""
        recall = "—" if self.unknown_recall is None else f"{100 * self.unknown_recall:.1f} %"
        impact = "—" if self.wilderness_impact is None else f"{self.wilderness_impact:.3f}"
        return f"U-Recall {recall}  A-OSE {self.open_set_error}  WI {impact}  ({self.unknown_boxes} unknown objects)"


def measure(detections: Sequence[Detections], truth: Index, known: Sequence[str]) -> OpenWorld:
    """U-Recall, A-OSE and WI of a detector that knows the classes ``known``.

    The best 100 detections of each image count. One that overlaps a known, crowd or difficult object with an IoU of 0.5
    or more is not one of an unknown object. Of the others each takes, by descending score, the free unknown object that
    it overlaps most, with an IoU of at least 0.5.

    For WI the detections of a known class are sorted by score over all images and matched with its objects as in VOC.
    The list is cut where its recall is nearest to 0.8. With the sums over all known classes,
    WI = P_known / P_all - 1 = false detections on unknown objects ÷ all other detections: P_all is the precision, and
    P_known that without the false detections on unknown objects.

    Args:
        detections: one per image of ``truth``, boxes in pixels of that image.
        truth: test images with the boxes of all classes; those that are not in ``known`` are unknown objects.

    Raises:
        ValueError: not one Detections per image.

    Source: U-Recall: Gupta et al., OW-DETR (CVPR 2022), section 4. A-OSE and WI: Joseph et al., Towards Open World
    Object Detection (CVPR 2021), section 5, after Miller et al. (ICRA 2018) and Dhamija et al. (WACV 2020).
    """
    if len(detections) != len(truth):
        raise ValueError(f"{len(detections)} detections for {len(truth)} images; give one Detections per image")
    where = {n: i for i, n in enumerate(dict.fromkeys(known))}
    label = np.array([where.get(n, -1) for n in truth.class_names] or [-1])[truth.labels]  # -1: unknown
    ignored = truth.crowd | truth.difficult
    found = recalled = confused = 0
    ranked: list[tuple[np.ndarray, ...]] = []
    for i, d in enumerate(detections):
        own = truth.of_image(i)
        own_label = np.array([where.get(n, -1) for n in d.class_names] or [-1])[d.labels]
        best = np.argsort(-d.scores, kind="stable")
        best = best[own_label[best] >= 0][:PER_IMAGE]
        table = iou_table(d.boxes[best].astype(np.float64), truth.boxes[own].astype(np.float64))
        unknown = (label[own] < 0) & ~ignored[own]
        found += int(unknown.sum())
        free = np.asarray(~(table[:, ~unknown] >= SAME).any(1))  # stands on nothing that is known or ignored
        takes = _take(table[:, unknown], free)
        recalled += int((takes >= 0).sum())
        confused += int((takes[d.scores[best] >= SHOWN] >= 0).sum())
        on_unknown = free & (table[:, unknown] >= SAME).any(1)
        state = _state(table, own_label[best], label[own], ignored[own])
        ranked.append((own_label[best], d.scores[best], np.where(on_unknown, 2, state)))
    objects = np.bincount(label[(label >= 0) & ~ignored], minlength=len(where))
    return OpenWorld(recalled / found if found else None, confused, _impact(ranked, objects), found)


def _take(table: np.ndarray, free: np.ndarray) -> np.ndarray:
    """[D] column that each row takes, -1 for none: rows in order, each the largest free column of at least ``SAME``."""
    table, taken = np.where(free[:, None], table, 0.0), np.full(len(free), -1)
    for k in np.flatnonzero((table >= SAME).any(1)):
        column = int(table[k].argmax())
        if table[k, column] >= SAME:
            taken[k] = column
            table[:, column] = 0.0
    return taken


def _state(table: np.ndarray, labels: np.ndarray, objects: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """[D] 1: right, 0: wrong, -1: does not count. As VOC: each detection is compared with the object of its class that
    it overlaps most."""
    table = np.where(labels[:, None] == objects[None], table, -1.0)
    state, taken = np.zeros(len(labels), int), np.zeros(len(objects), bool)
    for k in np.flatnonzero((table >= SAME).any(1)):
        best = int(table[k].argmax())
        state[k] = -1 if ignored[best] else int(not taken[best])
        taken[best] = True
    return state


def _impact(ranked: Sequence[tuple[np.ndarray, ...]], objects: np.ndarray) -> float | None:
    """Args: ranked: per image label, score and state (2: on an unknown object) of each detection."""
    label, score, state = (np.concatenate([np.zeros(0), *(r[k] for r in ranked)]) for k in range(3))
    unknown = others = 0
    for c in np.flatnonzero(objects):
        mine = np.flatnonzero((label == c) & (state >= 0))
        mine = mine[np.argsort(-score[mine], kind="stable")]
        if not len(mine):
            continue
        recall = np.cumsum(state[mine] == 1) / objects[c]
        end = int(np.abs(recall - RECALL).argmin()) + 1
        unknown += int((state[mine[:end]] == 2).sum())
        others += int((state[mine[:end]] != 2).sum())
    return unknown / others if others else None


def after_task(scenario: Scenario, task: Task, found: Sequence[Detections]) -> dict[str, dict[str, Any]]:
    """The entry ``open_world`` of results.json: the classes of later tasks are unknown. Empty without the switch
    ``open_world``, and after the last task, which leaves no unknown class."""
    if not scenario.protocol.open_world or len(task.seen_classes) == len(scenario.classes):
        return {}
    return {"open_world": asdict(measure(found, scenario.every_box(task.index), task.seen_classes))}


def line(entry: dict[str, Any]) -> str:
    """``OpenWorld.line`` of an entry ``open_world`` of results.json."""
    return OpenWorld(**entry).line()
