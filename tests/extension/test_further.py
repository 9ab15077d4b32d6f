"""Known classes that were taught further: gain on new photographs, price on old ones."""

from __future__ import annotations

import pytest

from ciod.evaluation.ap import APTable
from ciod.extension import further
from ciod.extension.measure import Judged
from ciod.extension.retention import Retention


def table(**values):
    per_class = {n: {"AP": None if v is None else v / 2, "AP50": v} for n, v in values.items()}
    return APTable(per_class=per_class, overall={})


def judged(taught_before, learnt, old_before=None, old_after=None):
    return Judged(taught_before, learnt, [], [], old_before, old_after, Retention("AP", None, [], 0))


def test_measured_on_both_sides():
    found = further.measure(
        judged(table(cow=0.2), table(cow=0.5, eel=0.9), table(cow=0.6, dog=0.7), table(cow=0.55, dog=0.7)), ["cow"]
    )
    assert found == [
        {
            "class": "cow",
            "new": {"AP": [0.1, 0.25], "AP50": [0.2, 0.5]},
            "old": {"AP": [0.3, 0.275], "AP50": [0.6, 0.55]},
        }
    ]
    assert further.sentences(found) == [
        "taught further: cow AP50 on the new photographs 20.0 → 50.0 %, on the old photographs 60.0 → 55.0 %: "
        "the old photographs pay"
    ]


def test_a_missing_measurement_is_reported():
    found = further.measure(judged(table(cow=0.2), table(cow=0.5)), ["cow"])
    assert found[0]["old"] == {"AP": [None, None], "AP50": [None, None]}
    first, second = further.sentences(found)
    assert first == "taught further: cow AP50 on the new photographs 20.0 → 50.0 %"
    assert "pay on old photographs was not measured: old_data=FOLDER" in second
    nothing = further.measure(judged(None, table()), ["cow"])
    assert further.sentences(nothing)[0] == "taught further: cow AP50 not measured"
    assert further.sentences([]) == []


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ((0.2, 0.5), (0.6, 0.6), ": nothing is paid"),
        ((0.2, 0.5), (0.6, 0.596), ": nothing is paid"),
        ((0.2, 0.5), (0.6, 0.59), ": the old photographs pay"),
        ((0.2, 0.1), (0.6, 0.65), ": the new photographs pay"),
        ((0.2, 0.1), (0.6, 0.6), ": nothing is gained"),
        ((0.2, 0.2), (0.6, 0.5), ": nothing is gained"),
        ((0.2, 0.5), (None, None), ""),
        ((None, 0.5), (0.6, 0.6), ""),
    ],
)
def test_which_photographs_pay(new, old, expected):
    row = {"class": "cow", "new": {"AP50": list(new)}, "old": {"AP50": list(old)}}
    assert further.verdict(row) == expected
