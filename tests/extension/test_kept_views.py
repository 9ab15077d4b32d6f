"""Kept maps of a frozen detector: when, of how many views, and that a branch learns the same from them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ciod
from ciod import detectors
from ciod.core.distributed import World
from ciod.core.errors import ConfigError
from ciod.detectors.files import weights
from ciod.detectors.staged_branches import StagedBranches
from ciod.extension import effort, kept_views, prepare, settings
from ciod.extension.run import extend
from ciod.methods.finetune import Finetune
from ciod.methods.freeze_branch import FreezeBranch
from ciod.training.progress import Reporter
from tests.data.writers import sample_index, write_coco
from tests.detectors.onnx.graphs import SIZE, small
from tests.extension.test_onnx import StopsAfterAnEpoch

OLD = ["cat", "dog", "cow"]
QUICK = {"batch": 2, "device": "cpu", "log_every": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Detectors of three classes, and a folder that knows one of them and a new one."""
    root = tmp_path_factory.mktemp("extend")
    small().save(root / "m.onnx")
    for name in ("yolox-pico", "gfl-pico"):
        torch.manual_seed(0)
        weights.save_model(root / f"{name}.safetensors", detectors.build(OLD, name=name, size=64))
    write_coco(sample_index(root / "raw", images=6, names=("dog", "eel")), root / "folder")
    return root


def go(place, out, name: str = "yolox-pico", hooks=(), **more):
    given = {"model": str(place / f"{name}.safetensors"), "data": str(place / "folder"), "out": str(out)}
    return extend(settings.load({**given, **QUICK, **more}), reporter=Reporter(quiet=True), hooks=hooks)


def losses(out) -> list[float]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [sum(line["losses"].values()) for line in map(json.loads, lines) if line["kind"] == "step"]


@pytest.fixture
def images(monkeypatch) -> list[int]:
    """How many images each pass of a trunk had whose maps were kept."""
    counted: list[int] = []
    packed = StagedBranches.packed
    monkeypatch.setattr(StagedBranches, "packed", lambda self, x: counted.append(len(x)) or packed(self, x))
    return counted


def test_a_resumed_extension_ends_the_same(place, tmp_path, images):
    whole = go(place, tmp_path / "whole", epochs=5, views=2)
    assert sum(images) == 2 * 5  # two views of five images; one image is held out
    plan = json.loads((whole / "results.json").read_text(encoding="utf-8"))["extension"]["plan"]
    assert plan["views"] == 2 and "2 views per image are computed for 5 epochs" in plan["why"][-1]
    with pytest.raises(KeyboardInterrupt):
        go(place, tmp_path / "part", epochs=5, views=2, hooks=[StopsAfterAnEpoch(2)])
    part = go(place, tmp_path / "part", epochs=5, views=2)
    a, b = (load_file(out / "model.safetensors") for out in (whole, part))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def from_images(place, out, monkeypatch, *given, **more) -> list[float]:
    """The losses when the detector computes its maps in every step."""
    with monkeypatch.context() as m:
        m.setattr(kept_views, "packer", lambda *args: None)
        return losses(go(place, out, *given, **more))


@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico"])
@pytest.mark.parametrize("views", [0, 1])
def test_a_branch_learns_the_same_from_maps(place, tmp_path, monkeypatch, images, name, views):
    """Without augmentation all views of an image are the same, so only rounding to half precision differs."""
    given = {"epochs": 3, "augment.photometric": 0, "augment.scale": [1, 1], "augment.flip": 0}
    plain = from_images(place, tmp_path / "plain", monkeypatch, name, **given)
    assert not images
    kept = losses(go(place, tmp_path / "kept", name, views=views, **given))
    assert sum(images) == 5 if views else sum(images) >= 3 * 5  # also those of the estimate
    assert len(plain) == len(kept) > 6 and plain != kept
    assert kept[:4] == pytest.approx(plain[:4], rel=0.02)  # later ones differ by other matches


