"""Warnings that a reader of a comparison must know: bases, floors, steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ciod.evaluation import statistics
from ciod.report.compared import COLUMNS, comparison_rows, seed_rows
from ciod.report.ratios import Gate
from ciod.report.summary import NONE, Runs, done, mean, percent

UNEQUAL = 1.1  # from this ratio on, rows count as unequal in steps


def bases(runs: Runs, gate: Gate) -> list[tuple[str, list[str]]]:
    """(seed, cells) of the first task of each seed: AP50 of the base, of joint training on its classes, their ratio,
    mean retention over the methods; empty if no run has more than one task."""
    rows = [r for r in seed_rows(runs, gate) if not r["joint"] and r["base"] is not None]
    lines = []
    for seed in dict.fromkeys(r["seed"] for r in rows):
        mine = [r for r in rows if r["seed"] == seed]
        values = [mean([r[k] for r in mine]) for k in ("base", "base_joint", "base_share")]
        state = (
            NONE if values[2] is None or not gate.share else "passes" if values[2] >= gate.share else "below the gate"
        )
        lines.append((str(seed), [*map(percent, values), percent(mean([r["retention"] for r in mine])), state]))
    return lines


def remarks(runs: Runs, gate: Gate) -> list[str]:
    """Warnings about numbers of these runs that can mislead."""
    rows = seed_rows(runs, gate)
    return [*_below_the_gate(rows, gate), *_withheld(rows), *_unconverged(rows), *_steps(runs, gate)]


def _below_the_gate(rows: Sequence[dict[str, Any]], gate: Gate) -> list[str]:
    found = []
    bases = [r for r in rows if not r["joint"] and r["base"] is not None]
    every = [r for r in bases if r["base_share"] is not None]
    if gate.share and bases and all(r["base_joint"] is None for r in bases):
        found.append("There is no joint model (upper=none), so it is not known whether the bases have converged.")
    for seed in dict.fromkeys(r["seed"] for r in every):
        mine = [r for r in every if r["seed"] == seed]
        low = [r for r in mine if gate.share and r["base_share"] < gate.share]
        if low:
            names = "" if len(low) == len(mine) else f" of {', '.join(r['name'] for r in low)}"
            share, base, bound = (mean([r[k] for r in low]) for k in ("base_share", "base", "base_joint"))
            found.append(
                f"Seed {seed}: the base{names} reaches {percent(share, ' %')} of joint training's AP50 on its own "
                f"classes ({percent(base)} against {percent(bound)}); the gate is {percent(gate.share, ' %')}. "
                "Retention would measure how much the base still had to learn, so the ratios are withheld. Train all "
                "methods longer (epochs= or effort=thorough)."
            )
    return found


def _withheld(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Ratios below a floor, once per reason."""
    where: dict[str, tuple[list[str], list[str]]] = {}
    for row in rows:
        for key, reason in row["withheld"].items():
            if not reason.startswith("the base"):
                names, keys = where.setdefault(reason, ([], []))
                names.append(row["name"])
                keys.append(COLUMNS[key])
    return [
        f"{', '.join(dict.fromkeys(names))}: {', '.join(dict.fromkeys(keys))} withheld: {why}."
        for why, (names, keys) in where.items()
    ]


def _unconverged(rows: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for name in dict.fromkeys(r["name"] for r in rows if not r["joint"]):
        kept = [r["retention"] for r in rows if r["name"] == name and r["retention"] is not None]
        interval = statistics.t_interval(kept)
        if interval is not None and interval.low > 1:
            found.append(
                f"{name}: retention is {percent(interval.mean, ' %')}, above 100 % beyond noise: the later tasks keep "
                "teaching the old classes, so the base has not converged."
            )
    return found


def _steps(runs: Runs, gate: Gate) -> list[str]:
    rows = comparison_rows(runs, gate)
    steps = {r["name"]: r["steps"] for r in rows if r["steps"] and not r["unfinished"]}
    epochs = [t["steps"] / t["epochs"] for _, r in runs for t in done(r) if t.get("steps") and t.get("epochs")]
    least, most = min(steps.values(), default=0), max(steps.values(), default=0)
    if most <= UNEQUAL * least or most - least <= max(epochs, default=0):  # epochs are not divided
        return []
    counts = ", ".join(f"{name} {n:,.0f}" for name, n in steps.items())
    return [f"The rows differ in optimiser steps: {counts}. Write equal_steps=true to compare equal effort."]
