"""The figures of a comparison as inline SVG: one line or group of bars per method, with mean and deviation."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciod.report.compared import comparison_rows, deviation
from ciod.report.plots import GRID, GROUPS, MUTED, WIDE, number, short, svg
from ciod.report.summary import Results, Runs, ap_rows, done, is_joint, mean, score

# Okabe and Ito's colours, which colour-blind people can distinguish, then the same colours with other line styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#3F3F46")
_LINES = ("-", "--", "-.", ":")
# The classes of the first task, because "the old classes" change with every task.
_PANELS = (("all", "AP50", "AP50 of all classes seen (%)"), ("all", "AP", "AP of all classes seen (%)"),
           ("first", "AP50", "AP50 of the first task's classes (%)"))  # fmt: skip


@svg
def curves(runs: Runs) -> Figure | None:
    """The AP of each method after each task: mean over its seeds, with one standard deviation as a band; upper bounds
    as diamonds, if the runs have them."""
    by_name = {n: [r for m, r in runs if m == n and not is_joint(r)] for n, _ in runs}
    by_name = {n: seeds for n, seeds in by_name.items() if seeds}
    tasks = max((len(done(r)) for seeds in by_name.values() for r in seeds), default=0)
    if tasks < 2:
        return None
    figure = Figure(figsize=(WIDE, 3.1), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for axes, (group, metric, title) in zip(panels, _PANELS, strict=True):
        for i, (name, seeds) in enumerate(by_name.items()):
            colour, dashes = COLOURS[i % len(COLOURS)], _LINES[i // len(COLOURS) % len(_LINES)]
            average, std = _mean_and_deviation(seeds, group, metric, tasks)
            at = np.flatnonzero(np.isfinite(average))
            axes.plot(at, average[at], dashes, color=colour, marker="o", markersize=4, label=short(name, 40))
            axes.fill_between(at, (average - std)[at], (average + std)[at], color=colour, alpha=0.15, linewidth=0)
        if group == "all":
            _bounds(axes, [r for seeds in by_name.values() for r in seeds], metric, tasks)
        axes.set_xticks(range(tasks), [f"task {t + 1}" if tasks <= 5 else str(t + 1) for t in range(tasks)])
        axes.set(title=title, xlim=(-0.3, tasks - 0.7))
        axes.set_ylim(0, max(5, 1.06 * axes.get_ylim()[1]))
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def _mean_and_deviation(seeds: list[Results], group: str, metric: str, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation after each task, in percent."""
    values = [[_score(r, t, group, metric) for r in seeds if t < len(done(r))] for t in range(tasks)]
    average = np.array([number(mean(v)) for v in values]) * 100
    return average, np.nan_to_num(np.array([number(deviation(v)) for v in values])) * 100


def _score(results: Results, task: int, group: str, metric: str) -> float | None:
    if group != "first":
        return score(results, task, group, metric)
    rows = ap_rows(results, metric)
    return mean([rows[task].get(n) for n in done(results)[0].get("new_classes") or []]) if task < len(rows) else None


def _bounds(axes: Axes, runs: list[Results], metric: str, tasks: int) -> None:
    """Joint training of each class prefix; the first task is its own joint training."""
    known = [r.get("upper_bounds") or [] for r in runs]
    per_task = [mean([(b[t] or {}).get(metric) for b in known if t < len(b)]) for t in range(tasks)]
    at = [t for t, v in enumerate(per_task) if v is not None]
    if at:
        heights = [100 * number(per_task[t]) for t in at]
        axes.plot(at, heights, "D", color=MUTED, markersize=5, markerfacecolor="white", label="joint (upper bound)")


@svg
def bars(runs: Runs) -> Figure | None:
    """Bars of AP50 and of AP of old, new and all classes after the last task, for several runs."""
    rows = comparison_rows(runs)
    if not rows:
        return None
    figure = Figure(figsize=(min(WIDE, 3 + 1.9 * len(rows)), 3), layout="constrained")
    keys = {"AP50": ("old_after", "new", "all_ap50"), "AP": ("old_ap", "new_ap", "all_ap")}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (metric, columns) in zip(panels, keys.items(), strict=True):
        for k, (group, column) in enumerate(zip(GROUPS, columns, strict=True)):
            values = np.array([number(row[column]) for row in rows]) * 100
            at = np.arange(len(rows)) + 0.26 * (k - 1)
            axes.bar(at, np.nan_to_num(values), 0.24, color=GROUPS[group], label=f"{group} classes")
            for x, v in zip(at, values):
                if len(rows) <= 8:
                    axes.text(
                        x, np.nan_to_num(v), "–" if np.isnan(v) else f" {v:.0f}", ha="center", va="bottom", fontsize=7.5
                    )
        axes.set_title(f"{metric} after the last task (%)")
        axes.set_xticks(range(len(rows)))
        for text in axes.set_xticklabels([short(r["name"], 16) for r in rows]):
            if len(rows) > 5:
                text.set(rotation=30, ha="right", rotation_mode="anchor")
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
    panels[0].set_ylim(0, max(5, panels[0].get_ylim()[1]))  # also if nothing was learnt
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
