"""A class that became several: how many of the objects that it finds get the right name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.plural import counted
from ciod.core.types import Detections
from ciod.data.index import Index
from ciod.extension.confusion import SAME, SHOWN
from ciod.extension.names import Names


def measure(found: Sequence[Detections], truth: Index, names: Names) -> dict[str, Any] | None:
    """How many objects of the kinds the parent finds (score 0.3, IoU 0.5), and for how many of these the right kind has
    the highest score. None: no class became several.

    Args:
        found: of the new model, one per picture of ``truth``.

    Returns:
        parent, kinds; objects, found and named in total; and in ``rows`` per kind.
    """
    if names.parent is None:
        return None
    rows = {n: {"class": n, "objects": 0, "found": 0, "named": 0} for n in names.new}
    for i, d in enumerate(found):
        at = truth.of_image(i)
        own = np.array([truth.class_names[y] for y in truth.labels[at]])
        of_parent = d.only(names.parent)
        of_kinds = d.only(*names.new)
        seen = iou_table(truth.boxes[at], of_parent.boxes[of_parent.scores >= SHOWN]) >= SAME
        on = np.where(iou_table(truth.boxes[at], of_kinds.boxes) >= SAME, of_kinds.scores, 0.0)
        for j, name in enumerate(own):
            if name not in rows:
                continue
            rows[name]["objects"] += 1
            if not seen[j].any():
                continue
            rows[name]["found"] += 1
            if on[j].any():
                rows[name]["named"] += int(of_kinds.class_names[of_kinds.labels[on[j].argmax()]] == name)
    total = {k: sum(r[k] for r in rows.values()) for k in ("objects", "found", "named")}
    return {"parent": names.parent, "kinds": list(names.new), **total, "rows": list(rows.values())}


def sentences(row: dict[str, Any] | None) -> list[str]:
    """For the terminal."""
    if row is None or not row["objects"]:
        return []
    share = f" ({row['named'] / row['found']:.0%})" if row["found"] else ""
    return [
        f"{row['parent']} finds {row['found']} of {counted(row['objects'], 'object')}, as before; {row['named']} of "
        f"them{share} get the right name"
    ]
