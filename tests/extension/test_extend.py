"""ciod extend from a file to a file, on tiny pictures."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

import ciod
from ciod import detectors
from ciod.cli import app
from ciod.core.errors import CiodError
from ciod.detectors.files import weights
from ciod.detectors.gfl import GFL
from ciod.extension.run import NotKept
from tests.data.writers import sample_index, write_coco

OLD = ("cat", "dog", "cow")
QUICK = {"epochs": 2, "batch": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of three classes, and a folder that knows one of them and a new one."""
    root = tmp_path_factory.mktemp("extend")
    torch.manual_seed(0)
    detector = detectors.build(OLD, name="yolox-pico", size=64).eval()
    detector.lineage = [{"classes": list(OLD), "from": "a test"}]
    weights.save_model(root / "m.safetensors", detector)
    write_coco(sample_index(root / "raw", images=6, names=("dog", "eel")), root / "folder")
    return root


def old_outputs(path, images):
    with torch.no_grad():
        return weights.load(path)(images)


def test_extending_twice_keeps_old_outputs_and_remembers(place, tmp_path):
    results = ciod.extend(place / "m.safetensors", place / "folder", tmp_path / "one", **QUICK)
    assert results["extension"]["names"]["new"] == ["eel"]
    assert [len(t["new_classes"]) for t in results["tasks"]] == [3, 1]
    assert results["extension"]["retention"]["kind"] == "agreement"
    assert [row["class"] for row in results["extension"]["further"]] == ["dog"]
    made = tmp_path / "one" / "model.safetensors"
    for name in ("report.html", "results.json", "run.yaml", "metrics.jsonl", "last/state.pt"):
        assert (tmp_path / "one" / name).is_file(), name
    same = results["extension"]["unchanged"]
    assert same["images"] == same["identical"] == 6 and same["listed"] == same["boxes"]
    page = (tmp_path / "one" / "report.html").read_text()
    assert "are bit-identical on 6 of 6 pictures" in page
    assert "Known classes, taught further" in page
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    before, after = old_outputs(place / "m.safetensors", images), old_outputs(made, images)
    positions = before.logits.shape[1]
    assert torch.equal(after.logits[:, :positions, :3], before.logits)
    assert torch.equal(after.boxes[:, :positions], before.boxes)

    write_coco(sample_index(tmp_path / "raw", images=4, names=("fox",)), tmp_path / "more")
    ciod.extend(made, tmp_path / "more", tmp_path / "two", **QUICK)
    again = weights.load(tmp_path / "two" / "model.safetensors")
    assert again.class_names == (*OLD, "eel", "fox")
    assert [step.get("classes") for step in again.lineage] == [list(OLD), ["eel"], ["fox"]]
    assert again.lineage[1]["taught"] == ["dog"] and len(again.lineage[2]["model_sha256"]) == 64
    with torch.no_grad():
        assert torch.equal(again(images).logits[:, :positions, :3], before.logits)
    shown = CliRunner().invoke(app, ["list", str(tmp_path / "two" / "model.safetensors")]).output
    assert "eel" in shown and "fox" in shown

    (tmp_path / "three").mkdir()
    shutil.copy(made, tmp_path / "three" / "model.safetensors")
    with pytest.raises(CiodError, match="already holds a result, which is never overwritten"):
        ciod.extend(made, tmp_path / "more", tmp_path / "three", **QUICK)


def test_auto_gives_a_gfl_branches(place, tmp_path, capsys):
    torch.manual_seed(0)
    weights.save_model(tmp_path / "gfl.safetensors", detectors.build(OLD, name="gfl-pico", size=64))
    model = tmp_path / "gfl.safetensors"
    write_coco(sample_index(tmp_path / "raw", images=4, names=("fox",)), tmp_path / "more")
    for folder, out in ((place / "folder", tmp_path / "one"), (tmp_path / "more", tmp_path / "two")):
        results = ciod.extend(model, folder, out, **QUICK)
        assert "method: freeze_branch (chosen by auto)" in capsys.readouterr().out
        same = results["extension"]["unchanged"]
        assert same["images"] == same["identical"] > 0
        model = out / "model.safetensors"
    again = weights.load(model)
    assert again.parts == [[0, 1, 2], [1, 3], [4]] and again.arbiter is not None
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    before, after = old_outputs(tmp_path / "gfl.safetensors", images), old_outputs(model, images)
    positions = before.logits.shape[1]
    assert torch.equal(after.logits[:, :positions, :3], before.logits)
    assert torch.equal(after.boxes[:, :positions], before.boxes)


