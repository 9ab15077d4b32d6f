"""Compares several runs on a self-contained HTML page: table, curves, classes, published results, images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ciod.core.errors import CiodError
from ciod.core.run_log import atomic_write
from ciod.report import by_picture, compared_figures, compared_plots, judged, paired, published
from ciod.report.compared import PAGE, best_cells, cell, comparison_cells, comparison_rows, deviation
from ciod.report.page import data_url, environment, examples, read_results, svg, unbroken
from ciod.report.ratios import NO_GATE, Gate
from ciod.report.summary import Runs, ap_rows, beside, class_order, done, is_joint, mean, percent, subset, verdict

Folders = Mapping[str, "Path | Sequence[Path]"]


@dataclass
class About:
    """Further content of a page, in addition to the numbers of its runs; everything is optional."""

    command: str = ""
    failures: Sequence[tuple[str, str]] = ()
    """Failed runs, with the reasons."""
    warnings: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    """Versions, seeds, machine: (what, value)."""
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Label → settings of the method that differ from its defaults."""
    against: str = ""
    """The method with which the others are compared per seed; empty: no such table."""
    settings: str = ""
    """Settings of every run, as YAML."""
    gate: Gate = NO_GATE
    margin: float = paired.MARGIN
    """Difference in AP up to which two methods count as equal."""
    blocks: Sequence[str] = ()
    """Fold, class order and seed of each repetition, as text."""
    differences: Sequence[dict[str, Any]] | None = None
    """The result of ``differences_of``, if it is known already."""
    figures: bool = False
    """Every figure is also written as SVG and PDF, to ``figures`` next to the page."""


def write_comparison(folders: Folders, out: Path, about: About | None = None) -> Path:
    """Writes a page that compares runs: {display name: run folder, or one folder per seed}.

    Links to the runs' reports are relative to ``out``.

    Raises:
        CiodError: there are no runs, a folder has no readable ``results.json``, or some runs used a subset of the
            images and others did not.
    """
    out = Path(out)
    listed = [(n, Path(f)) for n, fs in folders.items() for f in ([fs] if isinstance(fs, (str, Path)) else fs)]
    if not listed and not (about and about.failures):
        raise CiodError("There are no runs to compare.")
    runs = []
    for name, folder in listed:
        results = read_results(folder)
        if not results:
            raise CiodError(
                f"{folder} has no results.json: the run '{name}' cannot be compared before its first task ends."
            )
        runs.append((name, results))
    parts = {subset(r): n for n, r in runs}
    if len(parts) > 1:
        have = "; ".join(f"{n}: {f'subset={s}' if s else 'all images'}" for s, n in parts.items())
        raise CiodError(f"Runs with a subset of the images cannot be compared with others ({have}).")
    content = _content(listed, runs, out, about or About())
    return atomic_write(out, environment().get_template("comparison.html.j2").render(content))


def _content(listed: list[tuple[str, Path]], runs: Runs, out: Path, about: About) -> dict[str, Any]:
    """The content of comparison.html.j2."""
    rows = comparison_rows(runs, about.gate)
    best = best_cells(rows)
    scenario = next(((r.get("scenario") or {}) for _, r in runs if not is_joint(r)), {})
    first: dict[str, Path] = {}
    for name, folder in listed:
        first.setdefault(name, folder)
    example = dict(reversed(runs))  # the first seed of each
    outcomes = by_picture.outcomes([(n, r, f) for (n, f), (_, r) in zip(listed, runs, strict=True)])
    differences = about.differences
    if differences is None:
        differences = differences_of(runs, outcomes, about.against, about.margin) if about.against else []
    figures = _figures(runs, differences, outcomes, about, out.parent / "figures" if about.figures else None)
    several = any(row["seeds"] > 1 for row in rows)
    return {
        "title": " · ".join(["Comparison", *([str(scenario["name"])] if scenario.get("name") else [])]),
        "columns": list(PAGE.values()),
        "rows": [
            {
                "name": row["name"],
                "links": _links(row["name"], listed, runs, out),
                "unfinished": row["unfinished"],
                "joint": row["joint"],
                "seeds": row["seeds"],
                "beside": beside(example[row["name"]]),
                "cells": [
                    (*_parts(c), (i, k) in best) for k, c in zip(PAGE, comparison_cells(row, PAGE)[1:], strict=True)
                ],
            }
            for i, row in enumerate(rows)
        ],
        "several": several,
        "details": _details(rows),
        "against": about.against,
        "paired_columns": list(paired.SHOWN.values()),
        **_differences(differences, about),
        "bases": judged.bases(runs, about.gate),
        "gate": percent(about.gate.share, " %") if about.gate.share else "",
        "failures": about.failures,
        "warnings": [*about.warnings, *(judged.remarks(runs, about.gate) if about.against else []), *_warnings(runs)],
        "verdicts": [(n, unbroken(verdict(r))) for n, r in example.items()][::-1],
        "figures": figures,
        "one_order": compared_figures.one_order(runs),
        "pairs": list(by_picture.pairs(outcomes).items()) if about.against else [],
        "saved": about.figures,
        "bounded": any(bound for _, r in runs if not is_joint(r) for bound in r.get("upper_bounds") or []),
        "classes": _classes(runs),
        "names": [row["name"] for row in rows],
        "protocol": scenario.get("protocol") or [],
        "subset": scenario.get("subset"),
        "literature": published.of(scenario),
        "pictures": _shared_examples(first),
        "about": about,
    }


