"""The plots of a report as matplotlib figures: ``ciod.plot.task_curves(run)``. A notebook shows them.

``run`` is what ``ciod.train`` or ``ciod.extend`` returned, or a run folder; ``compared`` what ``ciod.compare``
returned, or its folder; ``scored`` what ``ciod.evaluate`` returned. ``figure.savefig("a.pdf")`` writes a figure.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from ciod.core.errors import CiodError
from ciod.core.reading import read_object
from ciod.core.run_log import read_metrics
from ciod.report import compared_figures, compared_plots, paired, plots, scored_plots
from ciod.report.notebook import Compared, Run
from ciod.report.summary import headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ciod.evaluation.detect import Scored

__all__ = [
    "ap_matrix",
    "class_change",
    "class_tasks",
    "confusion_matrix",
    "curves",
    "forest",
    "losses",
    "precision_recall",
    "stability_plasticity",
    "task_curves",
]

Results = Run | Mapping[str, Any] | str | Path
Comparison = Compared | str | Path


def ap_matrix(run: Results, *, metric: str = "AP") -> Figure:
    """AP of each class after each task, as a heat map."""
    return _drawn(plots.ap_matrix, _results(run), metric=metric)


def task_curves(run: Results) -> Figure:
    """AP of old, new and all classes after each task."""
    return _drawn(plots.task_curves, _results(run))


def class_change(run: Results, *, metric: str | None = None) -> Figure:
    """AP of each old class when it was learnt and at the end."""
    return _drawn(plots.class_change, _results(run), metric=metric or headline(_results(run)))


def losses(run: Run | str | Path) -> Figure:
    """The losses over the steps of all tasks."""
    folder = run.folder if isinstance(run, Run) else Path(run)
    terms = (_results(run).get("method") or {}).get("distillation_terms")
    return _drawn(plots.losses, read_metrics(folder), terms)


def precision_recall(scored: Scored) -> Figure:
    """Precision over recall of each class, at IoU 0.5."""
    ap50 = {n: row["AP50"] for n, row in scored.table.per_class.items()}
    return _drawn(scored_plots.precision_recall, scored.table.curves, ap50)


def confusion_matrix(scored: Scored) -> Figure:
    """Which classes are detected on the objects of each class."""
    return _drawn(scored_plots.confusion_matrix, scored.confusion)


def curves(compared: Comparison) -> Figure:
    """AP of every method after each task."""
    return _drawn(compared_plots.curves, _comparison(compared).runs())


def stability_plasticity(compared: Comparison) -> Figure:
    """What every method keeps of the old classes, against what it learns of the new ones."""
    return _drawn(compared_figures.stability_plasticity, _comparison(compared).runs())


def class_tasks(compared: Comparison) -> Figure:
    """AP50 of each class after each task, one panel per method."""
    return _drawn(compared_figures.class_tasks, _comparison(compared).runs())


def forest(compared: Comparison) -> Figure:
    """The differences of the methods from the one they are compared with, with intervals."""
    found = _comparison(compared)
    margin = found.get("margin") or paired.MARGIN
    return _drawn(compared_figures.forest, found.get("differences") or [], found.get("against") or "", margin)


def _results(run: Results) -> Mapping[str, Any]:
    return Run(run) if isinstance(run, (str, Path)) else run


def _comparison(compared: Comparison) -> Compared:
    if isinstance(compared, Compared):
        return compared
    return Compared(read_object(Path(compared) / "compare.json"), compared)


def _drawn(draw: Callable[..., str], *args: Any, **kwargs: Any) -> Figure:
    """The figure behind a plot of a report, which a notebook shows as SVG.

    Raises:
        CiodError: there is nothing to draw.
    """
    figure_of: Any = getattr(draw, "__wrapped__")  # noqa: B009  (the undecorated function)
    with matplotlib.rc_context(plots.STYLE):
        figure = figure_of(*args, **kwargs)
    if figure is None:
        raise CiodError(f"plot.{draw.__name__}: there is nothing to draw; the values it shows are not known.")

    def as_svg() -> str:
        out = io.StringIO()
        with matplotlib.rc_context(plots.STYLE):
            figure.savefig(out, format="svg")
        return out.getvalue()

    figure._repr_svg_ = as_svg
    return figure
