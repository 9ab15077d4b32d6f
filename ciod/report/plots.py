"""The figures of a report as inline SVG: text stays text, so they are small, sharp and searchable.

Every function returns the ``<svg>`` element as a string, or "" if there is nothing to draw. ``results`` is the content
of ``results.json``, ``metrics`` the result of ``read_metrics``. Tasks are numbered from 1. pyplot is not used, so there
is no global state and nothing to close.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from ciod.core.files import explained
from ciod.report.summary import Change, Results, ap_rows, changes, class_order, done, headline, score

OLD, NEW, ALL = "#0072B2", "#D55E00", "#3F3F46"
GROUPS = {"old": OLD, "new": NEW, "all": ALL}
GRID, MUTED = "#E4E4E7", "#71717A"
WIDE = 10.6  # inches of 96 CSS pixels: the width of the report's column
BLUES = LinearSegmentedColormap.from_list("ap", ["#F7FBFF", "#C6DBEF", "#6BAED6", "#2171B5", "#08306B"])
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a class name stays a "$"
    "font.size": 9,
    "axes.edgecolor": "#A1A1AA",
    "axes.labelcolor": "#3F3F46",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.color": "#52525B",
    "ytick.color": "#52525B",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": "#27272A",
    "legend.frameon": False,
}


def svg(draw: Callable[..., Figure | None]) -> Callable[..., str]:
    """Turns a function that draws a Figure into one that returns it as an SVG element.

    With ``into=PATH`` the figure is also written to PATH.svg and PATH.pdf.
    """

    @functools.wraps(draw)
    def drawn(*args: Any, into: Path | None = None, **kwargs: Any) -> str:
        salt = f"{draw.__name__}{kwargs}"  # ids must differ between the figures of one page, and be reproducible
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the fonts
            figure = draw(*args, **kwargs)
            if figure is None:
                return ""
            out = io.StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(out, format="svg", metadata=nothing, transparent=True)
            if into is not None:
                with explained(into):
                    into.parent.mkdir(parents=True, exist_ok=True)
                    into.with_suffix(".svg").write_text(out.getvalue(), encoding="utf-8")
                    unstamped = dict.fromkeys(("Creator", "Producer", "CreationDate"))
                    figure.savefig(into.with_suffix(".pdf"), format="pdf", metadata=unstamped)
        text = out.getvalue()
        return text[text.index("<svg") :]

    return drawn


@svg
def ap_matrix(results: Results, *, metric: str = "AP") -> Figure | None:
    """Heat map of AP, task × class; empty before a class is learnt, hatched if AP is unknown."""
    rows, names = ap_rows(results, metric), class_order(results)
    if not rows or not names:
        return None
    table = np.array([[number(row.get(n)) for n in names] for row in rows])
    seen = np.array([[n in row for n in names] for row in rows])
    figure, axes = _matrix_axes(len(rows), names)
    top = max(0.05, math.ceil(20 * np.nanmax(table, initial=0)) / 20)  # np.nanmax(initial) also covers all-null tables
    norm = Normalize(0, top)
    image = axes.imshow(np.ma.masked_invalid(table), cmap=BLUES, norm=norm, aspect="auto", interpolation="none")
    unknown = np.argwhere(seen & np.isnan(table))
    if len(unknown):
        squares = Outline.make_compound_path(*(_square(x, y) for y, x in unknown))
        axes.add_patch(PathPatch(squares, facecolor="#F4F4F5", edgecolor="#A1A1AA", hatch="//////", linewidth=0))
    if len(names) <= 25:
        for (y, x), value in np.ndenumerate(table):
            if not np.isnan(value):
                shade = "white" if norm(value) > 0.55 else "#18181B"
                axes.text(x, y, _cell(value), ha="center", va="center", fontsize=8, color=shade)
    _task_borders(axes, results, names, len(rows))
    bar_axes = figure.add_axes(_right_of(axes, figure))
    bar = figure.colorbar(image, cax=bar_axes, format=lambda v, _: f"{100 * v:.0f}")
    bar.outline.set_visible(False)
    bar.set_ticks([0, top / 2, top] if top * 100 % 2 == 0 else [0, top])
    bar_axes.set_title(f"{metric} %", fontsize=8, color=MUTED)
    return figure


def _matrix_axes(n_rows: int, names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with cells of a readable size, and with space below for the names."""
    slanted = len(names) <= 25
    width = min(WIDE - 1.7, 0.75 * len(names))
    height = n_rows * (0.34 if n_rows <= 6 else 0.26)
    shown = [short(n, 22) for n in names]
    size = 8 if len(names) <= 50 else 6.5
    below = 0.15 + max(map(len, shown)) * size * (0.0058 if slanted else 0.0085)
    total = (max(width + 1.7, 3), height + below + 0.35)
    figure = Figure(figsize=total)
    axes = figure.add_axes((0.75 / total[0], below / total[1], width / total[0], height / total[1]))
    axes.set_xticks(range(len(names)))
    for text in axes.set_xticklabels(shown, fontsize=size):
        text.set(rotation=40 if slanted else 90, ha="right", va="center", rotation_mode="anchor")
    axes.set_yticks(range(n_rows), [f"task {i + 1}" for i in range(n_rows)])
    axes.spines[:].set_visible(False)
    for x in range(len(names) + 1):
        axes.axvline(x - 0.5, color="white", linewidth=0.8 if len(names) <= 50 else 0.4)
    for y in range(n_rows + 1):
        axes.axhline(y - 0.5, color="white", linewidth=0.8)
    return figure, axes