def judge(monkeypatch, *found: tuple[float, float]) -> None:
    """One measurement after another finds these: what is kept of the old classes, and AP50 of the new ones."""
    from ciod.extension import measure

    given, real = iter(found), measure.Measure.judge

    def judged(self, before, after):
        verdict = real(self, before, after)
        verdict.retention.value, verdict.learnt.overall["AP50"] = next(given)
        return verdict

    monkeypatch.setattr(measure.Measure, "judge", judged)


def test_below_min_retention_nothing_is_written_and_a_tradeoff_is_offered(place, tmp_path, monkeypatch):
    from ciod.extension import run

    judge(monkeypatch, (0.5, 0.8), (1.0, 0.0), (0.95, 0.2), (0.9, 0.4), (0.7, 0.6), (0.5, 0.8))
    with pytest.raises(
        NotKept, match=r"50.0% of the old classes is kept.*50% of the way.*keeps 90.0% and reaches 40.0%"
    ) as caught:
        ciod.extend(
            place / "m.safetensors", place / "folder", tmp_path / "out",
            method="finetune", min_retention=0.9, **QUICK,
        )  # fmt: skip
    assert caught.value.exit_code == 3 and run.NotKept is NotKept
    assert not (tmp_path / "out" / "model.safetensors").exists()
    old, mixed = (
        weights.load(p).state_dict() for p in (place / "m.safetensors", tmp_path / "out" / "tradeoff.safetensors")
    )
    assert old.keys() < mixed.keys()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["extension"]["tradeoff"]
    assert [r["share"] for r in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    with pytest.raises(NotKept, match=r"50.0% of the old classes is kept.*50% of the way"):  # nothing is measured again
        ciod.extend(
            place / "m.safetensors", place / "folder", tmp_path / "out",
            method="finetune", min_retention=0.9, **QUICK,
        )  # fmt: skip


def test_auto_takes_less_of_the_step_when_too_much_is_lost(place, tmp_path, monkeypatch):
    """A detector without branches: its old weights move."""
    monkeypatch.setattr(GFL, "traits", GFL.traits - {"branches"})
    judge(monkeypatch, (0.5, 0.8), (1.0, 0.0), (0.99, 0.2), (0.9, 0.4), (0.7, 0.6), (0.5, 0.8), (0.99, 0.2))
    torch.manual_seed(0)
    weights.save_model(tmp_path / "gfl.safetensors", detectors.build(OLD, name="gfl-pico", size=64))
    results = ciod.extend(tmp_path / "gfl.safetensors", place / "folder", tmp_path / "out", **QUICK)
    assert results["warnings"][-1] == (
        "The new weights kept less than 98% of the old classes; 25% of the step is taken (chosen on the validation "
        "images, so their AP looks slightly better than it is)."
    )
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_old_data_and_the_validation_split_are_named_beside_the_numbers(place, tmp_path, capsys):
    write_coco(sample_index(tmp_path / "old", names=OLD), tmp_path / "cows", "val")
    write_coco(sample_index(tmp_path / "val", images=3, names=("dog", "eel"), first=50), tmp_path / "folder", "val")
    write_coco(sample_index(tmp_path / "raw", names=("dog", "eel")), tmp_path / "folder")
    sample_index(tmp_path / "pool", images=3)
    results = ciod.extend(
        place / "m.safetensors", tmp_path / "folder", tmp_path / "out",
        method="finetune", old_data=str(tmp_path / "cows"), pool=str(tmp_path / "pool"), **QUICK,
    )  # fmt: skip
    assert results["scenario"]["protocol"][-2:] == [
        "New classes are measured on the folder's validation images.",
        f"Old classes are measured on {tmp_path / 'cows'}.",
    ]
    assert results["extension"]["retention"]["kind"] == "AP"
    assert "pool: finetune does not learn from it; agreement is measured on it" in capsys.readouterr().out


def test_a_pool_is_learnt_from_and_measured_on(place, tmp_path):
    sample_index(tmp_path / "pool", images=5)
    results = ciod.extend(
        place / "m.safetensors", place / "folder", tmp_path / "out",
        method="pseudo_label", pool=str(tmp_path / "pool"), **QUICK,
    )  # fmt: skip
    assert results["extension"]["retention"]["images"] == 6 + 5
    assert (tmp_path / "out" / "model.safetensors").is_file()
