"""Classes meet by name; what is only similar is asked about."""

from __future__ import annotations

import pytest

from ciod.core.errors import ConfigError
from ciod.core.text_lists import alike
from ciod.extension.names import match

MODEL = ("person", "chair", "traffic light", "bus")


def test_new_names_grow_and_known_names_are_taught():
    names = match(MODEL, ("drone", "chair"))
    assert names.old == names.kept == MODEL
    assert names.new == ("drone",) and names.taught == ("chair",)
    assert names.all == (*MODEL, "drone") and names.learnt == ("chair", "drone")


def test_a_folder_without_a_new_class_is_fine():
    names = match(MODEL, ("bus", "person"))
    assert names.new == () and names.learnt == ("person", "bus")


@pytest.mark.parametrize("name", ["Chair", "chairs", "Chairs", "traffic_light", "TrafficLights", "buses"])
def test_case_spacing_and_plural_are_asked_about(name):
    with pytest.raises(ConfigError, match=rf"'{name}' and the model .*rename='{{{name}: .*new='\[{name}\]'"):
        match(MODEL, (name,))


def test_both_answers_are_taken():
    renamed = match(MODEL, ("Chairs",), rename={"Chairs": "chair"})
    assert renamed.new == () and renamed.taught == ("chair",) and renamed.data == {"Chairs": "chair"}
    another = match(MODEL, ("Chairs",), new=["Chairs"])
    assert another.new == ("Chairs",) and another.taught == ()


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [("berry", "berries", True), ("horse", "Horses", True), ("glass", "glasses", True), ("gas", "glass", False),
     ("car", "card", False), ("cell phone", "cellphone", True), ("bus", "bu", False)],
)  # fmt: skip
def test_alike(a, b, same):
    assert alike(a, b) is alike(b, a) is same


def test_keep_drop_and_rename_of_old_classes():
    names = match(MODEL, ("drone",), drop=["bus"], rename={"person": "human"})
    assert names.kept == ("person", "chair", "traffic light") and names.old == ("human", "chair", "traffic light")
    assert names.dropped == ("bus",)
    assert match(MODEL, ("drone",), keep=["bus"]).old == ("bus",)


def test_a_dropped_class_of_the_folder_is_new_again():
    assert match(MODEL, ("bus",), drop=["bus"]).new == ("bus",)


def test_every_problem_at_once():
    with pytest.raises(ConfigError) as caught:
        match(MODEL, ("Bus",), keep=["persn"], drop=["cat"], rename={"dog": "x"}, new=["y"])
    text = str(caught.value)
    for part in (
        "keep: the model has no class 'persn'; did you mean 'person'?",
        "drop: the model has no class 'cat'",
        "rename: the model and the folder have no class 'dog'",
        "new: the folder has no class 'y'",
    ):
        assert part in text


def test_two_classes_of_one_name():
    with pytest.raises(ConfigError, match="two classes of the model would be called 'chair'"):
        match(MODEL, ("drone",), rename={"person": "chair"})


def test_nothing_left_to_extend():
    with pytest.raises(ConfigError, match="none of the model's classes"):
        match(MODEL, ("drone",), drop=list(MODEL))


def test_a_name_that_is_kept_and_dropped():
    with pytest.raises(ConfigError, match=r"keep and drop both name cat\."):
        match(("cat", "cow"), ("dog",), keep=["cat"], drop=["cat"])


def test_the_plan_as_text():
    sentences = match(("cat", "cow"), ("kitty", "cow", "dog"), drop=["cat"], rename={"kitty": "kitten"}).sentences()
    assert "dropped from the model: cat" in sentences and "known, taught further: cow" in sentences
    assert any("kitty → kitten (in the folder)" in s for s in sentences) and "known and kept: 1 class" in sentences
