"""What ciod writes replaces nothing but its own earlier result of the same kind, and is not mixed with its inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciod import detectors
from ciod.comparison import plan
from ciod.config import load as config
from ciod.config import outputs
from ciod.core.errors import CiodError, ConfigError
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.files import weights
from ciod.exporters import mmdet_file
from ciod.extension import settings as extending
from ciod.runs import resume


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """home/data, home/start/model.safetensors, home/run/task-1/model.safetensors"""
    home = tmp_path_factory.mktemp("home")
    write_shapes(home / "data", train=4, val=2, size=64)
    for folder in ("start", "run/task-1"):
        weights.save_model(home / folder / "model.safetensors", detectors.build(("cat",), name="yolox-pico", size=64))
    (home / "link").symlink_to(home / "data")
    return home


WRONG = [
    ("data", "is the folder of data="),
    ("data/../data", "is the folder of data="),
    ("link", "is the folder of data="),
    ("data/runs/mine", "lies inside the folder of data="),
    ("link/images", "lies inside the folder of data="),
    ("", "contains the folder of data="),
]


@pytest.mark.parametrize(("out", "match"), [*WRONG, ("start", "is the folder of"), ("run", "is the folder of")])
@pytest.mark.parametrize("command", ["train", "extend", "compare"])
def test_a_run_is_not_mixed_with_what_it_reads(places, command, out, match):
    start = places / (f"{out}/task-1" if out == "run" else "start") / "model.safetensors"
    given = {"data": str(places / "data"), "out": str(places / out), "device": "cpu"}
    with pytest.raises(ConfigError, match=rf"out: .* {match}.*hoose another out=\."):
        if command == "extend":
            extending.load({"model": str(start), **given})
        elif command == "train":
            config.load(None, {**given, "split": "6+4", "weights": str(start)})
        else:
            given.pop("out")
            plan.build(methods="finetune", out=places / out, settings={**given, "split": "6+4", "weights": str(start)})


def test_folders_beside_are_taken(places):
    for out in ("data-2", "runs/mine", "star", "run/task-2", "start/more"):
        assert (
            outputs.run_folder(
                places / out,
                {"data": places / "data", "pool": None},
                {"weights": places / "start" / "model.safetensors"},
            )
            == []
        )
    annotations = places / "data" / "train.json"
    assert outputs.run_folder(places / "data" / "runs", {"data": annotations}, {}) == []
    assert len(outputs.run_folder(places / "data", {"data": annotations}, {})) == 1


def test_one_kind_of_run_in_a_folder(places, tmp_path):
    run = config.load(None, {"data": str(places / "data"), "split": "6+4", "out": str(tmp_path), "device": "cpu"})
    (tmp_path / "finetune-seed0").mkdir()
    (tmp_path / "finetune-seed0" / "cell.json").write_text("{}")
    with pytest.raises(CiodError, match=r"holds a comparison \(ciod compare\), no single run; choose another out="):
        resume.beginning(run)
    (tmp_path / "finetune-seed0" / "cell.json").unlink()
    (tmp_path / "compare.json").write_text(json.dumps({"format": 1, "scenario": {}, "runs": []}))
    with pytest.raises(CiodError, match=r"holds a comparison \(ciod compare\)"):
        resume.beginning(run)


@pytest.mark.parametrize("key", ["out", "cache"])
def test_a_comparison_takes_no_folder_of_another_command(places, tmp_path, key):
    given = {"settings": {"data": str(places / "data"), "split": "6+4", "device": "cpu"}, "methods": "finetune"}
    (tmp_path / "run.yaml").write_text("versions: {}\n")
    with pytest.raises(ConfigError, match=rf"^{key}: .* holds a single run \(ciod train or extend\), no comparison"):
        plan.build(**given, **{key: tmp_path})
    (tmp_path / "run.yaml").unlink()
    (tmp_path / "compare.csv").write_text("mine")
    assert outputs.comparison_folder("cache", tmp_path) == []
    with pytest.raises(ConfigError, match=r"out: .*compare\.csv exists already and is not of a comparison"):
        plan.build(**given, out=tmp_path)


def test_an_export_to_mmdetection_keeps_other_files(places, tmp_path):
    model = places / "start" / "model.safetensors"
    written = mmdet_file.export(model, tmp_path)
    mmdet_file.export(model, tmp_path)
    text = written.config.read_text()
    written.config.write_text(text.removeprefix(f"{mmdet_file.MARK}\n\n"))  # as ciod 0.1 wrote it
    mmdet_file.export(model, tmp_path)
    assert written.config.read_text() == text
    with pytest.raises(CiodError, match=r"detector\.pth is the model itself, which is never overwritten"):
        mmdet_file.export(written.checkpoint, tmp_path, overwrite=True)
    written.config.write_text("model = {}\n")
    with pytest.raises(CiodError, match=r"detector\.py already exists and was not written by 'ciod export'"):
        mmdet_file.export(model, tmp_path)
    written.config.unlink()
    with pytest.raises(CiodError, match=r"detector\.pth already exists.*write overwrite=true"):
        mmdet_file.export(model, tmp_path)
    mmdet_file.export(model, tmp_path, overwrite=True)
    assert written.config.read_text() == text
