"""Published results, in a separate table: each with its source, detector, protocol and pre-training.

The rows are facts from papers and repositories (``published.json``). They are never ranked together with runs of this
package, nor with each other: scenarios of the same name differ in class order, images, detector and metric.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ciod.core.errors import CiodError
from ciod.data.scenarios.scenario import parse_split

FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Row:
    """One published result; values that a source does not state are None."""

    dataset: str
    """COCO2017, VOC2007, LoCo-COCO, …"""
    scenario: str
    method: str
    detector: str
    backbone: str | None
    metric: str
    """Metric of ``value``: AP (COCO's), AP50, … over all classes after the last task."""
    value: float | None
    """In points, as printed."""
    ap50: float | None
    ap75: float | None
    upper_bound: float | None
    abs_gap: float | None
    rel_gap_pct: float | None
    omega_all: float | None
    exemplars: str | None
    """Old data that the method keeps; None: none."""
    extra_pretraining: str | None
    """Training of the detector beyond an ImageNet backbone; None: none."""
    protocol: str | None
    source: str
    """Labels of ``sources``, joined by ``+``."""
    confidence: str
    note: str | None

    @property
    def source_text(self) -> str:
        """Description of the source."""
        return "; ".join(sources()[s]["what"] for s in self.source.split("+"))

    def shown(self, key: str) -> str:
        """A number as printed; "–" for None."""
        value = getattr(self, key)
        return "–" if value is None else f"{value:g}"


def rows() -> list[Row]:
    """All rows, in the file's order.

    Raises:
        CiodError: the source of a row is not listed.
    """
    listed = content()
    found = [Row(**dict(zip(listed["columns"], r, strict=True))) for r in listed["rows"]]
    unknown = sorted({s for r in found for s in r.source.split("+")} - set(listed["sources"]))
    if unknown:
        raise CiodError(f"{FILE.name}: no source {', '.join(unknown)}.")
    return found


def sources() -> Mapping[str, Mapping[str, str]]:
    """Label → description (``what``), ``grade``, and public address (``where``) of the source."""
    return content()["sources"]


@cache
def content() -> dict[str, Any]:
    """The file: ``columns``, ``rows``, ``sources``, and what each ``confidence`` means."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def of(scenario: Mapping[str, Any]) -> list[Row]:
    """The rows with the name of a scenario, by method, without those of unreliable sources.

    Args:
        scenario: that of a ``results.json``: classes, split, images, name. A subset has no published results.
    """
    if scenario.get("subset"):
        return []
    dataset, split = _dataset(scenario), list(scenario.get("split") or [])
    if dataset is None or len(split) < 2:
        return []
    turned = "last40" in str(scenario.get("name"))
    total = sum(split)
    kept = [
        r
        for r in rows()
        if r.dataset == dataset
        and _sizes(r.scenario, total) == split
        and r.scenario.startswith("last") == turned
        and r.confidence != "low"
    ]
    return sorted(kept, key=lambda r: (r.method.lower(), r.detector, r.source))


def _dataset(scenario: Mapping[str, Any]) -> str | None:
    """The published name of a data set, from its class names."""
    classes = {str(c).replace(" ", "").lower() for c in scenario.get("classes") or []}
    if len(classes) == 80 and {"toothbrush", "hairdrier", "frisbee", "zebra"} <= classes:
        return "LoCo-COCO" if scenario.get("images") == "loco" else "COCO2017"
    if len(classes) == 20 and {"diningtable", "pottedplant", "tvmonitor", "aeroplane"} <= classes:
        return "VOC2007"
    return None


def _sizes(name: str, total: int) -> list[int] | None:
    """``40+10x4`` → [40, 10, 10, 10, 10]; None if it is not a split."""
    inside = name.partition("(")[2].rstrip(")") if name.startswith("MD-DETR") else name.replace("last", "")
    try:
        return parse_split(inside.replace("first", ""), total)
    except CiodError:
        return None
