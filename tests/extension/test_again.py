"""A second extension: changes by the arbiter to the classes of the first do not count as forgetting."""

from __future__ import annotations

import copy

import pytest
import torch

from ciod import detectors
from ciod.core.distributed import World
from ciod.detectors import statistics
from ciod.extension import data, measure, names
from ciod.extension.settings import Extend
from tests.data.writers import sample_index, write_coco

OLD = ("cat", "dog")


@pytest.fixture
def steps(tmp_path):
    """A detector with the branch of eel, the same with that of fox, and how the second step is measured."""
    torch.manual_seed(0)
    detector = detectors.build(OLD, name="yolox-pico", size=64).eval()
    write_coco(sample_index(tmp_path / "raw", images=8, names=("fox",)), tmp_path / "folder")
    images = sample_index(tmp_path / "both", images=6, names=("eel", "fox"))
    made = []
    for name in ("eel", "fox"):
        branch = detector.add_branch([name]).eval()
        if name == "eel":
            for level in branch.levels:
                level.obj.bias.data.fill_(3.0)
                for block in level.cls.blocks:
                    block.bias.data.fill_(2.0)
        statistics.gather(detector, images.relabel(detector.class_names))
        made.append(copy.deepcopy(detector))
    folder = data.open_folder(tmp_path / "folder", holdout=0.25, seed=0)
    plan = names.match(made[0].class_names, folder.classes)
    settings = Extend(model="m", data="d", out="o")
    return *made, measure.Measure(settings, World(), data.task_of(folder, plan), plan)


def test_without_old_data_the_arbiters_change_is_measured_apart(steps):
    before, after, measured = steps
    after.arbiter.mean[2] = 1e3  # eels are nowhere near what the maps hold
    after.arbiter.refresh()
    kept = measured.agreement(before, after)
    assert kept.value == measured.agreement(before, before).value and kept.rows[0]["before"] > 0
    assert kept.judged is not None and kept.judged < 0.9
    assert "without the arbiter between the branches; with it they agree on" in kept.sentence()
    assert before.arbiter.on and after.arbiter.on


def test_what_the_weights_lose_counts_with_an_arbiter_too(steps):
    before, after, measured = steps
    for level in after.branches[0].levels:
        level.obj.bias.data.fill_(-9.0)
    assert measured.agreement(before, after).value == 0.0


def test_with_old_data_the_arbiters_change_counts(steps, tmp_path):
    before, after, _ = steps
    write_coco(sample_index(tmp_path / "eels", images=4, names=("eel",)), tmp_path / "old", "val")
    folder = data.open_folder(tmp_path / "folder", holdout=0.25, seed=0)
    plan = names.match(before.class_names, folder.classes)
    settings = Extend(model="m", data="d", out="o", old_data=str(tmp_path / "old"))
    found = measure.Measure(settings, World(), data.task_of(folder, plan), plan).judge(before, after)
    assert found.retention.kind == "AP" and found.retention.judged is None
