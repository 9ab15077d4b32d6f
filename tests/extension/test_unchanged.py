"""What is promised of old outputs after an extension, and on how many pictures it was looked at."""

from __future__ import annotations

import pytest
import torch

from ciod import detectors
from ciod.config.settings import Evaluation
from ciod.extension import unchanged
from ciod.extension.unchanged import Unchanged
from tests.data.writers import sample_index

SETTINGS = Evaluation(batch=4, score_threshold=0.0)


@pytest.fixture
def pair(tmp_path):
    torch.manual_seed(0)
    before = detectors.build(("cat", "dog"), name="yolox-pico", size=64).eval()
    after = before.frozen()
    after.add_branch(["eel"], taught=["dog"])
    return before, after.eval(), sample_index(tmp_path, images=5, names=("cat", "eel"))


def test_a_branch_keeps_outputs_and_list(pair):
    before, after, index = pair
    found = unchanged.look(before, after, [index, index], SETTINGS, ["dog"])
    assert found is not None and (found.images, found.identical) == (10, 10) and found.listed == found.boxes > 0
    assert found.sentences() == [
        "Old outputs bit-identical, checked on 10 pictures.",
        f"All {found.boxes} old detections on them are in the new model's list.",
    ]


def test_a_changed_output_is_reported(pair):
    before, after, index = pair

    class Nudged(type(after)):
        def forward(self, images):
            outputs = super().forward(images)
            outputs.boxes[0, 0, 0] += 1e-3  # of the first picture of a batch
            return outputs

    after.__class__ = Nudged
    found = unchanged.look(before, after, [index], SETTINGS, [])
    assert found is not None and (found.images, found.identical) == (5, 3)
    assert found.sentences()[0] == "Old outputs are bit-identical on 3 of 5 pictures only."


def test_moved_weights_promise_nothing(pair):
    before, after, index = pair
    with torch.no_grad():
        next(after.parameters()).add_(1e-3)
    assert unchanged.look(before, after, [index], SETTINGS, []) is None


def test_what_the_arbiter_removes_is_reported():
    assert Unchanged(8, 8, 20, 18).sentences()[1].startswith("18 of 20 old detections on them are in the new")
    assert Unchanged(8, 8, 0, 0).sentences() == ["Old outputs bit-identical, checked on 8 pictures."]
