"""The sentences about an extension, also where little is known."""

from __future__ import annotations

import pytest

from ciod.report import extended
from tests.report import fake


def extension(split=(3, 2), **more):
    found = fake.results(split)
    found["extension"] = {"unchanged": None, "retention": {"kind": "AP", "value": 0.9, "rows": []}, **more}
    return found


@pytest.mark.parametrize(
    ("identical", "sentence"),
    [
        (4, "Old outputs bit-identical, checked on 4 pictures."),
        (3, "Old outputs are bit-identical on 3 of 4 pictures only."),
    ],
)
def test_old_outputs(identical, sentence):
    assert extended.unchanged(extension(unchanged={"images": 4, "identical": identical})) == sentence


def test_an_extension_that_was_not_measured():
    found = extension()
    assert extended.verdict({**found, "tasks": found["tasks"][:1]}) == "Unfinished: nothing has been measured."


def test_a_smoke_test_is_called_so():
    found = extension()
    found["scenario"]["subset"] = "1%"
    assert extended.verdict(found).startswith("Smoke test with a subset of the images (1%). The 2 new classes reach ")


def test_the_new_and_the_old_classes():
    text = extended.verdict(extension())
    assert (
        text.startswith("The 2 new classes reach ") and "The 3 old classes keep " in text and " of their AP50 (" in text
    )


def test_old_classes_that_the_old_data_do_not_show_are_not_counted():
    row = {"class": "class 0", "before": 0.5, "after": 0.4, "kept": 0.8}
    found = extension(retention={"kind": "AP", "value": 0.8, "rows": [row], "images": 4})
    assert "The 1 of 3 old classes that the old data show keep " in extended.verdict(found)


def test_classes_without_a_number_and_none_at_all():
    found = fake.results((3, 1), nulls=("class 3",))
    found["extension"] = extension()["extension"]
    for task in found["tasks"]:
        if task["new"]:
            task["new"]["AP50"] = None if task["index"] == 1 else task["new"]["AP50"]
    assert "There is no AP50 for the new class." in extended.verdict(found)
    found["tasks"][-1]["new_classes"] = []
    assert "No class is new." in extended.verdict(found)


def test_a_class_that_was_taught_further_is_listed_with_the_new_photographs():
    """With old data the table of all classes has its AP on the old photographs."""
    values = {"new": {"AP": [0.2, 0.5], "AP50": [0.3, 0.7]}, "old": {"AP": [0.4, 0.41], "AP50": [0.6, 0.61]}}
    found = extension(names={"taught": ["class 0"]}, further=[{"class": "class 0", **values}])
    row = extended.rows(found)[-1]
    assert (row["class"], row["what"], row["AP"], row["AP50"]) == ("class 0", "known, AP50 before 30.0", "50.0", "70.0")
    del found["extension"]["further"]  # files of before
    assert extended.rows(found)[-1]["AP50"] == f"{100 * found['ap']['AP50'][-1]['class 0']:.1f}"