def differences_of(
    runs: Runs, outcomes: Sequence[by_picture.Outcome], against: str, margin: float
) -> list[dict[str, Any]]:
    """``paired.differences``, with ``pictures``: column → bootstrap interval over the test pictures."""
    rows = paired.differences(runs, against, margin)
    intervals = by_picture.intervals(outcomes, against)
    return [{**row, "pictures": intervals.get(row["name"], {})} for row in rows]


def _differences(rows: Sequence[dict[str, Any]], about: About) -> dict[str, Any]:
    return {
        "differences": [
            (row["name"], row["seeds"], [(paired.cell(row, k), paired.clear(row, k)) for k in paired.SHOWN])
            for row in rows
        ],
        "test_heads": paired.HEADS,
        "tests": paired.tests(rows, about.against, about.margin),
        "limits": paired.limits(rows),
        "margin": f"{100 * about.margin:g}",
    }


def _figures(
    runs: Runs,
    differences: Sequence[dict[str, Any]],
    outcomes: Sequence[by_picture.Outcome],
    about: About,
    into: Path | None,
) -> dict[str, Any]:
    """Name → figure; the figures of differences only if there is a reference method."""

    def at(name: str) -> Path | None:
        return None if into is None else into / name

    few = len(dict(runs)) <= compared_figures.MOST_METHODS
    drawn = {
        "curves": compared_plots.curves(runs, into=at("curves")),
        "bars": compared_plots.bars(runs, into=at("bars")) if few else "",
        "forest": compared_figures.forest(differences, about.against, about.margin, into=at("forest")),
    }
    if about.against:
        counts = by_picture.confusion(outcomes)
        drawn |= {
            "plane": compared_figures.stability_plasticity(runs, into=at("stability-plasticity")),
            "matrix": compared_figures.class_tasks(runs, into=at("class-task")),
            "confusion": compared_figures.confusion(counts, into=at("confusion")),
        }
    return {"plane": "", "matrix": "", "confusion": "", **{k: svg(v) for k, v in drawn.items()}}


def _links(name: str, listed: list[tuple[str, Path]], runs: Runs, out: Path) -> list[tuple[str, str]]:
    """(seed, address) of each existing report of a run."""
    found = []
    for (n, folder), (_, results) in zip(listed, runs, strict=True):
        if n == name and (folder / "report.html").is_file():
            path = Path(os.path.relpath(folder.resolve() / "report.html", out.resolve().parent)).as_posix()
            found.append((str(results.get("seed", "")), quote(path)))
    return found


def _parts(text: str) -> tuple[str, str]:
    """A mean, and its standard deviation, which is shown below it."""
    value, sign, deviation = text.partition(" ± ")
    return value, f"±\u00a0{deviation}" if sign else ""


def _details(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The known metrics that do not fit into the first table."""
    keys = ("old_before", "forgetting", "stability", "plasticity", "rai")
    if not any(row[k] is not None for row in rows for k in keys[1:]):
        return []
    return [(row["name"], [cell(k, row[k], row["std"][k]) for k in keys]) for row in rows if not row["joint"]]


def _warnings(runs: Runs) -> list[str]:
    """Each warning once, with the runs that have it."""
    runs_of: dict[str, list[str]] = {}
    for name, results in runs:
        for w in results.get("warnings") or []:
            runs_of.setdefault(w, []).append(name)
    return [f"{', '.join(dict.fromkeys(names))}: {w}" for w, names in runs_of.items()]


def _classes(runs: Runs) -> list[dict[str, Any]]:
    """AP50 of each class after the last task, one cell per method, in the order of arrival."""
    reference = next((r for _, r in runs if not is_joint(r)), None)
    if reference is None:
        return []
    joint = {n for n, r in runs if is_joint(r)}
    finals: dict[str, list[Mapping[str, float | None]]] = {}
    for name, results in runs:
        finals.setdefault(name, []).append((ap_rows(results, "AP50") or [{}])[-1])
    taught = enumerate(done(reference), 1) if compared_figures.one_order(runs) else ()  # otherwise it differs
    task_of = {n: i for i, t in taught for n in t.get("new_classes") or []}
    found, before = [], 0
    for c in class_order(reference):
        means = {n: mean([row.get(c) for row in seeds]) for n, seeds in finals.items()}
        top = max((v for n, v in means.items() if v is not None and n not in joint), default=None)
        cells = []
        for name, seeds in finals.items():
            v, std = means[name], deviation([row.get(c) for row in seeds])
            text = percent(v) + ("" if std is None else f" ± {percent(std)}")
            cells.append(
                {
                    "text": text,
                    "share": max(0, round(100 * v)) if v is not None else None,
                    "best": v == top and name not in joint and len(finals) - len(joint) > 1,
                }
            )
        task = task_of.get(c, 0)
        found.append({"name": c, "task": task, "starts": task != before, "cells": cells})
        before = task
    return found


def _shared_examples(folders: Mapping[str, Path]) -> list[list[tuple[str, str]]]:
    """[(run, address)] of each image: images of the last task that at least two runs have."""
    last = {name: {p.name: p for p in found[-1][1]} for name, folder in folders.items() if (found := examples(folder))}
    names = dict.fromkeys(n for pictures in last.values() for n in pictures)
    shared = [[(run, pictures[n]) for run, pictures in last.items() if n in pictures] for n in names]
    return [[(run, data_url(p)) for run, p in found] for found in shared if len(found) > 1][:6]
