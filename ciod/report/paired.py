"""Differences between methods per seed.

All methods of a seed start from the same first task, and seeds differ more than methods do. A difference within a seed
does not have this variation, so it reveals smaller effects than two means with their standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ciod.report.compared import COLUMNS, deviation, seed_rows
from ciod.report.summary import NONE, Runs, mean, percent

SHOWN = {k: COLUMNS[k] for k in ("old_ap", "old_after", "new_ap", "new", "all_ap", "all_ap50")}

# Student's t, two-sided 95 %, for 1, 2, … degrees of freedom; for more, the last value is close enough.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


def differences(runs: Runs, against: str) -> list[dict[str, Any]]:
    """Each other method minus ``against``, over the seeds that both have finished.

    Args:
        runs: (name, content of results.json), one per run.

    Returns:
        One row per method: ``name``, ``seeds``, and for each key of ``SHOWN`` ``mean`` (fractions), ``half_width`` of
        the 95 % interval by Student's t (None for one seed) and ``wins``: the number of seeds in which it was better.
        Joint training and unfinished runs are left out; empty if ``against`` has no finished run.
    """
    rows = [r for r in seed_rows(runs) if not r["joint"] and not r["unfinished"]]
    base = {r["seed"]: r for r in rows if r["name"] == against}
    found = []
    for name in dict.fromkeys(r["name"] for r in rows if r["name"] != against):
        both = [(r, base[r["seed"]]) for r in rows if r["name"] == name and r["seed"] in base]
        if both:
            found.append({"name": name, "seeds": len(both), **_columns(both)})
    return found


def _columns(both: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {"mean": {}, "half_width": {}, "wins": {}}
    for key in SHOWN:
        d = [a[key] - b[key] for a, b in both if a[key] is not None and b[key] is not None]
        std = deviation(d)
        out["mean"][key] = mean(d)
        out["half_width"][key] = None if std is None else quantile(len(d)) * std / math.sqrt(len(d))
        out["wins"][key] = sum(x > 0 for x in d)
    return out


def quantile(n: int) -> float:
    """Student's t for the 95 % interval of a mean of ``n`` ≥ 2 values."""
    return _T[min(n - 2, len(_T) - 1)]


def clear(row: dict[str, Any], key: str) -> bool:
    """Whether the 95 % interval does not contain zero."""
    half = row["half_width"][key]
    return half is not None and abs(row["mean"][key]) > half


def cell(row: dict[str, Any], key: str) -> str:
    """ "+3.1 ± 1.2" in points, "–" if unknown."""
    value, half = row["mean"][key], row["half_width"][key]
    if value is None:
        return NONE
    return ("+" if value > 0 else "") + percent(value) + ("" if half is None else f" ± {percent(half)}")


def markdown(rows: Sequence[dict[str, Any]], against: str) -> str:
    """A Markdown table, clear differences in bold; empty without rows."""
    if not rows:
        return ""
    lines = [
        f"| minus {against} | seeds | " + " | ".join(SHOWN.values()) + " |",
        "| --- | ---: |" + " ---: |" * len(SHOWN),
    ]
    for row in rows:
        cells = (f"**{cell(row, k)}**" if clear(row, k) else cell(row, k) for k in SHOWN)
        lines.append(f"| {row['name']} | {row['seeds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
