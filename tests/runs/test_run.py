"""The run folder, and the switches of a run."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import ciod
from ciod.config import load as config
from ciod.core.errors import CiodError
from ciod.core.run_log import read_metrics
from ciod.data.shapes.scenes import CLASSES, write_shapes
from ciod.runs import run as engine
from tests.runs.commands import assert_equal, go, launch, results_of, settings, steps_of, weights_of


def test_the_folder_has_what_it_promises(whole):
    files = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()}
    examples = {f for f in files if f.startswith("task-2/examples/")}
    assert files - examples == {
        "run.yaml",
        "metrics.jsonl",
        "results.json",
        "report.html",
        "last/state.pt",
        "last/previous.pt",
        "last/data.json",
        "task-1/model.safetensors",
        "task-1/pictures.npz",
        "task-2/model.safetensors",
        "task-2/pictures.npz",
    }
    assert examples and all(f.endswith(".jpg") for f in examples)


def test_results(whole):
    results = json.loads((whole / "results.json").read_text())
    assert list(results) == [
        "format", "scenario", "detector", "method", "seed", "tasks", "ap", "continual", "upper_bounds", "warnings"
    ]  # fmt: skip
    assert results["upper_bounds"] is None  # no joint run is known
    assert results["format"] == 1 and results["seed"] == 0
    assert results["warnings"] == [w for t in results["tasks"] for w in t["warnings"]], (
        "a class that was not learnt gives a warning"
    )
    assert "never fire" in results["warnings"][0] and "arrow, circle" in results["warnings"][0]
    assert results["scenario"]["classes"] == list(CLASSES) and results["scenario"]["split"] == [6, 4]
    assert {"order", "images", "boxes", "eval_images", "joint", "metric", "data", "protocol"} <= set(
        results["scenario"]
    )
    assert results["detector"] == {"name": "yolox-pico", "head": "grow"}
    assert results["method"] == {
        "name": "ilyolox",
        "settings": {"center_score": 0, "other_score": 0},
        "distillation_terms": ["distill_box", "distill_cls"],
    }
    for metric in ("AP", "AP50"):
        assert [list(row) for row in results["ap"][metric]] == [list(CLASSES[:6]), list(CLASSES)]
        assert set(results["continual"][metric]) >= {"omega", "abs_gap", "rel_gap", "forgetting", "retention"}
        assert results["continual"][metric]["rel_gap"] is None  # no joint run is known
    first, second = results["tasks"]
    assert (first["index"], first["old_classes"], first["old"], first["hidden_boxes"]) == (0, [], None, 0)
    assert second["new_classes"] == list(CLASSES[6:]) and second["old_classes"] == list(CLASSES[:6])
    assert second["hidden_boxes"] > 0 and second["test_images"] == 6
    for task in (first, second):
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} == set(task["all"]) and {"AP", "AP50"} == set(task["new"])
        assert task["seconds"] > 0 and task["peak_memory_mb"] > 0 and task["epochs"] == 2
        assert task["steps"] == 2 * -(-task["train_images"] // 4)


def test_settings_of_a_run(whole, data):
    content = yaml.safe_load((whole / "run.yaml").read_text())
    assert content["command"] == "a test" and content["seed"] == 0
    assert content["train"]["epochs"] == 2 and content["data"] == str(data)
    assert {"python", "torch", "torchvision", "ciod"} <= set(content["versions"]) and content["machine"]
    assert "commit" in content


def test_file_names_need_not_be_text(tmp_path):
    """Latin-1 on a disk whose other names are UTF-8, as old archives unpack to: no error at the end of a run."""
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    for split in ("train", "val"):
        listing = json.loads((data / f"{split}.json").read_text())
        for image in listing["images"]:
            (file,) = data.rglob(Path(image["file_name"]).name)
            file.rename(file.with_name(f"{file.stem}-\udce9{file.suffix}"))
            image["file_name"] = image["file_name"].replace(".", "-\udce9.")
        (data / f"{split}.json").write_text(json.dumps(listing))
    out = go(data, tmp_path / "out")
    assert r"\udce9" in (out / "last" / "data.json").read_text() and (out / "report.html").is_file()
    evaluated = launch("eval", str(out / "task-2" / "model.safetensors"), f"data={data}", "device=cpu", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr


def test_metrics_of_a_run(whole):
    logged = read_metrics(whole)
    steps = [m for m in logged if m["kind"] == "step"]
    assert [m["step"] for m in steps if m["task"] == 0] == list(range(1, 2 * steps_of(whole, 0) + 1))
    assert set(steps[0]["losses"]) == {"cls", "box", "obj"}
    assert set(steps[-1]["losses"]) == {"cls", "box", "obj", "distill_cls", "distill_box"}
    assert steps[-1]["losses"]["distill_cls"] > 0 and steps[-1]["losses"]["distill_box"] > 0
    tasks = [m for m in logged if m["kind"] == "task"]
    assert [m["task"] for m in tasks] == [0, 1] and {"AP", "AP50"} <= set(tasks[0])


def test_models_are_enough_by_themselves(whole, tmp_path):
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes((whole / "task-2" / "model.safetensors").read_bytes())
    detector = ciod.load(moved)
    assert detector.class_names == CLASSES and detector.input.size == 64
    assert [step["classes"] for step in detector.lineage] == [list(CLASSES[:6]), list(CLASSES[6:])]
    step = detector.lineage[1]
    assert step["method"]["name"] == "ilyolox" and step["epochs"] == 2 and step["seed"] == 0 and step["images"] > 0
    assert not any("teacher" in k or "student" in k for k in detector.state_dict())
    assert ciod.load(whole / "task-1" / "model.safetensors").class_names == CLASSES[:6]


def test_the_report_is_whole_and_needs_nothing_else(whole):
    page = (whole / "report.html").read_text()
    assert page.rstrip().endswith("</html>") and CLASSES[0] in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_the_state_file_loads_without_code(whole):
    state = torch.load(whole / "last" / "state.pt", weights_only=True)
    assert state["task"] == 2 and "fit" not in state  # nothing is left to resume


def test_a_finished_run_is_not_changed(whole, data):
    before = (whole / "task-2" / "model.safetensors").stat().st_mtime_ns
    results = results_of(whole)
    assert go(data, whole) == whole
    assert (whole / "task-2" / "model.safetensors").stat().st_mtime_ns == before and results_of(whole) == results


def test_the_same_seed_gives_the_same_weights_and_another_does_not(whole, data, tmp_path):
    assert_equal(whole, go(data, tmp_path / "again"))
    other = weights_of(go(data, tmp_path / "other", "seed=1", "epochs=1"), 1)
    assert not torch.equal(other["backbone.stem.conv.conv.weight"],
                           weights_of(whole, 1)["backbone.stem.conv.conv.weight"])  # fmt: skip


def test_joint_trains_once_with_the_recipe_of_the_longest_task(joint):
    results = json.loads((joint / "results.json").read_text())
    (task,) = results["tasks"]
    assert results["scenario"]["joint"] and task["new_classes"] == list(CLASSES) and task["epochs"] == 2
    assert not (joint / "task-2").exists()


def test_an_upper_bound_gives_gaps(whole, joint, data, tmp_path):
    """After these few steps every AP is 0; the joint run gets other values, so that gaps are numbers."""
    bound = tmp_path / "joint"
    bound.mkdir()
    results = json.loads((joint / "results.json").read_text())
    results["tasks"][-1]["all"] |= {"AP": 0.5, "AP50": 0.8}
    (bound / "results.json").write_text(json.dumps(results))
    with_bound = go(data, tmp_path / "run", f"upper_bound={bound}")
    found = json.loads((with_bound / "results.json").read_text())
    for metric, upper in (("AP", 0.5), ("AP50", 0.8)):
        final = found["tasks"][-1]["all"][metric]
        assert found["continual"][metric]["abs_gap"] == pytest.approx(upper - final)
        assert found["continual"][metric]["rel_gap"] == pytest.approx((upper - final) / upper)
        assert found["continual"][metric]["omega"] is not None
    assert found["upper_bounds"] == [None, results["tasks"][-1]["all"]]
    for task in (1, 2):  # it changes no weight
        a, b = weights_of(whole, task), weights_of(with_bound, task)
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_upper_bound_of_something_else(joint, data, tmp_path):
    results = json.loads((joint / "results.json").read_text())
    results["scenario"]["classes"] = ["cat"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(CiodError, match=r"upper_bound: .* is not a finished joint run of the same classes"):
        go(data, tmp_path / "run", f"upper_bound={tmp_path}", "epochs=1")
    assert not (tmp_path / "run" / "task-1").exists(), "the error comes before anything is trained"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "tasks": []}'])
def test_a_first_task_from_a_run_with_damaged_results(whole, data, tmp_path, content):
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    (source / "results.json").write_text(content)
    with pytest.raises(
        CiodError,
        match=r"results\.json (is empty|should hold an object with keys|does not contain the results of a run)",
    ):
        go(data, tmp_path / "run", f"first={source}")


@pytest.mark.parametrize(("key", "value"), [("first", 5), ("first", datetime.date(2024, 1, 1)), ("first", [1])])
def test_a_first_task_that_is_not_a_folder(data, key, value):
    with pytest.raises(CiodError, match=rf"first: {re.escape(str(value))} has no finished first task"):
        config.load(None, {"data": str(data), key: value})


@pytest.mark.parametrize("value", [5, datetime.date(2024, 1, 1), [2024]])
def test_an_upper_bound_that_is_not_a_folder(data, value):
    with pytest.raises(CiodError, match=r"upper_bound: [0-9-]+ is not a finished run; it has no results"):
        config.load(None, {"data": str(data), "upper_bound": value})


def test_the_first_task_of_another_run(whole, data, tmp_path):
    """It equals training it, and only the method may differ."""
    taken = go(data, tmp_path / "taken", f"first={whole}", "method.nms_iou=0.95")
    trained = go(data, tmp_path / "trained", "method.nms_iou=0.95")
    assert_equal(trained, taken)
    with pytest.raises(CiodError, match=r"first: .* was trained with other settings \(train\.lr was 0\.002, is 0\.5\)"):
        go(data, tmp_path / "other", f"first={whole}", "lr=0.5")


def test_a_full_head_from_the_start(data, tmp_path):
    out = go(data, tmp_path / "run", "head=full", "epochs=1")
    assert ciod.load(out / "task-1" / "model.safetensors").class_names == CLASSES
    assert [list(r) for r in json.loads((out / "results.json").read_text())["ap"]["AP"]] == [
        list(CLASSES[:6]),
        list(CLASSES),
    ]


@pytest.mark.parametrize("part", ["all", "trunk"])
def test_a_start_from_another_model(part, whole, data, tmp_path):
    """Everything that fits and, by name, the rows of the first task's classes; or backbone and neck alone."""
    start = whole / "task-2" / "model.safetensors"
    out = go(data, tmp_path / "run", f"weights={start}", f"weights_from={part}", "epochs=1", "lr=1e-12",
             "norm=eval", "ema=0", "weight_decay=0")  # fmt: skip
    a, b = weights_of(whole, 2), weights_of(out, 1)
    model, donor = ciod.load(out / "task-1" / "model.safetensors"), ciod.load(start)
    rows = {r.name: r.tensor for r in donor.class_layers()}
    for row in model.class_layers():  # the six first classes are the same six in both
        assert torch.allclose(row.tensor, rows[row.name], rtol=0, atol=1e-6) == (part == "all"), row.name
    for key in a.keys() & b.keys() - rows.keys():
        if part == "all" or not key.startswith("head."):
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-6)
    assert part == "all" or not torch.allclose(a["head.reg.0.weight"], b["head.reg.0.weight"], atol=1e-6)
    warning = json.loads((out / "results.json").read_text())["warnings"][0]
    assert "compare only runs with the same start" in warning
    assert ("already knows arrow" in warning) == (part == "all")


