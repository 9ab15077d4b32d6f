"""Smoke tests with a part of the images: which images are taken, and that a subset is not taken for a full run."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from ciod.config import load as config
from ciod.core.errors import CiodError, ConfigError
from ciod.data.images import save_image
from ciod.data.names import COCO, VOC
from ciod.data.scenarios import subsets
from ciod.data.scenarios.scenario import Protocol, Scenario
from ciod.runs import dry_run
from tests.data.writers import write_coco
from tests.fixed import index_of

NAMES = ("ant", "bee", "cow", "dog")


def many():
    """100 images with an ant each; a bee in 40 of them, a cow in images 7 and 9 and a dog in image 11 only."""
    rows = [(i, "ant") for i in range(100)] + [(i, "bee") for i in range(40)] + [(7, "cow"), (9, "cow"), (11, "dog")]
    return index_of(sorted(rows), NAMES, 110)


@pytest.mark.parametrize(
    ("text", "images", "taken"),
    [("1%", 118_287, 1183), ("1%", 100, 16), ("1 %", 9, 9), ("0.5%", 10_000, 50), ("100%", 50, 50), ("200", 5000, 200),
     ("200", 30, 30), ("3", 5000, 3)],
)  # fmt: skip
def test_the_number_of_images(text, images, taken):
    assert subsets.amount(text, images) == taken


@pytest.mark.parametrize("text", ["0", "0%", "101%", "1 percent", "-5", "", "1e3", "%", "0.0%"])
def test_text_that_no_subset_can_be_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="share of the images of a task, such as 1%, or a number of them, such as 200"):
        subsets.parse(text)
    if text:
        with pytest.raises(ConfigError, match=r"subset: should be a share of the images of a task"):
            config.load(None, ["data=shapes", f"subset={text}"])


def test_a_number_needs_no_quotes():
    assert Protocol.model_validate({"subset": 200}).subset == "200"
    assert config.load(None, {"data": "shapes", "subset": 200}).protocol.subset == "200"


def test_every_class_keeps_an_image():
    index = many()
    rows = subsets.choose(index, np.arange(len(index)), ~index.crowd, "5")
    assert len(rows) == 5 and list(rows) == sorted(rows)
    assert (index.select(rows).boxes_per_class() > 0).all() and 11 in rows
    assert len(subsets.choose(index, np.arange(len(index)), ~index.crowd, "1")) >= 2  # no image shows all four
    assert list(rows) == list(subsets.choose(index, np.arange(len(index)), ~index.crowd, "5"))
    inside = np.arange(0, 10)  # only these images belong to the task; no dog is in them
    rows = subsets.choose(index, inside, ~index.crowd, "4")
    assert set(rows) <= set(inside) and len(rows) == 4 and {7, 9} & set(rows)


def test_the_tasks_of_a_scenario():
    full = Scenario(Protocol(split="2+2", order="dataset"), many(), many())
    small = Scenario(Protocol(split="2+2", order="dataset", subset="20%"), many(), many())
    assert [len(t.train) for t in full] == [100, 3] and [len(t.test) for t in full] == [110, 110]
    assert [len(t.train) for t in small] == [20, 3] and [len(t.test) for t in small] == [22, 22]
    for a, b in zip(small, full, strict=True):
        assert set(a.train.files) <= set(b.train.files) and a.new_classes == b.new_classes
        assert (a.test.boxes_per_class() > 0).all()
    assert small.images_without_subset(0) == 100 and full.images_without_subset(0) == 100
    assert small.sizes() == ["Subset (20%): training images of each task: 20 of 100, 3 of 3; test images: 22 of 110."]
    assert any("Smoke test with a subset of the images (subset=20%)" in s for s in small.sentences())
    joint = Scenario(Protocol(split=[["ant", "bee"]], joint=True, subset="20%"), many(), many())
    assert joint.task(0).test.files == small.task(0).test.files  # bounds are measured on the same images


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    from ciod.data.shapes.scenes import write_shapes

    return write_shapes(tmp_path_factory.mktemp("subset") / "shapes", train=40, val=30, size=64)


WORDS = ["split=6+4", "detector=yolox-pico", "size=64", "device=cpu", "method=finetune"]


def test_epochs_are_those_of_all_images(shapes):
    """By effort and by steps: the subset has as many epochs, each with fewer steps."""
    for words in ([], ["steps=40"]):
        whole, part = (
            dry_run.chosen(config.load(None, [*WORDS, *words, f"data={shapes}", *more])) for more in ([], ["subset=8"])
        )
        assert [t.epochs for t in whole[1]] == [t.epochs for t in part[1]]
        steps, images = ([(t.steps or 0, t.images or 0) for t in side[1]] for side in (whole, part))
        assert all(a[0] > b[0] > 0 and b[1] >= 8 for a, b in zip(steps, images, strict=True))
    assert "images; the epochs are those of all" in part[2][0]


def test_a_run_says_that_it_is_a_subset_and_is_not_resumed_as_a_full_one(shapes, tmp_path):
    from ciod.report.comparison import write_comparison
    from ciod.report.published import of
    from ciod.runs import run as engine
    from ciod.runs.results import Upper
    from ciod.training.progress import Reporter

    def go(out, *words):
        settings = config.load(None, [*WORDS, "epochs=1", "batch=8", f"data={shapes}", f"out={tmp_path / out}", *words])
        return engine.train(settings, reporter=Reporter(quiet=True))

    out = go("part", "subset=8", "split=10")
    results = json.loads((out / "results.json").read_text())
    assert results["scenario"]["subset"] == "8" and "Smoke test" in results["warnings"][0]
    assert results["tasks"][0]["steps"] == 1 and results["tasks"][0]["test_images"] == 8
    page = (out / "report.html").read_text()
    assert '<span class="tag">subset 8</span>' in page and "Smoke test with a subset of the images (8)." in page
    assert of({**results["scenario"], "split": [15, 5], "images": "any-new"}) == []
    with pytest.raises(CiodError, match=r"holds a run with other settings .*subset was '8', is None"):
        go("part", "split=10")
    with pytest.raises(CiodError, match=r"was trained with other settings .*subset"):
        go("later", "split=10", f"first={out}")
    classes = results["scenario"]["classes"]
    full = {**results, "scenario": {**results["scenario"], "subset": None}}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "results.json").write_text(json.dumps({**full, "tasks": full["tasks"][:1]}))
    with pytest.raises(CiodError, match=r"was trained with all images, this run with subset=8; a subset cannot be"):
        Upper.read([tmp_path / "full"], [classes], "8")
    assert Upper.read([tmp_path / "full"], [classes]).classes
    with pytest.raises(CiodError, match=r"subset of the images cannot be compared with others \(a: subset=8; b: all"):
        write_comparison({"a": out, "b": tmp_path / "full"}, tmp_path / "compare.html")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two folders with the classes of COCO and of VOC: 160 pictures, an object in each. Nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, "fsync", lambda _: None)
        root = tmp_path_factory.mktemp("real")
        picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        for kind, names in (("coco", COCO), ("voc", VOC)):
            for split in ("train", "val"):
                index = index_of([(i, names[i % len(names)]) for i in range(160)], names, 160)
                index.boxes = np.tile(np.float32([4, 4, 24, 20]), (160, 1))
                index.sizes[:] = 32
                index.files = [root / "raw" / f"{split}-{i}.png" for i in range(160)]
                for file in index.files if kind == "coco" else ():
                    save_image(file, picture)
                write_coco(index, root / kind, split)
        yield root


@pytest.mark.parametrize(
    "name",
    ["coco-40+10x4-ilyolox", "coco-70+10-cl_detr", "coco-last40+first40-erd", "coco-joint50-gfl", "voc-15+1x5-mma",
     "voc-10+10-abr"],
)  # fmt: skip
def test_a_recipe_plans_a_part_of_its_data(name, real):
    settings = config.load(name, [f"data={real / name[: name.index('-')]}", "subset=20%", "device=cpu"])
    steps = dry_run.plan(settings)
    assert steps and all(0 < (s.images or 0) < 160 and s.steps for s in steps)
    assert settings.protocol.subset == "20%"


def test_a_recipe_runs_from_start_to_end_on_a_part_of_its_data(real, tmp_path):
    import ciod

    more = {"detector": "gfl-pico", "size": 32, "epochs": 1, "batch": 16, "subset": "1%", "device": "cpu"}
    results = ciod.train("coco-40+40-lwf", data=str(real / "coco"), out=str(tmp_path / "run"), **more)
    assert [len(t["new_classes"]) for t in results["tasks"]] == [40, 40] and (tmp_path / "run/report.html").is_file()
    assert "Smoke test" in results["warnings"][0]


def test_a_comparison_is_marked(shapes, tmp_path):
    from ciod.comparison import plan

    settings = {"data": str(shapes), "split": "6+4", "detector": "yolox-pico", "size": 64, "epochs": 1, "device": "cpu"}
    planned = {s: plan.build(methods="finetune", out=tmp_path / "c", settings={**settings, "subset": s}) for s in
               (None, "10%")}  # fmt: skip
    assert any("Smoke test" in w for w in planned["10%"].warnings) and not planned[None].warnings
    keys = [{c.key for c in p.cells} for p in planned.values()]
    assert not keys[0] & keys[1]  # no first task or joint model is shared


def test_a_folder_to_extend_with(shapes):
    from ciod.extension.data import open_folder

    whole, part = (open_folder(str(shapes), holdout=0.2, seed=0, subset=s) for s in (None, "10"))
    assert (len(whole.train), len(whole.val), whole.whole) == (40, 30, 40)
    assert len(part.train) == 10 and part.whole == 40 and len(part.val) == 10 and part.classes == whole.classes
    assert part.notes[-1] == "Subset (10): training on 10 of 40 images, testing on 10 of 30."
