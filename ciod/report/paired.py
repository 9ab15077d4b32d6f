"""Differences between methods per seed, and what they show.

All methods of a seed (or block) start from the same first task, and seeds differ more than methods do. A difference
within a seed does not have this variation, so it reveals smaller effects than two means with their standard deviations.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ciod.evaluation import statistics
from ciod.report.compared import COLUMNS, seed_rows
from ciod.report.summary import NONE, Runs, mean, percent

SHOWN = {k: COLUMNS[k] for k in ("old_ap", "old_after", "new_ap", "new", "all_ap", "all_ap50")}
TESTED = {k: COLUMNS[k] for k in ("old_after", "new", "all_ap50")}
"""Columns whose tests are printed; those of the others are in compare.json and differences.csv."""
LEVEL = 0.05
MARGIN = 0.02
_NUMBERS = ("mean", "half_width", "wins", "p_t", "p_sign", "p_holm", "p_equal", "verdict")


def differences(runs: Runs, against: str, margin: float = MARGIN) -> list[dict[str, Any]]:
    """Each other method minus ``against``, over the seeds that both have finished.

    Args:
        runs: (name, content of results.json), one per run.
        margin: difference in AP (fraction) up to which two methods count as equal.

    Returns:
        One row per method: ``name``, ``seeds``, and for each key of ``SHOWN`` ``mean`` (fractions), ``half_width`` of
        the 95 % interval by Student's t (None for one seed), ``wins``: the number of seeds in which it was better,
        ``p_t`` and ``p_sign`` of paired t and sign-flip test, ``p_holm``: ``p_sign`` corrected for the number of
        methods, ``p_equal`` of the equivalence test, and ``verdict``: better, worse, equal or open.
        Joint training and unfinished runs are left out; empty if ``against`` has no finished run.
    """
    rows = [r for r in seed_rows(runs) if not r["joint"] and not r["unfinished"]]
    base = {r["seed"]: r for r in rows if r["name"] == against}
    found = []
    for name in dict.fromkeys(r["name"] for r in rows if r["name"] != against):
        both = [(r, base[r["seed"]]) for r in rows if r["name"] == name and r["seed"] in base]
        if both:
            found.append({"name": name, "seeds": len(both), **_columns(both, margin)})
    for key in SHOWN:
        corrected = statistics.holm([row["p_sign"][key] for row in found])
        for row, p in zip(found, corrected, strict=True):
            row["p_holm"][key] = p
            row["verdict"][key] = _verdict(row["mean"][key], p, row["p_equal"][key])
    return found


def _columns(both: Sequence[tuple[dict[str, Any], dict[str, Any]]], margin: float) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {k: {} for k in _NUMBERS}
    for key in SHOWN:
        d = [a[key] - b[key] for a, b in both if a[key] is not None and b[key] is not None]
        interval = statistics.t_interval(d)
        out["mean"][key] = mean(d)
        out["half_width"][key] = None if interval is None else interval.high - interval.mean
        out["wins"][key] = sum(x > 0 for x in d)
        out["p_t"][key] = statistics.paired_t(d)
        out["p_sign"][key] = statistics.sign_flip(d)
        out["p_equal"][key] = statistics.equivalence(d, margin)
    return out


def _verdict(difference: float | None, p: float | None, p_equal: float | None) -> str:
    if difference is not None and p is not None and p < LEVEL:
        return "better" if difference > 0 else "worse"
    return "equal" if p_equal is not None and p_equal < LEVEL else "open"


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


def p_value(p: float | None) -> str:
    """
    >>> p_value(0.03125), p_value(0.0004), p_value(None)
    ('0.031', '< 0.001', '–')
    """
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def words(row: Mapping[str, Any], key: str, against: str, margin: float = MARGIN) -> str:
    """What a difference shows, as a sentence without a full stop."""
    points = f"{100 * margin:g} point{'s' * (margin != 0.01)}"
    if row["verdict"][key] in ("better", "worse"):
        small = row["p_equal"][key] is not None and row["p_equal"][key] < LEVEL
        return f"{row['verdict'][key]} than {against}" + (f", by less than {points}" if small else "")
    if row["verdict"][key] == "equal":
        return f"equal to {against} within {points}"
    return "open: neither a difference nor equality is shown"


def tests(rows: Sequence[Mapping[str, Any]], against: str, margin: float = MARGIN) -> list[tuple[str, list[str]]]:
    """(method, cells) of the table of tests, one line per method and column of ``TESTED``.

    Cells: column, difference, seeds won, bootstrap interval over pictures, p of paired t, of signs, of signs after
    Holm, of equality, and the result as text.
    """
    lines = []
    for row in rows:
        for key, title in TESTED.items():
            low, high = (row.get("pictures") or {}).get(key) or (None, None)
            pictures = NONE if low is None or high is None else f"{percent(low)} to {percent(high)}"
            ps = [p_value(row[k][key]) for k in ("p_t", "p_sign", "p_holm", "p_equal")]
            won = f"{row['wins'][key]} of {row['seeds']}"
            cells = [
                title.removesuffix(" AP50"),
                cell(dict(row), key),
                won,
                pictures,
                *ps,
                words(row, key, against, margin),
            ]
            lines.append((row["name"], cells))
    return lines


HEADS = ("AP50 of", "difference", "better in", "pictures", "p (t)", "p (signs)", "p (Holm)", "p (equal)", "so it is")


def limits(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What cannot be shown with few repetitions."""
    fewest = min((row["seeds"] for row in rows), default=0)
    if not fewest or statistics.smallest_sign_flip(fewest) * len(rows) < LEVEL:
        return []
    needed = next(n for n in range(1, 64) if statistics.smallest_sign_flip(n) * len(rows) < LEVEL)
    least = p_value(min(1.0, statistics.smallest_sign_flip(fewest) * len(rows)))
    times = f"{fewest} repetition{'s' if fewest > 1 else ''}"
    methods = f"{len(rows)} method{'s' if len(rows) > 1 else ''}"
    return [
        f"With {times} and {methods} against one, p (Holm) cannot be below {least}, so no difference can be shown; "
        f"{needed} repetitions are needed."
    ]


def markdown(rows: Sequence[dict[str, Any]], against: str, margin: float = MARGIN) -> str:
    """Two Markdown tables: differences, clear ones in bold, and their tests; empty without rows."""
    if not rows:
        return ""
    lines = [
        f"| minus {against} | seeds | " + " | ".join(SHOWN.values()) + " |",
        "| --- | ---: |" + " ---: |" * len(SHOWN),
    ]
    for row in rows:
        cells = (f"**{cell(row, k)}**" if clear(row, k) else cell(row, k) for k in SHOWN)
        lines.append(f"| {row['name']} | {row['seeds']} | " + " | ".join(cells) + " |")
    lines += ["", "| method | " + " | ".join(HEADS) + " |", "| --- |" + " --- |" * len(HEADS)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in tests(rows, against, margin)]
    return "\n".join([*lines, *("\n" + line for line in limits(rows))]) + "\n"


def table_csv(rows: Sequence[Mapping[str, Any]], against: str) -> str:
    """Every number of the differences, one line per method and column, in full precision."""
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    sheet.writerow(["method", "minus", "column", "seeds", *_NUMBERS, "pictures_low", "pictures_high"])
    for row in rows:
        for key in SHOWN:
            numbers = [row[k][key] for k in _NUMBERS]
            bounds = (row.get("pictures") or {}).get(key) or (None, None)
            line = [row["name"], against, key, row["seeds"], *numbers, *bounds]
            sheet.writerow(["" if v is None else v for v in line])
    return out.getvalue()