def test_batch_norm_keeps_its_statistics_after_the_first_task(whole, data, tmp_path):
    """norm=auto: statistics move in task 1 alone; norm=train moves them in both."""
    key = "backbone.stem.conv.bn.running_mean"
    assert torch.equal(weights_of(whole, 1)[key], weights_of(whole, 2)[key])
    assert weights_of(whole, 1)[key].any()
    moving = go(data, tmp_path / "run", "norm=train", "epochs=1")
    assert not torch.equal(weights_of(moving, 1)[key], weights_of(moving, 2)[key])


def test_holdout_tunes_on_training_images(data, tmp_path):
    train, test = engine.open_data(settings(data, tmp_path / "run", "holdout=0.25"))
    assert (len(train), len(test)) == (9, 3)
    assert all(f.name.startswith("train_") for f in test.files) and not set(train.files) & set(test.files)
    again = engine.open_data(settings(data, tmp_path / "run", "holdout=0.25"))
    assert again[1].files == test.files


def test_python_and_command_line_are_the_same(whole, data, tmp_path):
    results = ciod.train(data=str(data), split="6+4", detector="yolox-pico", size=64, epochs=2, batch=4, log_every=1,
                         warmup=1, lr=0.002, lr_later=0.002, device="cpu",
                         method={"name": "ilyolox", "center_score": 0, "other_score": 0},
                         out=str(tmp_path / "run"))  # fmt: skip
    assert results["scenario"]["classes"] == list(CLASSES)
    assert_equal(whole, tmp_path / "run")
