"""The results of a comparison: adds bounds to the results of every run, then writes compare.json, tables and page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from ciod.comparison import schedule
from ciod.comparison.plan import Cell, Plan, pairs
from ciod.comparison.worker import finished
from ciod.core.plural import counted
from ciod.core.run_log import atomic_write, write_json
from ciod.methods.base.papers import bibtex
from ciod.report import by_picture, compared, judged, paired
from ciod.report.comparison import About, differences_of, write_comparison
from ciod.report.page import read_results, write_report
from ciod.report.ratios import Gate

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from ciod.comparison.given import Entry
    from ciod.core.results_schema import ComparedMethod, ComparedRun, ComparisonFile, ResultsFile
    from ciod.report.summary import Runs

FORMAT = 1
PAGE = "compare.html"


def announcement(plan: Plan) -> list[str]:
    """A summary of what will be trained."""
    open_ = [c for c in plan.cells if not finished(c.folder, c.key)]
    kinds = {k: sum(c.kind == k for c in plan.cells) for k in ("first", "joint", "run")}
    parts = [f"{n} {what}" for k, what in (("first", "shared first tasks"), ("joint", "joint models"),
             ("run", "runs")) if (n := kinds[k])]  # fmt: skip
    labels = ", ".join(e.label for e in plan.entries)
    blocks = [f"block: {b.words()}" for b in plan.blocks if b.settings]
    return [
        f"comparing {labels} on {counted(len(plan.scenario), 'task')}, seeds {', '.join(map(str, plan.seeds))}",
        *blocks,
        f"{', '.join(parts)}; {len(plan.cells) - len(open_)} of {len(plan.cells)} exist already ({plan.out})",
        *plan.why,
        *plan.warnings,
    ]


def planned(plan: Plan, part: tuple[int, int] | None = None) -> list[dict[str, str]]:
    """Every run, or those of a part: its name, folder and state."""
    rows = []
    for c in schedule.part(plan.cells, *part) if part else plan.cells:
        state = "finished" if finished(c.folder, c.key) else "started" if c.started else "to train"
        rows.append({"name": c.name, "folder": str(c.folder), "state": state})
    return rows


def failures(failed: Mapping[str, str]) -> list[dict[str, str]]:
    """Failed runs of a part."""
    return [{"label": name, "status": "failed", "error": why} for name, why in failed.items()]


def listing(plan: Plan, part: tuple[int, int] | None = None) -> list[str]:
    """``planned`` as lines, for ``--dry-run``."""
    return [f"  {row['state']:9} {row['name']} ({row['folder']})" for row in planned(plan, part)]


def of_part(plan: Plan, part: tuple[int, int], failed: Mapping[str, str]) -> list[str]:
    """The outcome of a part of the runs."""
    cells = schedule.part(plan.cells, *part)
    whole = sum(finished(c.folder, c.key) for c in plan.cells)
    return [
        *(f"failed: {name}: {why}" for name, why in failed.items()),
        f"part {part[0]} of {part[1]}: {len(cells) - len(failed)} of {len(cells)} runs are finished, {whole} of "
        f"{len(plan.cells)} in total. When all parts are finished, repeat the command without only= to write the page.",
    ]


def write(plan: Plan, failed: Mapping[str, str], *, page: str = PAGE) -> ComparisonFile:
    """Adds the bounds to every finished run, and writes all files of the comparison.

    Returns:
        The content of compare.json.
    """
    good = [(e.label, c.folder) for e, _, c in pairs(plan) if c.name not in failed]
    outcomes = by_picture.outcomes([(label, read_results(folder), folder) for label, folder in good])  # may raise
    _give_bounds(plan, failed)
    runs = [(label, read_results(folder)) for label, folder in good]
    gate, against, margin = _gate(plan, failed), plan.against, plan.rules.margin
    differences = differences_of(runs, outcomes, against, margin)
    content = _content(plan, failed, runs, gate, differences, by_picture.confusion(outcomes))
    write_json(plan.out / "compare.json", content)
    atomic_write(plan.out / "compare.csv", compared.comparison_csv(runs, gate))
    atomic_write(plan.out / "differences.csv", paired.table_csv(differences, against))
    failures = "".join(f"\n{name} failed: {why}\n" for name, why in failed.items())
    tables = [compared.comparison_markdown(runs, compared.PAGE, gate), paired.markdown(differences, against, margin)]
    remarks = "".join(f"\n{line}\n" for line in content["remarks"])
    atomic_write(plan.out / "compare.md", "\n".join(t for t in tables if t) + remarks + failures)
    protocol = next((r["scenario"].get("protocol") or [] for _, r in runs), [])
    latex = compared.comparison_latex(runs, gate=gate, protocol=protocol)
    if cite := bibtex(*(e.name for e in plan.entries)):
        atomic_write(plan.out / "compare.bib", cite + "\n")
    atomic_write(plan.out / "compare.tex", latex + failures.replace("\n", "\n% ").rstrip("% "))
    _page(plan, failed, plan.out / page, gate, differences)
    return content


def _content(
    plan: Plan,
    failed: Mapping[str, str],
    runs: Runs,
    gate: Gate,
    differences: list[dict[str, Any]],
    confusion: Mapping[str, Mapping[str, np.ndarray]],
) -> ComparisonFile:
    from ciod.runs import environment

    rows = {row["name"]: row for row in compared.comparison_rows(runs, gate)}
    return {
        "format": FORMAT,
        "command": plan.command,
        "scenario": _scenario(plan),
        "seeds": plan.seeds,
        "blocks": [b.content() for b in plan.blocks],
        "upper": plan.upper,
        "methods": [_method(e, rows.get(e.label)) for e in plan.entries],
        "runs": [_run(plan, e.label, seed, c, failed) for e, seed, c in pairs(plan)],
        "by_seed": compared.seed_rows(runs, gate),
        "against": plan.against,
        "gate": plan.rules.gate,
        "margin": plan.rules.margin,
        "equal_steps": plan.rules.equal_steps,
        "remarks": judged.remarks(runs, gate),
        "bases": judged.bases(runs, gate),
        "shared": [
            {"name": c.name, "kind": c.kind, "seed": c.seed, "tasks": c.tasks or c.until, "folder": _relative(c, plan)}
            for c in plan.cells
            if c.kind != "run"
        ],
        "warnings": plan.warnings,
        "commit": environment.commit(),
        "versions": environment.versions(),
        "machine": environment.describe(),
        "differences": differences,
        "confusion": {n: {g: v.tolist() for g, v in c.items()} for n, c in confusion.items()},
    }


def _gate(plan: Plan, failed: Mapping[str, str]) -> Gate:
    """The gate, with joint training of each seed, also if it is not a row."""
    final = {c.seed: c for s in plan.seeds for c in plan.bounds(s) if c.tasks == len(plan.scenario)}
    joint = {s: read_results(c.folder) for s, c in final.items() if c.name not in failed}
    return Gate(plan.rules.gate, {s: r for s, r in joint.items() if r})


def _page(plan: Plan, failed: Mapping[str, str], out: Path, gate: Gate, differences: list[dict[str, Any]]) -> Path:
    """The HTML page of the finished runs."""
    from ciod.runs import environment

    folders: dict[str, list[Path]] = {}
    for e, _, c in pairs(plan):
        if c.name not in failed:
            folders.setdefault(e.label, []).append(c.folder)
    versions = ", ".join(f"{k} {v}" for k, v in environment.versions().items())
    facts = [
        ("Seeds", ", ".join(map(str, plan.seeds))),
        ("Detector", plan.settings.detector.name),
        ("Upper bounds", plan.upper),
        ("Versions", versions),
        ("Commit", environment.commit() or "not a checkout"),
        ("Machine", environment.describe()),
    ]
    settings = plan.settings.model_dump(mode="json", exclude={"method", "seed", "out", "first", "upper_bound"})
    about = About(
        command=plan.command,
        failures=list(failed.items()),
        warnings=plan.warnings,
        facts=facts,
        against=plan.against,
        methods={e.label: {"method": e.name, **e.settings} for e in plan.entries},
        gate=gate,
        differences=differences,
        margin=plan.rules.margin,
        blocks=[b.words() for b in plan.blocks if b.settings],
        figures=True,
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    )
    return write_comparison(folders, out, about)


def show(plan: Plan, content: ComparisonFile, console: Console) -> None:
    """The tables and where the files are, for the terminal."""
    from ciod.runs import sanity_checks

    runs = [(r["label"], read_results(plan.out / r["folder"])) for r in content["runs"] if r["status"] == "finished"]
    if runs:
        width = console.width if console.is_terminal else 120  # a file has no width
        for columns in (compared.SCORES, compared.REST):
            console.print(compared.comparison_table(runs, columns, _gate(plan, {})), width=width)
    for sentence in content["remarks"]:
        console.print(f"warning: {sentence}", markup=False, soft_wrap=True)
    for label, results in runs:  # the runs have printed their other warnings; their bounds are known only now
        for sentence in sanity_checks.about_bounds(results["tasks"], results["upper_bounds"]):
            console.print(f"warning: {label}, seed {results['seed']}: {sentence}", markup=False, soft_wrap=True)
    many = f"mean ± standard deviation over {len(plan.seeds)} seeds; " if len(plan.seeds) > 1 else ""
    broken = [r for r in content["runs"] if r["status"] != "finished"]
    for r in broken:
        console.print(f"failed: {r['label']}, seed {r['seed']}: {r['error']}", markup=False, soft_wrap=True)
    console.print(f"{many}page: {plan.out / PAGE}", markup=False, soft_wrap=True)


def _give_bounds(plan: Plan, failed: Mapping[str, str]) -> None:
    """Writes Ω and gaps into each run's results.json and report, from the joint models of the same seed."""
    from ciod.runs.results import Results

    for cell in plan.cells:
        if cell.kind != "run" or cell.name in failed:
            continue
        results = Results(cast("ResultsFile", read_results(cell.folder)))
        before = str(results.content)
        results.finish([b.folder for b in plan.bounds(cell.seed) if b.name not in failed])
        if str(results.content) != before:
            results.write(cell.folder)
            write_report(cell.folder)


