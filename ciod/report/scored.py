"""The page of ``ciod eval … out=FOLDER``: AP per class, precision and recall, and which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciod.core.plural import counted, few
from ciod.core.run_log import atomic_write
from ciod.evaluation.confusions import SHOWN
from ciod.report import scored_plots, scores
from ciod.report.page import environment, svg, unbroken
from ciod.report.summary import percent

if TYPE_CHECKING:
    from ciod.evaluation.detect import Scored

PAGE, CONTENT = "eval.html", "eval.json"


def write(scored: Scored, out: Path, *, model: str, settings: Mapping[str, Any]) -> Path:
    """Writes ``eval.html``, ``eval.json`` and each figure as SVG and PDF into a folder; returns the page.

    Args:
        model: its name, for the title.
        settings: those of the evaluation that were given, for the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    scores.write(scored, out / CONTENT)
    content = _content(scored, out, model, settings)
    return atomic_write(out / PAGE, environment().get_template("scored.html.j2").render(content))


def _content(scored: Scored, out: Path, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    table, found = scored.table, scored.confusion
    columns = [k for k in table.overall if k not in ("APs", "APm", "APl")]
    ap50 = {n: row["AP50"] for n, row in table.per_class.items()}
    overall = table.overall
    confused = {} if found is None else _per_class(found.counts, found.names)
    rows = [
        {"name": n, "cells": [percent(table.per_class[n][k]) for k in columns], **confused.get(n, _NOTHING)}
        for n in sorted(scored.scored, key=lambda n: table.per_class[n]["AP"] or 0)
    ]
    first = f"{percent(overall['AP50'], ' %')} AP50 and {percent(overall['AP'], ' %')} AP"
    return {
        "title": f"{model} on {settings.get('data', 'data')}",
        "verdict": unbroken(f"{first} on {counted(scored.images, 'image')}, {counted(len(scored.scored), 'class')}."),
        "warnings": [f"unreadable, scored as empty: {file}" for file in scored.broken],
        "tiles": [(percent(overall[k]), k, "mean over the classes") for k in columns]
        + [(percent(overall[k]), k, f"{size} objects") for k, size in _SIZES.items()],
        "columns": columns,
        "rows": rows,
        "score": SHOWN,
        "curves": svg(scored_plots.precision_recall(table.curves, ap50, into=out / "precision-recall")),
        "matrix": "" if found is None else svg(scored_plots.confusion_matrix(found, into=out / "confusion")),
        "pairs": [] if found is None else found.most(),
        "notes": _notes(scored, settings),
    }


_SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
_NOTHING = {"objects": "–", "found": "–", "alarms": "–"}


def _per_class(counts: np.ndarray, names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    objects = counts[:-1].sum(1)
    return {
        n: {"objects": int(objects[i]), "found": int(counts[i, i]), "alarms": int(counts[-1, i])}
        for i, n in enumerate(names)
    }


def _notes(scored: Scored, settings: Mapping[str, Any]) -> list[str]:
    lines = [f"{k}: {v}" for k, v in settings.items()]
    if scored.unknown_to_model:
        lines.append(f"not in the model, left out: {few(scored.unknown_to_model)}")
    if scored.absent_from_data:
        lines.append(f"not in the data, left out: {few(scored.absent_from_data)}")
    return [*lines, *(f"data: {line}" for line in scored.problems)]
