"""``ciod extend … --dry-run``: it says what the extension does, refuses what that refuses, and writes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import ciod
from ciod import cli, detectors
from ciod.cli import answers
from ciod.core.distributed import World
from ciod.core.errors import CiodError, ConfigError
from ciod.detectors.files import weights
from ciod.extension import dry_run
from ciod.extension.run import Extension
from ciod.extension.settings import load
from ciod.training.progress import Reporter
from tests.data.writers import sample_index, write_coco

OLD = ("cat", "dog")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model of two classes, a folder of a new one, a pool, and old data."""
    place = tmp_path_factory.mktemp("plan")
    torch.manual_seed(0)
    weights.save_model(place / "m.safetensors", detectors.build(OLD, name="yolox-pico", size=64))
    write_coco(sample_index(place / "raw", images=8, names=("eel",)), place / "data")
    write_coco(sample_index(place / "raw-old", images=4, names=OLD), place / "old", "val")
    return place


def words(place: Path, **more) -> dict:
    return {"model": str(place / "m.safetensors"), "data": str(place / "data"), "out": str(place / "run"),
            "batch": 4, "device": "cpu", **more}  # fmt: skip


def text(place: Path, **more) -> str:
    return "\n".join(dry_run.plan(load(words(place, **more)))[1])


def test_it_says_what_would_be_done_and_writes_nothing(place, monkeypatch, capsys):
    given = [f"{k}={v}" for k, v in words(place, effort="quick", min_retention=0.9).items()][1:]
    monkeypatch.setattr(sys, "argv", ["ciod", "extend", str(place / "m.safetensors"), *given, "--dry-run", "--json"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert not done.value.code and {"command", "exit_code", *answers.ExtendPlan.__annotations__} == set(found)
    assert (found["new"], found["old"], found["taught"]) == (["eel"], ["cat", "dog"], [])
    assert found["method"] == "freeze_branch" and "method: freeze_branch (chosen by auto)" in printed.err
    assert f"{found['steps']} steps on {found['images']} images with {found['boxes']} boxes" in printed.err
    assert "old classes: agreement of old and new model on the new images; below min_retention=0.9 no mo" in printed.err
    assert "nothing was trained" in printed.err and not (place / "run").exists()


def test_old_data_and_a_pool_are_named(place):
    assert "old classes: AP before and after, on 4 images of old_data" in text(place, old_data=str(place / "old"))
    both = text(place, pool=str(place / "raw-old"))
    assert "agreement of old and new model on the new images and those of the pool" in both


def test_what_the_extension_refuses_is_refused_all_at_once(place):
    with pytest.raises(ConfigError) as wrong:
        dry_run.plan(load(words(place, epochs=0, pool="nowhere", method={"name": "freez"})))
    assert len(wrong.value.problems) == 3
    with pytest.raises(ConfigError, match="drop"):
        text(place, drop=["cow"])
    with pytest.raises(ConfigError, match="of a dense detector, not for finetune on a yolox-pico"):
        text(place, method="finetune", views=3)
    (place / "full").mkdir()
    (place / "full" / "model.safetensors").touch()
    with pytest.raises(CiodError, match=r"holds .*; choose another out="):
        text(place, out=str(place / "full"))


def test_annotations_of_lvis_are_warned_about(place, tmp_path):
    """Not every class is labelled in every picture, and an extension is measured by COCO's AP."""
    write_coco(sample_index(place / "raw", images=8, names=("eel",)), tmp_path / "data")
    for split in ("train", "val"):
        content = json.loads((tmp_path / "data" / "train.json").read_text())
        for image in content["images"]:
            image["neg_category_ids"], image["not_exhaustive_category_ids"] = [], []
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    assert "neg_category_ids" not in text(place)
    (line,) = [line for line in text(place, data=str(tmp_path / "data")).splitlines() if "neg_category_ids" in line]
    assert line.startswith("warning: Not every class is labelled") and "ciod eval with metric=lvis" in line
    settings = load(words(place, data=str(tmp_path / "data"), epochs=1, out=str(tmp_path / "run")))
    run = Extension(settings, World(), Reporter(quiet=True))
    run._open(weights.load(place / "m.safetensors"))
    run._say_names(weights.load(place / "m.safetensors"))
    assert f"warning: {run.warnings.sentences[-1]}" == line


@pytest.mark.parametrize("method", ["auto", "pseudo_label"])
def test_steps_are_those_of_the_extension(place, tmp_path, method):
    """Images of a pool make an epoch longer: steps= asks for as many epochs as give so many, and no more."""
    more = {"pool": str(place / "raw-old"), "method": method, "out": str(tmp_path / "run"), "train.steps": 3}
    content, lines = dry_run.plan(load(words(place, **more)))
    results = ciod.extend(**words(place, **more))
    assert results["tasks"][-1].get("steps") == content["steps"]
    own = 3 if method == "auto" else 2  # a quarter of a batch of 4, or half of it
    each = -(-content["images"] // own)
    assert content["steps"] == -(-3 // each) * each
    assert any(f"{content['steps']} steps ({content['epochs']} epoch" in line for line in lines)
    with pytest.raises(CiodError, match="holds a run with other settings"):
        dry_run.plan(load(words(place, **{**more, "train.steps": 4})))
    again = dry_run.plan(load(words(place, **more)))[1]
    assert again[-1] == f"nothing was trained: {tmp_path / 'run'} is finished"
