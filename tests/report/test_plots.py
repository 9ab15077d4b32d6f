"""Figures at the odd shapes runs have; each is well-formed SVG of a modest size."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from ciod.report import compared_plots, plots

from . import fake

RUNS: dict[str, dict[str, Any]] = {
    "two tasks": fake.results((6, 4)),
    "joint": fake.results((6, 4), joint=True),
    "one class": fake.results((1,)),
    "10 x 80": fake.results((8,) * 10, nulls=("class 3", "class 40")),
    "a class a task": fake.results((1,) * 12),
    "unfinished": fake.results((6, 4), tasks=1),
    "all unknown": fake.results((2, 2), names=list("abcd"), nulls=tuple("abcd")),
    "names": fake.results((2, 2), names=["<script>&", "$x^2$ and $", "鳥 🐈", "long name " * 20]),
}


def texts(svg: str) -> str:
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    return " ".join("".join(t.itertext()) for t in root.iter() if t.tag.endswith(("text", "tspan")))


@pytest.mark.parametrize("name", RUNS)
def test_every_figure_of_every_shape(name: str) -> None:
    run = RUNS[name]
    for draw in (plots.ap_matrix, plots.task_curves, plots.class_change):
        svg = draw(run)
        assert len(svg) < 200_000
        assert not svg or texts(svg)
    assert texts(plots.ap_matrix(run, metric="AP50"))
    assert texts(compared_plots.bars([("a", run), ("b", RUNS["joint"])]))


def test_matrix_writes_values_and_names() -> None:
    found = fake.results((1, 1), names=["cat", "dog"])
    found["ap"]["AP50"] = [{"cat": 0.5}, {"cat": 0.25, "dog": None}]
    svg = plots.ap_matrix(found, metric="AP50")
    message = texts(svg)
    assert all(t in message for t in ("cat", "dog", "50.0", "25.0", "task 1")) and "nan" not in message
    assert "<pattern" in svg, "what is unknown is hatched"
    assert "31.0" not in texts(plots.ap_matrix(RUNS["10 x 80"])), "no values in 80 columns"


def test_names_are_text() -> None:
    message = texts(plots.ap_matrix(RUNS["names"]))
    assert "<script>&" in message and "$x^2$ and $" in message and "鳥 🐈" in message


def test_class_change_is_empty_without_old_classes() -> None:
    assert plots.class_change(RUNS["joint"]) == "" and plots.class_change(RUNS["all unknown"]) == ""


def test_nothing_from_nothing() -> None:
    assert [
        plots.ap_matrix({}),
        plots.task_curves({}),
        plots.class_change({}),
        plots.losses([]),
        compared_plots.bars([]),
    ] == [""] * 5


@pytest.mark.parametrize(("tasks", "steps"), [(1, 1), (2, 60), (10, 3), (3, 2000)])
def test_losses(tasks: int, steps: int) -> None:
    svg = plots.losses(fake.metrics(tasks, steps))
    message = texts(svg)
    assert all(n in message for n in ("cls", "box", "obj")) and ("distill_cls" in message) == (tasks > 1)
    assert len(svg) < 250_000


def test_steps_of_losses_are_whole_numbers() -> None:
    figure = plots.losses.__wrapped__([{"kind": "step", "task": 0, "step": 6, "losses": {"cls": 1.0}}])
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) and (ticks == ticks.round()).all()


def test_bars_of_runs_that_learnt_nothing_begin_at_0() -> None:
    results = fake.results((2, 1))
    for table in results["ap"].values():
        for row in table:
            row.update(dict.fromkeys(row, 0.0))
    figure = compared_plots.bars.__wrapped__([("a", results)])
    assert figure.axes[0].get_ylim()[0] == 0 and figure.axes[0].get_ylim()[1] >= 5


def test_losses_that_distil_have_a_colour_of_their_own() -> None:
    lines = [{"kind": "step", "task": 0, "step": s, "losses": {"distill_cls": 1.0, "near": 2.0}} for s in (1, 2)]
    both, marked, old = (plots.losses(lines, d) for d in ({"distill_cls", "near"}, {"near"}, None))
    assert both.count(plots.NEW.lower()) == 2 * marked.count(plots.NEW.lower()) == 2 * old.count(plots.NEW.lower()) > 0
    assert marked != old, "older runs have no marks: there a name begins with distill"


def test_losses_of_odd_lines() -> None:
    odd = [
        {"kind": "step", "step": 1},
        {"kind": "step", "task": None, "step": 2, "losses": None},
        {"kind": "epoch"},
        {},
    ]
    assert plots.losses(odd) == ""
    assert texts(plots.losses([*odd, {"kind": "step", "task": 1, "step": 3, "losses": {"cls": None, "box": "x"}}]))


def test_timeline_of_a_resumed_run_and_of_restarting_counts() -> None:
    lines = [{"kind": "step", "task": t, "step": s, "losses": {"a": v}} for t, s, v in
             [(0, 1, 9.0), (0, 2, 9.0), (0, 2, 1.0), (0, 3, 1.0), (1, 1, 2.0), (1, 2, 2.0)]]  # fmt: skip
    x, steps, starts = plots._timeline(lines)
    assert list(x) == [1, 2, 3, 4, 5] and [s["losses"]["a"] for s in steps] == [9, 1, 1, 2, 2]
    assert starts == [(0, 1), (1, 4)]
    x, _, _ = plots._timeline([{"kind": "step", "task": t, "step": s} for t, s in [(0, 10), (0, 20), (1, 30)]])
    assert list(x) == [10, 20, 30], "a count that runs through is kept"


def test_reproducible_and_nothing_global() -> None:
    before = dict(matplotlib.rcParams)
    assert plots.ap_matrix(RUNS["two tasks"]) == plots.ap_matrix(RUNS["two tasks"])
    assert dict(matplotlib.rcParams) == before