def _task_borders(axes: Axes, results: Results, names: Sequence[str], n_rows: int) -> None:
    """A line between the classes of one task and the next, and over each group the task that teaches it."""
    split = (results.get("scenario") or {}).get("split") or []
    sizes = (
        split
        if sum(split) == len(names) and len(split) > 1
        else [len(t.get("new_classes") or []) for t in done(results)]
    )
    if len(sizes) < 2:
        return
    cell = axes.get_position().width * axes.get_figure().get_figwidth() / len(names)  # type: ignore[union-attr]
    at, wording = 0, "would be task" if (results.get("scenario") or {}).get("joint") else "learnt in task"
    for i, n in enumerate(sizes, 1):
        label = f"{wording} {i}" if n * cell > 1.1 else f"task {i}" if n * cell > 0.5 else str(i)
        axes.text(at + n / 2 - 0.5, -0.62, label, ha="center", va="bottom", fontsize=8, color=MUTED)
        at += n
        if at < len(names):
            axes.plot([at - 0.5] * 2, [-0.9, n_rows - 0.5], color="#18181B", linewidth=1.1, clip_on=False)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(n_rows - 0.5, -0.5))


@svg
def task_curves(results: Results) -> Figure | None:
    """AP and AP50 of old, new and all classes after each task; dotted: the change of the previous classes in a task."""
    n = len(done(results))
    if not n:
        return None
    figure = Figure(figsize=(WIDE * 0.86, 2.7), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ("AP", headline(results)), strict=True):
        for group, colour in GROUPS.items():
            values = np.array([number(score(results, i, group, metric)) for i in range(n)]) * 100
            known = ~np.isnan(values)
            if known.any():
                style = {"all": "--"}.get(group, "-")
                axes.plot(
                    np.flatnonzero(known), values[known], style, marker="o", markersize=4.5, color=colour, label=group
                )
        for i in range(1, n):  # the old classes of a task are all classes of the one before it
            ends = [number(score(results, i - 1, "all", metric)), number(score(results, i, "old", metric))]
            axes.plot([i - 1, i], np.array(ends) * 100, ":", color=OLD, linewidth=1.2)
        axes.set_xticks(range(n), [f"task {i + 1}" if n <= 8 else str(i + 1) for i in range(n)])
        axes.set(title=f"{metric} after each task (%)", xlim=(-0.35, n - 0.65))
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
    panels[0].set_ylim(0, max(5, 1.06 * panels[0].get_ylim()[1]))
    handles, labels = max((a.get_legend_handles_labels() for a in panels), key=lambda found: len(found[0]))
    if handles:
        panels[1].legend(handles, [f"{g} classes" for g in labels], loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@svg
def class_change(results: Results, *, metric: str | None = None) -> Figure | None:
    """Per old class: AP when it was learnt (hollow) and at the end (filled), the largest loss first."""
    metric = metric or headline(results)
    known = [c for c in changes(results, metric) if c.before is not None or c.after is not None]
    if not known:
        return None
    columns = 1 if len(known) <= 30 else 2
    per = -(-len(known) // columns)
    figure = Figure(figsize=(4.6 if columns == 1 else WIDE, 0.75 + 0.2 * per), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, columns, sharex=True))
    for k, axes in enumerate(panels):
        _dumbbells(axes, known[k * per : (k + 1) * per], per)
        axes.set_xlabel(f"{metric} (%)")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, borderaxespad=0.2, handletextpad=0.2)
    return figure


def _dumbbells(axes: Axes, part: Sequence[Change], height: int) -> None:
    before = np.array([number(c.before) for c in part]) * 100
    after = np.array([number(c.after) for c in part]) * 100
    y = np.arange(len(part))
    worse = after < before
    for mask, colour in ((worse, NEW), (~worse, "#009E73")):
        axes.hlines(y[mask], before[mask], after[mask], color=colour, linewidth=2.2, alpha=0.55)
    axes.scatter(before, y, s=24, facecolor="white", edgecolor=OLD, linewidth=1.3, zorder=3, label="when learnt")
    axes.scatter(after, y, s=24, color=OLD, zorder=4, label="after the last task")
    axes.set_yticks(y, [short(c.name, 22) for c in part], fontsize=8)
    axes.set(ylim=(height - 0.4, -0.6), xlim=(-2, max(10, axes.get_xlim()[1])))
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)