def test_the_old_detector_stays_bit_identical(place, tmp_path, images):
    out = go(place, tmp_path / "out", epochs=4, views=2)
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    before, after = ciod.load(place / "yolox-pico.safetensors"), ciod.load(out / "model.safetensors")
    with torch.no_grad():
        a, b = before(x), after(x)
    assert torch.equal(b.logits[:, : a.logits.shape[1], :3], a.logits)
    assert torch.equal(b.boxes[:, : a.boxes.shape[1]], a.boxes)
    assert images


def planned(place, detector, method: Any, *, name="freeze_branch", processes=1, **more) -> int:
    plan = effort.Plan(epochs=20, batch=2, lr=0.1, size=SIZE, why=[])
    measured: Any = SimpleNamespace(task=SimpleNamespace(train=range(6)), negatives=SimpleNamespace(train=[range(4)]))
    chosen = settings.load({"model": "m.onnx", "data": str(place / "folder"), "out": "out", **more})
    return kept_views.planned(plan, chosen, detector, (name, method), measured, World(size=processes)).views


@pytest.mark.parametrize("file", ["m.onnx", "yolox-pico.safetensors"])
def test_views_fit_into_the_free_space_and_the_settings(place, monkeypatch, file):
    given = {"input": "0..1,rgb", "classes": OLD} if file == "m.onnx" else {}
    detector, method = ciod.load(place / file, **given), FreezeBranch()
    each = 2 * 10 * int(detector.packed_width)
    monkeypatch.setattr(kept_views.views, "room", lambda: 4 * each)
    assert planned(place, detector, method) == (4 if file == "m.onnx" else 0)
    assert planned(place, detector, method, views=0) == 0 and planned(place, detector, method, views=9) == 9
    assert (
        planned(place, detector, method, multiscale=[0.5, 1.5]) == 0
        and planned(place, detector, method, processes=2) == 0
    )
    match = "views: feature maps are kept for images of one size and one process; leave out views="
    with pytest.raises(ConfigError, match=match):
        planned(place, detector, method, processes=2, views=4)
    monkeypatch.setattr(kept_views.views, "room", lambda: 2 * each - 1)
    assert planned(place, detector, method) == 0


def test_methods_that_train_more_than_a_branch_compute_the_maps_in_every_step(place):
    detector = detectors.build(OLD, name="yolox-pico", size=64)
    assert planned(place, detector, Finetune(), name="finetune") == 0
    assert planned(place, detector, Finetune(), name="finetune", views=0) == 0
    with pytest.raises(ConfigError, match="of a dense detector, not for finetune on a yolox-pico; leave it out"):
        planned(place, detector, Finetune(), name="finetune", views=3)


def test_a_resumed_plan_keeps_maps_only_where_that_is_possible_now(place):
    plan = effort.Plan(epochs=20, batch=2, lr=0.1, size=SIZE, why=["as planned"], views=6)

    def views(processes=1, **more) -> int:
        chosen = settings.load({"model": "m.onnx", "data": str(place / "folder"), "out": "out", **more})
        return prepare.resumed(plan, chosen, World(size=processes)).views

    assert views() == 6 and views(views=0) == 0 and views(views=3) == 3
    assert views(processes=2) == 0 and views(multiscale=[0.5, 1.5]) == 0


def test_kinds_of_a_class_learn_from_maps(place, tmp_path, monkeypatch, images):
    """Their boxes are those of the parent, which the kept maps give too."""
    given = {"epochs": 3, "augment.photometric": 0, "augment.scale": [1, 1], "augment.flip": 0}
    given["split"] = {"dog": ["collie", "poodle"]}
    write_coco(sample_index(tmp_path / "raw", images=6, names=("collie", "poodle")), tmp_path / "kinds")
    given["data"] = str(tmp_path / "kinds")
    plain = from_images(place, tmp_path / "plain", monkeypatch, **given)
    kept = losses(go(place, tmp_path / "kept", **given))
    assert images and len(plain) == len(kept) > 6
    assert kept[:4] == pytest.approx(plain[:4], rel=0.02)
