"""How often new classes fire where none of their objects is, and from which score on they are believable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciod.core.plural import counted, few
from ciod.core.types import Detections
from ciod.data.index import Index
from ciod.data.mixture import concatenate
from ciod.evaluation.ap import coco_ap
from ciod.extension.old_objects import ENOUGH, best_f1

SHOWN = 0.3  # score from which a detection counts as an alarm: what ``ciod predict`` shows
ALLOWED = 0.05  # false alarms per picture at a suggested threshold

Found = tuple[Index, Sequence[Detections]]
"""Pictures labelled in the order of the model's classes, and what the model finds in them."""


@dataclass
class FalseAlarms:
    """What was measured. Per class: false alarms per picture, and suggested thresholds."""

    sources: list[dict[str, Any]]
    """One row per source: source, images, and per class the alarms per picture without it from score 0.3 on."""
    thresholds: dict[str, float]
    together: dict[str, float | None] | None
    """AP and AP50 of the new classes on all these pictures and the new ones. None: there are no others."""

    @property
    def measured(self) -> bool:
        """Whether there were pictures beside the new ones."""
        return self.together is not None

    def row(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "score": SHOWN,
            "allowed": ALLOWED,
            "measured": self.measured,
            "sources": self.sources,
            "thresholds": self.thresholds,
            "together": self.together,
        }

    def sentences(self) -> list[str]:
        """For the terminal: the loudest class of every source, the thresholds, and AP on everything."""
        lines = []
        for row in self.sources:
            known = {n: v for n, v in row["classes"].items() if v is not None}
            if not known:
                continue
            worst = max(known, key=known.__getitem__)
            mean = sum(known.values()) / len(known)
            most = f"{mean:.3f} per picture and class, most of {worst} ({known[worst]:.3f})" if mean else "none"
            lines.append(f"false alarms above {SHOWN} in {counted(row['images'], 'picture')} ({row['source']}): {most}")
        if self.thresholds:
            listed = ", ".join(f"{n} {v:.2f}" for n, v in self.thresholds.items())
            lines.append(f"suggested score thresholds: {listed}")
        if without := [n for n in self.sources[0]["classes"] if n not in self.thresholds]:
            lines.append(f"no threshold is suggested for {few(without)}: that takes {ENOUGH} labelled objects")
        if self.together and self.together["AP50"] is not None and self.together["AP"] is not None:
            lines.append(
                f"new classes on new and other pictures together: AP50 {100 * self.together['AP50']:.1f} %, "
                f"AP {100 * self.together['AP']:.1f} %"
            )
        return lines


def measure(new: Found, others: Mapping[str, Found], names: Sequence[str], max_detections: int) -> FalseAlarms:
    """Counts false alarms of the classes ``names``.

    Args:
        new: validation pictures of the extension.
        others: by source, pictures that show (nearly) none of the classes.
        max_detections: as in ``coco_ap``.
    """
    sources = [_row("the new pictures without the class", new, names)]
    sources += [_row(name, found, names) for name, found in others.items()]
    every: list[Found] = [new, *others.values()]
    truth = concatenate([index for index, _ in every])
    found = [d for _, detections in every for d in detections]
    thresholds = {n: t for n in names if (t := _threshold(truth, found, n)) is not None}
    together = None
    if others:
        overall = coco_ap(found, truth, classes=names, max_detections=max_detections).overall
        together = {"AP": overall["AP"], "AP50": overall["AP50"]}
    return FalseAlarms(sources, thresholds, together)


def _row(source: str, found: Found, names: Sequence[str]) -> dict[str, Any]:
    index, detections = found
    classes = {}
    for name in names:
        alarms, without = _alarms(index, detections, name)
        classes[name] = float((alarms >= SHOWN).sum()) / without if without else None
    return {"source": source, "images": len(index), "classes": classes}


def _alarms(index: Index, detections: Sequence[Detections], name: str) -> tuple[np.ndarray, int]:
    """Scores of a class in the pictures that do not show it, and how many pictures these are."""
    label = index.class_names.index(name)
    shows = np.zeros(len(index), bool)
    shows[index.image[index.labels == label]] = True
    scores = [d.scores[d.labels == label] for d, s in zip(detections, shows, strict=True) if not s]
    return np.concatenate([np.zeros(0, np.float32), *scores]), len(scores)


def _threshold(truth: Index, found: Sequence[Detections], name: str) -> float | None:
    """The score of best F1 on all pictures, or the higher one from which false alarms are rare enough. None: there are
    too few objects to tell."""
    best = best_f1(found, truth, name)
    if best is None:
        return None
    alarms, without = _alarms(truth, found, name)
    allowed = int(ALLOWED * without)
    rare = float(np.sort(alarms)[::-1][allowed]) if len(alarms) > allowed else 0.0
    return round(max(best, min(rare + 0.005, 1.0)), 2)
