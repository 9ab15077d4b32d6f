"""docs/adding-a-detector.md: its code is a detector that keeps the contract and trains; and the table of detectors."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

import ciod
from ciod import detectors, listing
from ciod.config import load as config
from ciod.data.shapes.scenes import write_shapes
from ciod.runs import run as engine
from ciod.training.progress import Reporter
from tests.detectors import test_contract as contract

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAME = "plain-pico"


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """The page's class among the others, as after the page's last step."""
    code = re.search(r"```python\n(.*?)```", (DOCS / "adding-a-detector.md").read_text(encoding="utf-8"), re.S)
    assert code
    (tmp_path / "plain.py").write_text(code[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("plain", tmp_path / "plain.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = tuple(detectors.families())
    monkeypatch.setattr(detectors, "families", lambda: (*known, module.Plain))


def test_it_keeps_the_contract(plain, tmp_path):
    assert NAME in detectors.available()
    contract.test_outputs_have_the_promised_shapes(NAME)
    contract.test_train_and_eval_mode_differ_only_in_batch_norm(NAME)
    contract.test_class_layers_list_every_row_of_every_class(NAME)
    contract.test_only_class_layers_know_classes(NAME)
    contract.test_growing_keeps_old_logits_bit_equal(NAME, (), "cpu")
    contract.test_new_classes_start_at_the_prior(NAME)
    contract.test_matches_and_positives_are_the_same_positions(NAME)
    contract.test_losses_and_gradients_are_finite_without_boxes(NAME, [0, 2])
    contract.test_a_match_that_is_not_counted_gives_no_gradient_to_classes_and_boxes(NAME)
    contract.test_masked_channels_get_exactly_no_gradient(NAME)
    contract.test_incomplete_labels_give_exactly_zero_gradient(NAME)
    contract.test_matching_and_losses_read_nothing_back(NAME)
    contract.test_a_trunk_goes_into_another_head(NAME, tmp_path)


def test_it_trains(plain, tmp_path):
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    words = [f"data={data}", "split=6+4", f"detector={NAME}", "size=64", "epochs=1", "batch=4", "method=pseudo_label"]
    run = config.load(None, [*words, "device=cpu", f"out={tmp_path / 'run'}"])
    out = engine.train(run, command="a test", reporter=Reporter(quiet=True))
    assert len(json.loads((out / "results.json").read_text())["tasks"]) == 2
    assert ciod.load(out / "task-2" / "model.safetensors").num_classes == 10


def test_the_table_of_detectors_is_the_computed_one():
    assert listing.detectors_markdown() in (DOCS / "detectors.md").read_text(encoding="utf-8")
