"""Differences per seed, against hand-computed values."""

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
    assert b["half_width"]["new"] == pytest.approx(0.01 * 4.302653 / 3**0.5, rel=1e-6)
    assert paired.clear(b, "new") and paired.cell(b, "new") == "+3.0 ± 2.5"
    assert b["mean"]["old_after"] == 0 and not paired.clear(b, "old_after")
    assert (c["seeds"], c["half_width"]["new"]) == (1, None), "seed 7 has no partner"
    assert c["mean"]["new"] == pytest.approx(-0.2) and paired.cell(c, "new") == "-20.0" and not paired.clear(c, "new")


def test_unknown_or_unfinished_runs_give_no_difference():
    runs = [*RUNS[:1], run("b", 0, 0.6, old=None), ("d", fake.results(tasks=1)), ("joint", fake.results(joint=True))]
    (b,) = paired.differences(runs, "a")
    assert b["mean"]["old_after"] is None and paired.cell(b, "old_after") == "–"
    assert paired.differences(runs, "absent") == [] and paired.markdown([], "a") == ""


def test_table_and_page(tmp_path):
    text = paired.markdown(paired.differences(RUNS, "a"), "a")
    assert text.startswith("| minus a | seeds | old AP |") and "**+3.0 ± 2.5**" in text
    folders: dict[str, list] = {}
    for name, results in RUNS:
        folders.setdefault(name, []).append(fake.write_run(tmp_path / f"{name}{results['seed']}", results))
    page = write_comparison(folders, tmp_path / "page.html", About(against="a")).read_text()
    assert (
        "<details open><summary>Differences to a, per seed" in page
        and '<td class="number best">+3.0 ± 2.5</td>' in page
    )
    assert "Differences to" not in write_comparison(folders, tmp_path / "page.html").read_text()


def blocks(name: str, differences: list[float]):
    return [run(name, s, 0.5 + d) for s, d in enumerate(differences)]


def test_tests_are_corrected_for_the_number_of_methods_and_put_into_words():
    """Six blocks: p of signs is 2/64, with Holm over two methods 4/64 and then 2/64 at least."""
    base = blocks("a", [0.0] * 6)
    runs = [*base, *blocks("b", [0.03, 0.04, 0.05, 0.03, 0.04, 0.05]), *blocks("c", [0.001, -0.001] * 3)]
    b, c = paired.differences(runs, "a")
    assert b["p_sign"]["new"] == 2 / 64 and b["p_holm"]["new"] == 4 / 64 and b["verdict"]["new"] == "open"
    assert c["verdict"]["new"] == "equal" and paired.words(c, "new", "a") == "equal to a within 2 points"
    (sentence,) = paired.limits([b, c])
    assert sentence.startswith("With 6 repetitions and 2 methods against one, p (Holm) cannot be below 0.062")
    assert "7 repetitions are needed" in sentence
    (b,) = paired.differences(runs[:12], "a")
    assert b["verdict"]["new"] == "better" and paired.words(b, "new", "a") == "better than a" and not paired.limits([b])
    (b,) = paired.differences([*base, *blocks("b", [-0.003, -0.004] * 3)], "a", margin=0.01)
    assert paired.words(b, "new", "a", 0.01) == "worse than a, by less than 1 point"
    cells = paired.tests([b], "a", 0.01)[1][1]
    assert cells[:4] == ["new", "-0.4 ± 0.1", "0 of 6", "–"] and cells[5] == "0.031"


def test_every_number_of_the_differences_is_in_the_csv():
    (b,) = paired.differences([*blocks("a", [0, 0]), *blocks("b", [0.1, 0.2])], "a")
    b["pictures"] = {"new": (0.05, 0.25)}
    line = next(x for x in paired.table_csv([b], "a").splitlines() if x.startswith("b,a,new,"))
    assert line.endswith(",open,0.05,0.25") and f",{b['mean']['new']}," in line
    assert "5.0 to 25.0" in paired.markdown([b], "a") and paired.p_value(0.0004) == "< 0.001"