@svg
def losses(metrics: Sequence[Mapping[str, Any]], terms: Collection[str] | None = None) -> Figure | None:
    """One small panel per loss over the steps of all tasks; dashed lines mark the start of a task.

    Args:
        terms: names of the distillation losses, which get a colour of their own. None: the run is older than this list,
            and the names of its distillation losses begin with ``distill``.
    """
    x, steps, starts = _timeline(metrics)
    names = list(dict.fromkeys(k for s in steps for k in _losses_of(s)))
    if not names:
        return None
    columns = 3 if len(names) in (5, 6, 9) else min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(min(WIDE, 3.3 * columns), 0.35 + 1.65 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels, names):
        values = np.array([number(_losses_of(s).get(name)) for s in steps])
        _curve(axes, x, values, NEW if _distils(name, terms) else OLD)
        for task, start in starts[1:]:
            axes.axvline(start, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
            if len(starts) <= 4:
                axes.text(
                    start,
                    1,
                    f" task {task + 1}",
                    transform=axes.get_xaxis_transform(),
                    fontsize=7,
                    va="top",
                    color=MUTED,
                )
        axes.set_title(short(name, 30))
        axes.set_xlim(x[0] - 0.5, x[-1] + 0.5)
        axes.tick_params(labelsize=7.5)
        axes.grid(axis="y", color=GRID)
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=4, integer=True, min_n_ticks=1)
        axes.set_axisbelow(True)
    figure.supxlabel("step, all tasks in a row" if len(starts) > 1 else "step", fontsize=8, color=MUTED)
    return figure


def _distils(name: str, terms: Collection[str] | None) -> bool:
    return name.startswith("distill") if terms is None else name in terms


def _timeline(
    metrics: Sequence[Mapping[str, Any]],
) -> tuple[np.ndarray, list[Mapping[str, Any]], list[tuple[int, float]]]:
    """[n] position of each logged step, the steps, and (task, where it begins).

    Steps may be counted from 0 in each task or continuously; after resuming, the last line of a step counts.
    """
    latest = {
        (int(m.get("task") or 0), int(m["step"])): m
        for m in metrics
        if m.get("kind") == "step" and isinstance(m.get("step"), (int, float))
    }
    x: list[float] = []
    starts: list[tuple[int, float]] = []
    offset, last_task = 0.0, None
    for task, step in sorted(latest):
        if task != last_task:
            if x and step + offset <= x[-1]:
                offset = x[-1] + 1 - min(step, 1)
            starts.append((task, step + offset))
            last_task = task
        x.append(step + offset)
    return np.array(x), [latest[k] for k in sorted(latest)], starts


def _losses_of(step: Mapping[str, Any]) -> Mapping[str, Any]:
    found = step.get("losses")
    return found if isinstance(found, Mapping) else {}


def _curve(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """At most 300 points: the mean of each stretch as a line, its range as a band."""
    known = np.isfinite(y)
    if not known.any():
        return
    x, y = x[known], y[known]
    if len(x) <= 300:
        axes.plot(x, y, color=colour, linewidth=1.1, marker="o" if len(x) == 1 else "", markersize=3)
    else:
        cuts = np.unique(np.linspace(0, len(x), 301).astype(int)[:-1])
        counts = np.diff([*cuts, len(x)])
        at = np.add.reduceat(x, cuts) / counts
        low, high = np.minimum.reduceat(y, cuts), np.maximum.reduceat(y, cuts)
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(at, np.add.reduceat(y, cuts) / counts, color=colour, linewidth=1.2)
    top = np.quantile(y, 0.99)  # a spike during warm-up must not flatten the rest
    if y.min() >= 0:
        axes.set_ylim(0, top * 1.15 or 1)


def number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def short(name: str, length: int) -> str:
    name = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    return name if len(name) <= length else name[: length - 1] + "…"


def _cell(value: float) -> str:
    return f"{100 * value:.1f}" if value < 0.9995 else "100"


def _square(x: float, y: float) -> Outline:
    return Outline(
        [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5), (0, 0)], closed=True
    )


def _right_of(axes: Axes, figure: Figure) -> tuple[float, float, float, float]:
    place, width, height = axes.get_position(), *figure.get_size_inches()
    tall = min(place.height * height, 1.6)
    return place.x1 + 0.2 / width, place.y1 - tall / height, 0.13 / width, tall / height
