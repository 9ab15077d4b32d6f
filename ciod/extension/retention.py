"""What became of the old classes: AP before and after where there is old validation data, agreement where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ciod.core.plural import counted
from ciod.core.types import Detections
from ciod.evaluation.ap import APTable
from ciod.extension.old_objects import pairs

Kind = Literal["AP", "agreement"]


@dataclass
class Retention:
    """One number and a row per class, the worst first.

    ``AP``: rows have before, after (AP) and kept (their ratio). ``agreement``: rows have before, after (how many
    boxes the old and the new model find) and kept (the share on which they agree). It says that two models find the
    same, not that what they find is right. Both models answer with their arbiter off; ``judged`` is the value with it.
    """

    kind: Kind
    value: float | None
    rows: list[dict[str, Any]]
    images: int
    judged: float | None = None  # agreement with the arbiter on; None: the old model has none

    def sentence(self) -> str:
        """The number in words."""
        if self.value is None:
            return (
                f"How well the old classes are kept is not known: none of them is in the "
                f"{counted(self.images, 'image')}."
            )
        share = f"{100 * self.value:.1f} %"
        if self.kind == "AP":
            return f"The old classes keep {share} of their AP, measured on {counted(self.images, 'image')} of old data."
        sentence = (
            f"Old and new model agree on {share} of the old objects they find in "
            f"{counted(self.images, 'image')}. This is "
            "agreement, not accuracy; old_data=FOLDER measures AP."
        )
        if self.judged is None:
            return sentence
        judged = f"{100 * self.judged:.1f} %"
        return (
            f"{sentence} This is without the arbiter between the branches; with it they agree on {judged}, "
            "as it lowers scores of classes that earlier extensions added (arbiter=off takes them back)."
        )


def by_ap(before: APTable, after: APTable, names: Sequence[str], images: int) -> Retention:
    """AP of each old class before and after; the value is the ratio of the sums, as ``continual.retention``."""
    rows = []
    for name in names:
        a, b = before.per_class[name]["AP"], after.per_class[name]["AP"]
        if a is not None and b is not None:
            rows.append({"class": name, "before": a, "after": b, "kept": b / a if a else None})
    total = sum(r["before"] for r in rows)
    value = sum(r["after"] for r in rows) / total if total else None
    rows.sort(key=lambda r: r["after"] - r["before"])
    return Retention("AP", value, rows, images)


def by_agreement(
    before: Sequence[Detections], after: Sequence[Detections], names: Sequence[str], *, score: float = 0.3
) -> Retention:
    """Agreement of two models on the same images: 2 × pairs ÷ boxes, boxes from ``score`` on.

    Two boxes of a class are a pair when their IoU is at least 0.5; each has one partner (the F1 of one model with the
    other as truth).
    """
    first, second, both = (dict.fromkeys(names, 0) for _ in range(3))
    for old, new in zip(before, after, strict=True):
        a, b = (d.keep(d.scores >= score) for d in (old, new))
        present = {a.class_names[y] for y in a.labels} | {b.class_names[y] for y in b.labels}
        for name in present & first.keys():
            mine, theirs = (d.boxes[_of(d, name)] for d in (a, b))
            first[name] += len(mine)
            second[name] += len(theirs)
            both[name] += int(pairs(mine, theirs, 0.5)[0].sum())
    rows = [
        {"class": n, "before": first[n], "after": second[n], "kept": 2 * both[n] / (first[n] + second[n])}
        for n in names
        if first[n] + second[n]
    ]
    boxes = sum(first.values()) + sum(second.values())
    value = 2 * sum(both.values()) / boxes if boxes else None
    rows.sort(key=lambda r: (r["kept"], -r["before"]))
    return Retention("agreement", value, rows, len(before))


def _of(d: Detections, name: str) -> np.ndarray:
    return d.labels == d.class_names.index(name) if name in d.class_names else np.zeros(len(d), bool)
