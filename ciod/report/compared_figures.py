"""Figures of a comparison: intervals, stability against plasticity, classes by task, which class takes whose boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ciod.evaluation import statistics
from ciod.report.by_picture import KINDS
from ciod.report.compared import seed_rows
from ciod.report.compared_plots import COLOURS
from ciod.report.paired import MARGIN, TESTED
from ciod.report.plots import BLUES, GRID, MUTED, WIDE, number, short, svg
from ciod.report.summary import Results, Runs, ap_rows, class_order, done, is_joint, mean

MOST_METHODS, MOST_CLASSES = 12, 80
_KIND_COLOURS = ("#009E73", "#E69F00", "#D55E00", "#D4D4D8")


@svg
def forest(rows: Sequence[Mapping[str, Any]], against: str, margin: float = MARGIN) -> Figure | None:
    """Differences to ``against`` with their intervals: Student's t over the seeds, and a bootstrap over pictures."""
    if not rows:
        return None
    figure = Figure(figsize=(WIDE, 1.1 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(TESTED), sharey=True)
    at = np.arange(len(rows))[::-1]
    for axes, (key, title) in zip(panels, TESTED.items(), strict=True):
        axes.axvspan(-100 * margin, 100 * margin, color="#F4F4F5", label=f"± {100 * margin:g} points: equal")
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for y, row in zip(at, rows, strict=True):
            _interval(axes, row, key, y)
        axes.set_title(f"{title} minus {short(against, 18)}'s (points)")
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
    panels[0].set_yticks(at, [f"{short(r['name'], 32)} (n = {r['seeds']})" for r in rows])
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def _interval(axes: Axes, row: Mapping[str, Any], key: str, y: float) -> None:
    middle, half = row["mean"][key], row["half_width"][key]
    if middle is None:
        return
    colour = {"better": "#0072B2", "worse": "#D55E00"}.get(row["verdict"][key], "#3F3F46")
    if half is not None:
        ends = [100 * (middle - half), 100 * (middle + half)]
        axes.plot(ends, [y, y], color="#3F3F46", linewidth=2, solid_capstyle="butt", label="95 %, over seeds")
    low, high = (row.get("pictures") or {}).get(key) or (None, None)
    if low is not None and high is not None:
        ends = [100 * low, 100 * high]
        axes.plot(ends, [y - 0.22] * 2, color="#56B4E9", linewidth=2, label="95 %, over test pictures")
    axes.plot([100 * middle], [y], "o", color=colour, markersize=6, zorder=3)


@svg
def stability_plasticity(runs: Runs) -> Figure | None:
    """AP50 of the old classes (stability) against that of the new ones (plasticity); a cross is a 95 % interval."""
    rows = [r for r in seed_rows(runs) if not r["unfinished"] and r["old_after"] is not None and r["new"] is not None]
    names = list(dict.fromkeys(r["name"] for r in rows))
    if len(names) < 2 or len(names) > MOST_METHODS:
        return None
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        mine = [r for r in rows if r["name"] == name]
        x, y = (100 * np.array([r[k] for r in mine]) for k in ("new", "old_after"))
        colour = MUTED if mine[0]["joint"] else COLOURS[i % len(COLOURS)]
        axes.plot(x, y, ".", color=colour, alpha=0.35, markersize=6)
        half = [0.0 if (t := statistics.t_interval(v.tolist())) is None else t.high - t.mean for v in (x, y)]
        axes.errorbar(
            x.mean(), y.mean(), xerr=half[0], yerr=half[1], fmt="D" if mine[0]["joint"] else "o", color=colour,
            markersize=7, elinewidth=1, label=short(name, 40),
        )  # fmt: skip
    axes.set_xlim(*_span(axes.get_xlim()))
    axes.set_ylim(*_span(axes.get_ylim()))
    axes.set_xlabel("new AP50 (%): plasticity")
    axes.set_ylabel("old AP50 (%): stability")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper")
    return figure


def _span(limits: tuple[float, float]) -> tuple[float, float]:
    """The limits of an axis of per cent; of at least a point, so that rounding is not drawn as a difference."""
    low, high = limits
    room = max(0.0, 1 - (high - low)) / 2
    return low - room, high + room


def one_order(runs: Runs) -> bool:
    """Whether all runs learn the classes in the same order."""
    return len({tuple(map(tuple, _groups(r))) for _, r in runs if not is_joint(r)}) < 2


def _groups(results: Results) -> list[list[str]]:
    return [sorted(t.get("new_classes") or []) for t in done(results)]


@svg
def class_tasks(runs: Runs) -> Figure | None:
    """AP50 of each class, one panel per method. With one class order a line is a moment: after task 1, 2, …; with
    several it is a role: the AP50 after the last task of a class that was learnt in task 1, 2, …"""
    names = sorted(dict.fromkeys(n for _, r in runs for n in class_order(r)))
    same = one_order(runs)
    if same:
        names = next((class_order(r) for _, r in runs if not is_joint(r)), names)
    tables = {
        name: _table([r for n, r in runs if n == name], names, moments=same)
        for name in dict.fromkeys(n for n, _ in runs)
    }
    tables = {n: t for n, t in tables.items() if len(t)}
    if not tables or not names or len(names) > MOST_CLASSES or len(tables) > MOST_METHODS:
        return None
    heights = [len(t) for t in tables.values()]
    size = (min(WIDE, 2.6 + 0.62 * len(names)), 1.1 + 0.27 * sum(heights) + 0.16 * len(heights))
    figure = Figure(figsize=size, layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(tables), 1, sharex=True, height_ratios=heights))
    norm = Normalize(0, 100)
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        axes.imshow(np.ma.masked_invalid(table), cmap=BLUES, norm=norm, aspect="auto", interpolation="none")
        joint = all(is_joint(r) for n, r in runs if n == name)
        moment = "after task" if same else "learnt in task"
        lines = [""] if joint else [f"{moment} {i + 1}" for i in range(len(table))]
        lines[0] = ", ".join(t for t in (short(name, 28), lines[0]) if t)
        axes.set_yticks(range(len(table)), lines)
        axes.spines[:].set_visible(False)
        if len(names) <= 25:
            for (y, x), value in np.ndenumerate(table):
                if not np.isnan(value):
                    shade = "white" if norm(value) > 0.55 else "#18181B"
                    axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=8, color=shade)
    panels[-1].set_xticks(range(len(names)))
    for text in panels[-1].set_xticklabels([short(n, 22) for n in names], fontsize=8 if len(names) <= 40 else 6):
        text.set(rotation=40, ha="right", rotation_mode="anchor")
    return figure