def _scenario(plan: Plan) -> dict[str, Any]:
    p = plan.settings.protocol
    return {
        "name": p.name or Path(str(plan.settings.data)).name,
        "groups": [list(g) for g in plan.scenario.groups],
        "protocol": p.sentences(),
        "subset": p.subset,
        "data": str(plan.settings.data or p.data),
        "detector": plan.settings.detector.name,
    }


def _method(entry: Entry, row: Mapping[str, Any] | None) -> ComparedMethod:
    """Mean and standard deviation of each column, and the number of seeds."""
    found: ComparedMethod = {
        "label": entry.label,
        "name": entry.name,
        "settings": entry.settings,
        "finished_seeds": row["seeds"] if row else 0,
        "mean": {k: row[k] for k in compared.COLUMNS} if row else {},
        "std": row["std"] if row else {},
    }
    return {**found, "joint": row["joint"]} if row else found


def _run(plan: Plan, label: str, seed: int, cell: Cell, failed: Mapping[str, str]) -> ComparedRun:
    state = "failed" if cell.name in failed else "finished"
    return {
        "label": label,
        "seed": seed,
        "folder": _relative(cell, plan),
        "status": state,
        "error": failed.get(cell.name),
        "key": cell.key,
    }


def _relative(cell: Cell, plan: Plan) -> str:
    """The folder relative to that of the comparison."""
    return Path(os.path.relpath(cell.folder.resolve(), plan.out.resolve())).as_posix()
