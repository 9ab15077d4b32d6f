"""The figures of ``ciod eval``: precision and recall per class, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ciod.evaluation.confusions import Confusion
from ciod.report.plots import BLUES, GRID, MUTED, NEW, OLD, WIDE, short, svg

NAMED = 10  # curves with a colour and a name of their own; of more classes the worst ones
_COLOURS = (OLD, NEW, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#332288", "#882255", "#117733", "#999933")
MOST_CELLS = 30  # classes of a matrix: those that are confused most


@svg
def precision_recall(curves: Mapping[str, np.ndarray], ap50: Mapping[str, float | None]) -> Figure | None:
    """Precision over recall at IoU 0.5, per class, and their mean.

    Args:
        curves: class → [101] precision at recall 0, 0.01, …, 1.
        ap50: class → AP50; with more than ten classes those with the lowest have a name.
    """
    if not curves:
        return None
    recall = np.linspace(0, 1, 101)
    figure = Figure(figsize=(WIDE * 0.8, 3.6), layout="constrained")
    axes = figure.subplots()
    worst = sorted(curves, key=lambda n: ap50.get(n) or 0.0)[:NAMED]
    for name, precision in curves.items():
        if name not in worst:
            axes.plot(recall, precision, color=GRID, linewidth=0.8)
    named = zip([n for n in curves if n in worst], _COLOURS, strict=False)
    for name, colour in named:
        label = f"{short(name, 24)}  {100 * (ap50.get(name) or 0):.1f}"
        axes.plot(recall, curves[name], color=colour, linewidth=1.3, label=label)
    if len(curves) > 1:
        mean = np.mean(list(curves.values()), axis=0)
        axes.plot(recall, mean, color="#18181B", linewidth=2.2, linestyle="--", label="mean")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    title = "class, AP50 (%)" if len(curves) <= NAMED else f"the {NAMED} lowest of {len(curves)} classes, AP50 (%)"
    legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title=title, fontsize=8, title_fontsize=8)
    legend.get_title().set_color(MUTED)
    return figure


@svg
def confusion_matrix(found: Confusion) -> Figure | None:
    """Share of the objects of each class that have a detection of each class, or none; in the last row the number of
    detections without an object."""
    total = found.counts[:-1].sum(1)
    if not total.sum():
        return None
    rows = _shown(found.counts)
    keep = [*rows, len(found.names)]
    table = 100 * found.counts[np.ix_(rows, keep)] / np.maximum(total[rows], 1)[:, None]
    columns = [short(found.names[c], 22) for c in rows]
    side = min(WIDE - 2.2, max(2.2, 0.42 * len(keep)))
    figure = Figure(figsize=(side + 2.2, 0.86 * side + 1.6), layout="constrained")
    axes = figure.subplots()
    norm = Normalize(0, 100)
    axes.imshow(table, cmap=BLUES, norm=norm, aspect="auto", interpolation="none")
    alarms = found.counts[-1, rows]
    for (y, x), value in np.ndenumerate(table):
        if value >= 0.5:
            on_diagonal = x < len(rows) and rows[x] == rows[y]
            shade = "white" if norm(value) > 0.55 else "#18181B" if on_diagonal or x == len(rows) else NEW
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=shade)
    for x, n in enumerate(alarms):
        axes.text(x, len(rows), str(n), ha="center", va="center", fontsize=7.5, color=MUTED)
    axes.set_xticks(range(len(keep)))
    for text in axes.set_xticklabels([*columns, "nothing"], fontsize=8):
        text.set(rotation=40, ha="right", rotation_mode="anchor")
    objects = [f"{name} ({n})" for name, n in zip(columns, total[rows], strict=True)]
    axes.set_yticks(range(len(rows) + 1), [*objects, "no object (number)"], fontsize=8)
    axes.set_ylim(len(rows) + 0.5, -0.5)
    axes.axhline(len(rows) - 0.5, color=MUTED, linewidth=0.8)
    axes.axvline(len(rows) - 0.5, color=MUTED, linewidth=0.8)
    axes.set(xlabel="what was detected (%)", ylabel="object")
    axes.spines[:].set_visible(False)
    return figure


def _shown(counts: np.ndarray) -> list[int]:
    """Classes of the matrix: all that have objects or detections, or of many those that are confused most."""
    inner = counts[:-1, :-1]
    used = np.flatnonzero(counts[:-1].sum(1) + counts[:, :-1].sum(0))
    if len(used) <= MOST_CELLS:
        return used.tolist()
    off = inner.sum(0) + inner.sum(1) - 2 * np.diag(inner)
    return sorted(used[np.argsort(-off[used], kind="stable")[:MOST_CELLS]].tolist())
