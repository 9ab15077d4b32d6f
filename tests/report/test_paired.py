"""Differences seed by seed, against hand-computed values."""

from __future__ import annotations

import pytest

from ciod.report import paired
from ciod.report.comparison import About, write_comparison

from . import fake


def run(name: str, seed: int, new: float, old: float | None = 0.2):
    """A run whose AP50 after the last task is ``new`` and ``old``."""
    results = fake.results(method=name, seed=seed)
    results["tasks"][-1]["new"]["AP50"] = new
    results["tasks"][-1]["old"]["AP50"] = old
    return name, results


RUNS = [run("a", 0, 0.50), run("a", 1, 0.30), run("a", 2, 0.40), run("b", 0, 0.53), run("b", 1, 0.34),
        run("b", 2, 0.42), run("c", 1, 0.10), run("c", 7, 0.90)]  # fmt: skip


def test_the_deviation_between_seeds_is_not_in_the_difference():
    b, c = paired.differences(RUNS, "a")
    assert (b["name"], b["seeds"], b["wins"]["new"]) == ("b", 3, 3)
    assert b["mean"]["new"] == pytest.approx(0.03)
    # differences 3, 4 and 2 points: standard deviation 1, and Student's t for two degrees of freedom is 4.303
    assert b["half_width"]["new"] == pytest.approx(0.01 * 4.303 / 3**0.5)
    assert paired.clear(b, "new") and paired.cell(b, "new") == "+3.0 ± 2.5"
    assert b["mean"]["old_after"] == 0 and not paired.clear(b, "old_after")
    assert (c["seeds"], c["half_width"]["new"]) == (1, None), "seed 7 has no partner"
    assert c["mean"]["new"] == pytest.approx(-0.2) and paired.cell(c, "new") == "-20.0" and not paired.clear(c, "new")


def test_unknown_or_unfinished_runs_give_no_difference():
    runs = [*RUNS[:1], run("b", 0, 0.6, old=None), ("d", fake.results(tasks=1)), ("joint", fake.results(joint=True))]
    (b,) = paired.differences(runs, "a")
    assert b["mean"]["old_after"] is None and paired.cell(b, "old_after") == "–"
    assert paired.differences(runs, "nobody") == [] and paired.markdown([], "a") == ""


def test_table_and_page(tmp_path):
    text = paired.markdown(paired.differences(RUNS, "a"), "a")
    assert text.startswith("| minus a | seeds | old AP |") and "**+3.0 ± 2.5**" in text
    folders: dict[str, list] = {}
    for name, results in RUNS:
        folders.setdefault(name, []).append(fake.write_run(tmp_path / f"{name}{results['seed']}", results))
    page = write_comparison(folders, tmp_path / "page.html", About(against="a")).read_text()
    assert (
        "<details open><summary>Differences to a, seed by seed" in page
        and '<td class="number best">+3.0 ± 2.5</td>' in page
    )
    assert "Differences to" not in write_comparison(folders, tmp_path / "page.html").read_text()
