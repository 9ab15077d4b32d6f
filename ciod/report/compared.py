"""Several runs in one table: the numbers, and the table for a terminal, Markdown, LaTeX and CSV.

``runs`` is a list of (display name, ``results.json``). Runs with the same name form one row: seeds of the same
settings, shown as mean ± standard deviation.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ciod.report import ratios
from ciod.report.ratios import NO_GATE, Gate
from ciod.report.summary import (
    NONE,
    Results,
    Runs,
    ap_rows,
    before_after,
    class_order,
    done,
    duration,
    is_joint,
    mean,
    percent,
    planned,
    retention,
    score,
)

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = {
    "old_before": "old AP50 before",
    "old_ap": "old AP",
    "old_after": "old AP50",
    "new_ap": "new AP",
    "new": "new AP50",
    "all_ap": "all AP",
    "all_ap50": "all AP50",
    "retention": "retention",
    "forgetting": "forgetting",
    "rel_gap": "RelGap",
    "omega": "Ω",
    "stability": "RSD",
    "plasticity": "RPD",
    "rai": "RAI",
    "seconds": "time",
    "step_ratio": "time per step",
    "memory": "peak memory",
    "steps": "steps",
    "base": "base AP50",
    "base_joint": "joint AP50 on the base",
    "base_share": "base ÷ joint",
}
"""Every number of a row. AP of old, new and all classes is that after the last task; retention is that of AP50, the
other metrics are those of AP; RSD, RPD and RAI are defined in ``evaluation.continual``. ``step_ratio``: seconds per
training step of the second task, divided by those of fine-tuning with the same seed (``_fine_tuned``). ``steps``: of
the optimiser, in all tasks. ``base``: AP50 of the first task's classes after it; ``base_joint``: that of joint
training."""

DEMO = {
    "old_before": "old AP50 before",
    "old_after": "old AP50 after",
    **{k: COLUMNS[k] for k in ("retention", "new", "all_ap", "all_ap50", "rel_gap", "seconds")},
}
SCORES = {k: COLUMNS[k] for k in ("old_ap", "old_after", "new_ap", "new", "all_ap", "all_ap50")}
REST = {k: COLUMNS[k] for k in ("retention", "rel_gap", "omega", "seconds", "step_ratio", "memory")}
PAGE = {k: COLUMNS[k] for k in (*SCORES, *REST, "steps")}

_CONTINUAL = {
    "forgetting": "forgetting",
    "rel_gap": "rel_gap",
    "omega": "omega",
    "stability": "stability_deficiency",
    "plasticity": "plasticity_deficiency",
    "rai": "retention_adaptability",
}
_LOWER = {"forgetting", "rel_gap", "stability", "plasticity"}  # lower is better
_NO_CONTEST = {"old_before", "seconds", "step_ratio", "memory", "steps", "base", "base_joint", "base_share"}


def comparison_rows(runs: Runs, gate: Gate = NO_GATE) -> list[dict[str, Any]]:
    """One row per name: means under the keys of ``COLUMNS`` (fractions, seconds, MB; None = unknown), their standard
    deviations under ``std`` (None for one run), ``name``, ``joint``, ``unfinished``, ``seeds`` (number of runs).

    A joint run has no old classes; its old and new classes are those of the other runs with its seed. RelGap is taken
    from the run, or else computed from a joint run with the same classes among ``runs``. A ratio that is withheld for
    one seed has no mean.
    """
    every = seed_rows(runs, gate)
    rows = []
    for name in dict.fromkeys(n for n, _ in runs):
        seeds = [row for row in every if row["name"] == name]
        columns = {k: [] if any(k in s["withheld"] for s in seeds) else [s[k] for s in seeds] for k in COLUMNS}
        rows.append(
            {
                "name": name,
                "joint": all(s["joint"] for s in seeds),
                "unfinished": any(s["unfinished"] for s in seeds),
                "seeds": len(seeds),
                **{k: mean(v) for k, v in columns.items()},
                "std": {k: deviation(v) for k, v in columns.items()},
            }
        )
    return rows


def seed_rows(runs: Runs, gate: Gate = NO_GATE) -> list[dict[str, Any]]:
    """The numbers of each run under the keys of ``COLUMNS``, with ``name``, ``seed``, ``joint``, ``unfinished``, and
    ``withheld``: ratio → why it is not shown."""
    splits = {r.get("seed"): done(r)[-1] for _, r in reversed(runs) if len(done(r)) > 1}
    split = next(iter(reversed(splits.values())), {})
    joint = {**gate.joint, **{r.get("seed"): r for _, r in reversed(runs) if is_joint(r) and done(r)}}
    other = next(iter(joint.values()), None)  # one of another seed is better than none
    baseline = _fine_tuned(runs)
    found = []
    for name, r in runs:
        seed = r.get("seed")
        row = {"name": name, "seed": seed, **_row(r, splits.get(seed, split), joint.get(seed, other))}
        row["step_ratio"] = _ratio(step_seconds(r), baseline.get(seed))
        reasons = {} if row["joint"] else ratios.withheld(r, joint.get(seed), gate.share)
        found.append({**row, **dict.fromkeys(reasons), "withheld": reasons})
    return found


def step_seconds(results: Results) -> float | None:
    """Mean seconds per training step of the second task, in which methods start to differ; None before its end."""
    second = next((t for t in done(results) if t.get("index") == 1), {})
    return _ratio(second.get("seconds"), second.get("steps"))


def _fine_tuned(runs: Runs) -> dict[Any, float | None]:
    """Seed → seconds per step of fine-tuning: of plain ``finetune``, or else of its first variant among ``runs``."""
    found = [(r.get("method") or {}, r) for _, r in runs if not is_joint(r)]
    found = [(m.get("settings") or {}, r) for m, r in found if m.get("name") == "finetune"]
    found.sort(key=lambda one: bool(one[0]))
    return {r.get("seed"): step_seconds(r) for _, r in reversed(found)}


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def deviation(values: Sequence[float | None]) -> float | None:
    """Sample standard deviation (n − 1) of the known values; None for fewer than two values."""
    known = [v for v in values if v is not None and v == v]
    if len(known) < 2:
        return None
    middle = math.fsum(known) / len(known)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in known) / (len(known) - 1))


def _row(results: Results, split: Mapping[str, Any], joint: Results | None) -> dict[str, Any]:
    row: dict[str, Any] = {"joint": is_joint(results), "unfinished": len(done(results)) < planned(results)}
    for key, group, metric in (
        ("old_after", "old", "AP50"), ("new", "new", "AP50"), ("old_ap", "old", "AP"), ("new_ap", "new", "AP"),
    ):  # fmt: skip
        if row["joint"]:
            names = split.get(f"{group}_classes") or []
            aps = (ap_rows(results, metric) or [{}])[-1]
            row[key] = mean([aps.get(n) for n in names])
        else:
            row[key] = score(results, -1, group, metric)
    row["old_before"] = before_after(results, "AP50")[0]
    row["retention"] = retention(results, "AP50")
    row["all_ap"], row["all_ap50"] = score(results, -1, "all", "AP"), score(results, -1, "all", "AP50")
    continual = (results.get("continual") or {}).get("AP") or {}
    row |= {key: None if row["joint"] else continual.get(theirs) for key, theirs in _CONTINUAL.items()}
    bound = score(joint, -1, "all", "AP") if joint is not None and not row["joint"] and not row["unfinished"] else None
    same = joint is not None and set(class_order(joint)) == set(class_order(results))
    if row["rel_gap"] is None and bound and same and row["all_ap"] is not None:
        row["rel_gap"] = (bound - row["all_ap"]) / bound
    seconds = [t.get("seconds") for t in done(results)]
    row["seconds"] = sum(s for s in seconds if s is not None) if any(s is not None for s in seconds) else None
    steps = [t.get("steps") for t in done(results)]
    row["steps"] = sum(n for n in steps if n is not None) if any(n is not None for n in steps) else None
    base, bound = (None, None) if row["joint"] else ratios.base_of(results, joint)
    row |= {"base": base, "base_joint": bound, "base_share": _ratio(base, bound)}
    memory = [m for t in done(results) if (m := t.get("peak_memory_mb")) is not None]
    row["memory"] = max(memory, default=None)
    return row


def comparison_cells(row: Mapping[str, Any], columns: Mapping[str, str] = DEMO) -> list[str]:
    """A row of ``comparison_rows`` as text, the name first."""
    name = row["name"] + (" (unfinished)" if row["unfinished"] else "")
    return [name, *(cell(k, row[k], row["std"][k]) for k in columns)]


def cell(key: str, value: float | None, std: float | None = None) -> str:
    """A number of a column with its standard deviation: "47.3 ± 1.2"; "–" for None.

    >>> cell("all_ap", 0.473, 0.012), cell("omega", 0.9)
    ('47.3 ± 1.2', '0.900')
    """
    if value is None or value != value:
        return NONE
    if key == "seconds":  # the deviation of a time depends more on the machine than on the method
        return duration(value)
    if key == "step_ratio":
        return f"{value:.2f} ×"
    if key == "steps":
        return f"{value:,.0f}"
    if key == "memory":
        return f"{value:,.0f} MB"
    show = (lambda v: f"{v:.3f}") if key == "omega" else percent
    return show(value) + ("" if std is None else f" ± {show(std)}")


def comparison_table(runs: Runs, columns: Mapping[str, str] = DEMO, gate: Gate = NO_GATE) -> Table:
    """One row per name, for the terminal; the best value of each column, without joint runs, is bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = comparison_rows(runs, gate)
    best = best_cells(rows)
    shares = [t for k, t in columns.items() if k in ("retention", "rel_gap")]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=", ".join(["AP", *shares[:-1]]) + (f" and {shares[-1]}" if shares else "") + " in %",
        caption_justify="left",
    )
    table.add_column(
        "method",
        min_width=min(14 if any(r["seeds"] > 1 for r in rows) else 20, max((len(r["name"]) for r in rows), default=6)),
    )
    for title in columns.values():
        table.add_column("\n".join(title.rsplit(" ", 1)), justify="right", vertical="bottom", no_wrap=True)
    for i, row in enumerate(rows):
        name, *cells = comparison_cells(row, columns)
        if "seconds" in columns:  # narrow enough for 80 columns
            cells[[*columns].index("seconds")] = NONE if row["seconds"] is None else f"{row['seconds']:.0f} s"
        marked = [
            Text(c.replace(" ± ", " ±"), "bold" if (i, k) in best else "") for k, c in zip(columns, cells, strict=True)
        ]
        table.add_row(Text(name), *marked)
    return table