def _table(seeds: Sequence[Results], names: Sequence[str], *, moments: bool) -> np.ndarray:
    """[tasks, classes] mean AP50 in percent; NaN where nothing is known."""
    tasks = max((len(done(r)) for r in seeds), default=0)
    table = np.full((tasks, len(names)), np.nan)
    for t in range(tasks):
        for c, name in enumerate(names):
            values = []
            for r in seeds:
                rows = ap_rows(r, "AP50")
                taught = name in (done(r)[t].get("new_classes") or []) if t < len(done(r)) else False
                if rows and (moments or taught):
                    row = rows[t] if moments and t < len(rows) else rows[-1]
                    values.append(row.get(name))
            table[t, c] = 100 * number(mean(values))
    return table


@svg
def confusion(counts: Mapping[str, Mapping[str, np.ndarray]]) -> Figure | None:
    """What is found on the objects of old and of new classes: a box of their class, of another one, or none."""
    if not counts:
        return None
    figure = Figure(figsize=(WIDE, 1.2 + 0.36 * len(counts)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    at = np.arange(len(counts))[::-1]
    for axes, group in zip(panels, ("old", "new"), strict=True):
        table = np.array([c[group] for c in counts.values()], float)
        share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
        left = np.zeros(len(counts))
        for k, kind in enumerate(KINDS):
            axes.barh(at, share[:, k], 0.7, left=left, color=_KIND_COLOURS[k], label=kind)
            for y, x, v in zip(at, left, share[:, k], strict=True):
                if v >= 6:
                    axes.text(x + v / 2, y, f"{v:.0f}", ha="center", va="center", fontsize=8)
            left += share[:, k]
        axes.set_title(f"objects of {group} classes (%): what is found on them")
        axes.set_xlim(0, 100)
    panels[0].set_yticks(at, [short(n, 32) for n in counts])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS))
    return figure
