"""Known classes that were taught further: what they gain on the new photographs and pay on the old ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ciod.evaluation.ap import APTable
    from ciod.extension.measure import Judged

LEAST = 0.005  # of AP50: less is neither a gain nor a loss


def measure(judged: Judged, taught: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class: AP and AP50 on the folder's validation images and on old validation data, before and after.

    A value is None where the class has no objects, or where there are no old validation data.
    """
    tables = {
        "new": (judged.taught_before, judged.learnt),
        "old": (judged.old_before, judged.old_after),
    }
    return [
        {"class": name, **{side: _pair(before, after, name) for side, (before, after) in tables.items()}}
        for name in taught
    ]


def _pair(before: APTable | None, after: APTable | None, name: str) -> dict[str, list[float | None]]:
    tables = [{} if t is None else t.per_class.get(name) or {} for t in (before, after)]
    return {metric: [t.get(metric) for t in tables] for metric in ("AP", "AP50")}


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a class gained and paid, one sentence per class, and what was not measured."""
    found = []
    for row in rows:
        parts = [f"on the {side} photographs {_shown(row[side])}" for side in ("new", "old") if _shown(row[side])]
        found.append(f"taught further: {row['class']} AP50 {', '.join(parts) or 'not measured'}{verdict(row)}")
    if rows and not any(_shown(row["old"]) for row in rows):
        found.append("What classes that were taught further pay on old photographs was not measured: old_data=FOLDER.")
    return found


def verdict(row: Mapping[str, Any]) -> str:
    """Which photographs pay for the others; empty where it is not known."""
    change = {side: _change(row[side]) for side in ("new", "old")}
    new, old = change["new"], change["old"]
    if new is None or old is None:
        return ""
    if max(new, old) < LEAST and min(new, old) <= -LEAST:
        return ": nothing is gained"
    if old <= -LEAST:
        return ": the old photographs pay"
    return ": the new photographs pay" if new <= -LEAST else ": nothing is paid"


def _change(side: Mapping[str, Sequence[float | None]]) -> float | None:
    before, after = side["AP50"]
    return None if before is None or after is None else after - before


def _shown(side: Mapping[str, Sequence[float | None]]) -> str:
    before, after = side["AP50"]
    return "" if before is None or after is None else f"{100 * before:.1f} → {100 * after:.1f} %"
