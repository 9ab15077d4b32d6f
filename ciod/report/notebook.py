"""Results in a notebook: a run shows its verdict, table, curves and pictures, a comparison its table and curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ciod.core.run_log import read_metrics
from ciod.report import compared, compared_plots, extended, plots
from ciod.report.page import data_url, environment, examples, read_results, svg, unbroken
from ciod.report.summary import done, headline, percent, score, verdict

PICTURES = 4


class Run(dict[str, Any]):
    """The content of a run's ``results.json``, which a notebook shows as a table, curves and pictures.

    Args:
        folder: of ``ciod train`` or ``ciod extend``.

    Raises:
        CiodError: its ``results.json`` is not valid.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        super().__init__(read_results(self.folder))

    def _repr_html_(self) -> str:
        return _page({**_of_extension(self), **_of_run(self)} if self.get("extension") else _of_run(self))


class Compared(dict[str, Any]):
    """The content of a comparison's ``compare.json``, which a notebook shows as a table and curves.

    Args:
        content: of the file.
        folder: of ``ciod compare``.
    """

    def __init__(self, content: Mapping[str, Any], folder: str | Path):
        self.folder = Path(folder)
        super().__init__(content)

    def runs(self) -> list[tuple[str, dict[str, Any]]]:
        """Label and ``results.json`` of every finished run."""
        rows = [(r["label"], r.get("folder")) for r in self.get("runs") or [] if r.get("status") != "failed"]
        return [(label, found) for label, f in rows if f and (found := read_results(self.folder / f))]

    def _repr_html_(self) -> str:
        runs = self.runs()
        if not runs:
            return _page({"verdict": "No run is finished."})
        columns = {k: compared.COLUMNS[k] for k in ("old_after", "new", "all_ap", "all_ap50", "retention")}
        rows = [compared.comparison_cells(row, columns) for row in compared.comparison_rows(runs)]
        failed = sum(r.get("status") == "failed" for r in self["runs"])
        sentence = f"{len(runs)} runs" + (f", {failed} failed" if failed else "")
        table = {"head": ["method", *columns.values()], "rows": rows}
        return _page({"verdict": sentence, "tables": [table], "figures": [svg(compared_plots.curves(runs))],
                      "report": self.folder / "compare.html"})  # fmt: skip


def _of_run(run: Run) -> dict[str, Any]:
    m = headline(run)
    groups = [(g, k) for g in ("old", "new", "all") for k in ("AP", m)]
    rows = [[str(i + 1), *(percent(score(run, i, *g)) for g in groups)] for i in range(len(done(run)))]
    pictures = [p for _, some in examples(run.folder)[-1:] for p in some[:PICTURES]]
    table = {"head": ["after task", *(f"{g} {k} (%)" for g, k in groups)], "rows": rows}
    terms = (run.get("method") or {}).get("distillation_terms")
    extension = bool(run.get("extension"))
    curves = [] if extension else [plots.task_curves(run), plots.class_change(run)]
    return {
        "verdict": unbroken((extended.verdict if extension else verdict)(run)),
        "tables": _of_extension(run)["tables"] if extension else [table],
        "figures": [svg(f) for f in [*curves, plots.losses(read_metrics(run.folder), terms)] if f],
        "pictures": [data_url(p) for p in pictures],
        "report": run.folder / "report.html",
    }


def _of_extension(run: Run) -> dict[str, Any]:
    rows = [[extended.name_of(row), *(row[c] for c in extended.COLUMNS[1:])] for row in extended.rows(run)]
    return {"tables": [{"head": list(extended.COLUMNS), "rows": rows}]}


def _page(content: Mapping[str, Any]) -> str:
    every = {"tables": [], "figures": [], "pictures": [], "report": None, **content}
    return environment().get_template("notebook.html.j2").render(every)
