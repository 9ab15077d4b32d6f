"""The verdict of a report, compared with sentences written by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from rich.console import Console

from ciod.report.compared import comparison_markdown, comparison_rows, comparison_table
from ciod.report.summary import changes, duration, percent, retention, summary_table, verdict

from . import fake


def by_hand() -> dict[str, Any]:
    """Old classes a and b: AP50 .8 → .6 and .4 → .5, so .60 → .55: 91.67 % kept; new class c at .62."""
    found = fake.results((2, 1), names=["a", "b", "c"])
    found["ap"]["AP50"] = [{"a": 0.8, "b": 0.4}, {"a": 0.6, "b": 0.5, "c": 0.62}]
    found["ap"]["AP"] = [{"a": 0.5, "b": 0.3}, {"a": 0.4, "b": 0.3, "c": 0.31}]
    first, second = found["tasks"]
    first |= {"old": None, "new": {"AP": 0.4, "AP50": 0.6}, "all": {"AP": 0.4, "AP50": 0.6}}
    second |= {"old": {"AP": 0.35, "AP50": 0.55}, "new": {"AP": 0.31, "AP50": 0.62}, "all": {"AP": 0.34, "AP50": 0.573}}
    found["continual"] = {}
    return found


def test_verdict_of_two_tasks() -> None:
    assert verdict(by_hand()) == (
        "After learning 1 new class the detector keeps 91.7 % of its AP50 on the 2 old classes (60.0 → 55.0). "
        "The new class reaches 62.0 % AP50."
    )


def test_the_runs_own_retention_wins() -> None:
    found = by_hand()
    found["continual"] = {"AP50": {"retention": 0.321}}
    assert "keeps only 32.1 % of its AP50" in verdict(found)


def test_verdict_of_many_tasks() -> None:
    found = fake.results((4, 2, 2), keep=0.75)
    assert verdict(found).startswith(
        "After learning 4 new classes in 2 steps the detector keeps 75.0 % of the AP50 that the 6 earlier classes had "
        "when they were learnt ("
    )
    assert "The 2 newest classes reach" in verdict(found)


def test_verdict_of_a_task_that_repeats_every_class() -> None:
    found = fake.results((2, 1), names=["a", "b", "c"])
    found["tasks"][1]["old_classes"] = found["tasks"][1]["repeated_classes"] = ["a", "b"]
    assert verdict(found).startswith("After learning 1 new class, no class is old: the last task taught all of them.")


def test_verdict_of_joint_unfinished_and_nothing() -> None:
    joint = fake.results((6, 4), joint=True)
    joint["tasks"][0]["all"]["AP50"] = 0.712
    assert (
        verdict(joint)
        == "Trained on all 10 classes at once (joint training, the upper bound), the detector reaches 71.2 % AP50."
    )
    first = fake.results((6, 4), tasks=1)
    first["tasks"][0]["all"]["AP50"] = 0.5
    assert verdict(first) == "Unfinished, 1 of 2 tasks done. On its first 6 classes the detector reaches 50.0 % AP50."
    blind = fake.results((6, 4), joint=True, nulls=tuple(f"class {i}" for i in range(10)))
    assert (
        verdict(blind)
        == "Trained on all 10 classes at once (joint training, the upper bound), there is no AP50 to report."
    )
    assert verdict({}) == "Unfinished: no task is done yet, so nothing has been measured."
    assert verdict(fake.results((2, 2, 2), tasks=2)).startswith(
        "Unfinished, 2 of 3 tasks done. After learning 2 new classes the"
    )


def test_verdict_without_ground_truth() -> None:
    names = ["a", "b", "c"]
    found = fake.results((2, 1), names=names, nulls=tuple(names))
    found["continual"] = {}
    assert verdict(found) == (
        "After learning 1 new class, how well the 2 old classes are kept is not known: there is no AP50 to compare. "
        "There is no AP50 for the new classes."
    )


def test_verdict_when_nothing_was_learnt() -> None:
    found = by_hand()
    found["ap"]["AP50"][0] = {"a": 0.0, "b": 0.0}
    assert verdict(found).startswith(
        "After learning 1 new class, the 2 old classes had nothing to lose: their AP50 was 0 when"
    )


def test_verdict_when_hardly_anything_was_learnt() -> None:
    """Ten times almost nothing is not retention: the share that is kept would be 1375 %."""
    found = by_hand()
    found["ap"]["AP50"][0] = {"a": 0.02, "b": 0.06}
    assert verdict(found).startswith(
        "After learning 1 new class, the 2 old classes had little to lose: AP50 4.0 → 55.0 %."
    )
    found["ap"]["AP50"][0] = {"a": 0.05, "b": 0.05}
    assert "keeps 1100.0 % of its AP50" in verdict(found)


def test_changes_worst_first_unknown_last() -> None:
    found = by_hand()
    assert [(c.name, round(c.loss or 0, 3)) for c in changes(found)] == [("a", 0.2), ("b", -0.1)]
    found["ap"]["AP50"][1]["a"] = None
    assert [c.name for c in changes(found)] == ["b", "a"]
    assert retention(found) == pytest.approx(0.5 / 0.4), "classes known at both times"
    assert changes({}) == [] and changes(fake.results((3,))) == []


def test_numbers() -> None:
    assert [percent(v) for v in (None, float("nan"), 0.0, 1.0, 0.0004, -0.0001)] == [
        "–",
        "–",
        "0.0",
        "100.0",
        "0.0",
        "0.0",
    ]
    assert [duration(s) for s in (None, 3.21, 59.99, 83, 3 * 3600 + 59)] == [
        "–",
        "3.2 s",
        "60.0 s",
        "1 min 23 s",
        "3 h 00 min",
    ]


def test_comparison_splits_joint_as_the_others() -> None:
    joint = fake.results((2, 1), names=["a", "b", "c"], joint=True)
    joint["ap"] = {"AP50": [{"a": 0.9, "b": 0.5, "c": 0.7}], "AP": [{"a": 0.5, "b": 0.5, "c": 0.5}]}
    joint["tasks"][0]["all"] = {"AP": 0.5, "AP50": 0.7}
    first, last = comparison_rows([("ours", by_hand()), ("joint", joint)])
    assert first["retention"] == pytest.approx(0.55 / 0.6) and first["old_before"] == pytest.approx(0.6)
    assert first["rel_gap"] == pytest.approx((0.5 - 0.34) / 0.5), (
        "from the joint run, when the run does not know its own"
    )
    assert (last["old_before"], last["old_after"], last["new"]) == (None, pytest.approx(0.7), pytest.approx(0.7))
    assert last["rel_gap"] is None and first["seconds"] == 166.0


def test_comparison_markdown_by_hand() -> None:
    text = comparison_markdown([("a|b", by_hand())])
    assert text.splitlines()[0].startswith("| method | old AP50 before | old AP50 after | retention | new AP50 |")
    assert text.splitlines()[2] == r"| a\|b | 60.0 | 55.0 | 91.7 | 62.0 | 34.0 | 57.3 | – | 2 min 46 s |"


def test_tables_fit_a_terminal_and_take_any_name() -> None:
    runs = [(n, by_hand()) for n in ("finetune", "pseudo_label", "ilyolox", "[red]x[/]")]
    console = Console(width=80, record=True)
    console.print(comparison_table(runs))
    text = console.export_text()
    assert "…" not in text and "retention" in text and "pseudo_label" in text and "[red]x[/]" in text
    console.print(summary_table(fake.results((20, 5, 5), nulls=("class 1",))))
    assert "25+5" in console.export_text()
    console.print(summary_table({}))


def test_inputs_do_not_change() -> None:
    found = by_hand()
    before = copy.deepcopy(found)
    verdict(found)
    comparison_rows([("x", found)])
    summary_table(found)
    assert found == before