def comparison_markdown(runs: Runs, columns: Mapping[str, str] = DEMO, gate: Gate = NO_GATE) -> str:
    """The same as a Markdown table, percentages without sign."""
    lines = ["| method | " + " | ".join(columns.values()) + " |", "| --- |" + " ---: |" * len(columns)]
    for row in comparison_rows(runs, gate):
        cells = (" ".join(c.split()).replace("\\", "\\\\").replace("|", "\\|") for c in comparison_cells(row, columns))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def comparison_latex(runs: Runs, columns: Mapping[str, str] = PAGE, gate: Gate = NO_GATE) -> str:
    """A ``tabular`` with booktabs' rules; upper bounds below a line, the best in bold."""
    rows = comparison_rows(runs, gate)
    best = best_cells(rows)
    heads = " & ".join(_latex(t) for t in ("method", *columns.values()))
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", "\\toprule", f"{heads} \\\\"]
    for joint in (False, True):
        part = [(i, r) for i, r in enumerate(rows) if r["joint"] == joint]
        lines += ["\\midrule"] if part else []
        for i, row in part:
            name, *cells = map(_latex, comparison_cells(row, columns))
            cells = [f"\\textbf{{{c}}}" if (i, k) in best else c for k, c in zip(columns, cells, strict=True)]
            lines.append(" & ".join([name, *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "±": "$\\pm$", "×": "$\\times$", "Ω": "$\\Omega$", "–": "--", "<": "$<$", ">": "$>$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def comparison_csv(runs: Runs, gate: Gate = NO_GATE) -> str:
    """Every number of every run, one line per seed, in full precision: fractions, seconds, MB; empty if unknown.

    After the columns of ``COLUMNS``: for each class the task that teaches it, and AP and AP50 after every task.
    """
    out = io.StringIO()
    sheet = csv.writer(out, lineterminator="\n")
    names = list(dict.fromkeys(n for _, r in runs for n in class_order(r)))
    tasks = range(max((len(done(r)) for _, r in runs), default=0))
    places = [(t, m, n) for t in tasks for m in ("AP", "AP50") for n in names]
    heads = [f"task of {n}" for n in names] + [f"{m} of {n} after task {t + 1}" for t, m, n in places]
    about = ["method", "seed", "fold", "order", "joint", "unfinished", "withheld"]
    sheet.writerow([*about, *COLUMNS, *heads])
    for row, (_, results) in zip(seed_rows(runs, gate), runs, strict=True):
        scenario = results.get("scenario") or {}
        order = scenario.get("order")
        kind = [scenario.get("fold"), order if isinstance(order, str) else " ".join(order or []), row["joint"]]
        taught = {n: i for i, t in enumerate(done(results), 1) for n in t.get("new_classes") or []}
        aps = {m: ap_rows(results, m) for m in ("AP", "AP50")}
        cells = [aps[m][t].get(n) if t < len(aps[m]) else None for t, m, n in places]
        values = [
            row["name"], row["seed"], *kind, row["unfinished"], " ".join(row["withheld"]),
            *(row[k] for k in COLUMNS), *(taught.get(n) for n in names), *cells,
        ]  # fmt: skip
        sheet.writerow(["" if v is None else v for v in values])
    return out.getvalue()


def best_cells(rows: Sequence[Mapping[str, Any]]) -> set[tuple[int, str]]:
    """(row, column) of the best value per column, without upper bounds and without columns of equal values."""
    best: set[tuple[int, str]] = set()
    for key in COLUMNS:
        known = [
            (r[key], i)
            for i, r in enumerate(rows)
            if r[key] is not None and key not in _NO_CONTEST and not r["joint"] and not r["unfinished"]
        ]
        if len({v for v, _ in known}) > 1:
            top = (min if key in _LOWER else max)(v for v, _ in known)
            best |= {(i, key) for v, i in known if v == top}
    return best
