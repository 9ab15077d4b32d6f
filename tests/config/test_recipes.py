"""The recipes of the package: each validates, plans without data, and quotes the published value."""

from __future__ import annotations

import json
import re

import pytest

from ciod.config import load as config
from ciod.data.scenarios import scenario
from ciod.listing import header_value
from ciod.report import published as literature
from ciod.runs.dry_run import plan

RECIPES = config.recipes()
QUERIES = ("-cl_detr", "-sikd", "-psedet")  # on Deformable DETR


def published(name: str) -> str:
    return header_value(config.RECIPES / f"{name}.yaml", "published")


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("COCO", raising=False)
    monkeypatch.delenv("VOC", raising=False)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_what_to_expect(name):
    first, second, third, *_ = (config.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert first.startswith(f"# ciod train {name} ") and second.startswith("# published: ")
    assert re.match(r"# time: at most \d+ h on one GPU", third)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_plans_without_data(name):
    absent: list[str] = []
    settings = config.load(name, [], absent=absent)
    assert len(absent) == 1 and ("VOC" if name.startswith("voc") else "COCO") in absent[0]
    assert settings.scenario in scenario.available() and settings.out == f"runs/{name}"
    steps = plan(settings)
    if name.startswith("voc"):  # of VOC the steps are published; the data say how many epochs they are
        assert sum(len(s.classes) for s in steps) == 20 and settings.train.steps == 10000
        return
    assert steps and sum(len(s.classes) for s in steps) in (40, 50, 60, 70, 80)
    assert all(s.epochs == (50 if name.endswith(QUERIES) else 12) for s in steps)


def test_a_recipe_can_be_overridden_and_misspelt():
    assert config.load("coco-40+40-ilyolox", ["batch=4"], absent=[]).train.batch == 4
    with pytest.raises(
        config.ConfigError, match=r"no settings file .*nor a recipe.* did you mean 'coco-40\+40-ilyolox'"
    ):
        config.load("coco-40+4-ilyolox", ["data=shapes"])


def test_the_papers_schedule():
    """.6 of the method's page: lr 0.02, a tenth of it from the 9th epoch, a hundredth from the 12th."""
    from ciod.training import optim

    settings = config.load("coco-40+40-ilyolox", [], absent=[])
    t, total = settings.train, 12 * 700
    rates = [optim.rate(s, total, t, t.lr) for s in (0, 1500, 8 * 700 - 1, 8 * 700, 11 * 700 - 1, 11 * 700, total - 1)]
    assert rates == pytest.approx([0.02 * 0.001, 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])
    assert (t.optimizer, t.nesterov, t.clip, t.ema, t.norm, t.weight_decay) == ("sgd", False, None, 0, "train", 1e-4)
    assert t.decay_norms and settings.detector.head == "full" and settings.detector.name == "yolox-r50"
    a = settings.augment
    assert (a.flip, a.photometric, a.scale, a.mosaic) == (0.5, 0, (1, 1), 0)


def test_erds_schedule():
    """.2.8 of the other methods' page: lr 0.01 at batch 16, a tenth of it from the 9th epoch, 500 steps of warm-up."""
    from ciod.training import optim

    theirs = [n for n in RECIPES if n.startswith("coco") and not n.endswith(("-ilyolox", *QUERIES))]
    assert len(theirs) == 27
    for name in theirs:
        settings = config.load(name, [], absent=[])
        t, total = settings.train, 12 * 700
        steps = (0, 500, 8 * 700 - 1, 8 * 700, 11 * 700)
        rates = [optim.rate(s, total, t, t.lr) for s in steps]
        assert rates == pytest.approx([0.01 * 0.001, 0.01, 0.01, 0.001, 0.0001]), name
        assert (t.optimizer, t.nesterov, t.batch, t.momentum, t.weight_decay) == ("sgd", False, 16, 0.9, 1e-4)
        assert settings.detector.name == "gfl-r50" and settings.protocol.order == "coco_id", name
        e = settings.eval
        assert (e.score_threshold, e.nms_iou, e.max_detections) == (0.05, 0.6, 100)
    assert config.load("coco-40+40-erd", [], absent=[]).method == {"name": "erd", "nms_scale": "stride"}


@pytest.mark.parametrize("split", ["40+40", "70+10"])
def test_cl_detrs_rule_memory_and_schedule(split):
    from ciod.training import optim

    settings = config.load(f"coco-{split}-cl_detr", [], absent=[])
    assert [len(s.classes) for s in plan(settings)] == [int(n) for n in split.split("+")]
    rule = {"name": "pseudo_label", "score": 0, "top_k": 10, "nms_iou": 1.0}
    assert {k: settings.method[k] for k in rule} == rule and settings.protocol.images == "disjoint"
    m, t = settings.memory, settings.train
    assert (m.size, m.select, m.batches, settings.detector.name) == (0.1, "calibrated", "balanced", "ddetr-r50")
    rates = [optim.rate(s, 50 * 100, t, t.lr) for s in (0, 40 * 100 - 1, 40 * 100)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-5])
    assert (t.optimizer, t.batch, t.clip, t.weight_decay) == ("adamw", 32, 0.1, 1e-4)
    assert (t.lr, t.trunk_lr, t.backbone_lr) == (2e-4, 1, 0.1)


@pytest.mark.parametrize(
    ("split", "method"), [(s, "SIKD") for s in ("40+40", "70+10", "40+20+20", "40+10x4")] + [("70+10", "PseDet")]
)
def test_sikd_and_psedet_have_recipes_with_their_numbers(split, method):
    name = f"coco-{split}-{method.lower()}"
    (row,) = [r for r in literature.rows() if (r.dataset, r.scenario, r.method) == ("COCO2017", split, method)]
    assert published(name).startswith(f"final mAP {row.value:g} ") and published(name).endswith("upper bound 47.0")
    settings, theirs = config.load(name, [], absent=[]), config.load("coco-70+10-cl_detr", [], absent=[])
    assert settings.detector == theirs.detector and settings.train == theirs.train and settings.eval == theirs.eval
    protocol = settings.protocol
    assert (protocol.images, protocol.order, protocol.eval_images) == ("disjoint", "seed:123", "all")
    assert settings.method["name"] == ("sikd" if method == "SIKD" else "pseudo_label")


def test_table_2_has_a_recipe_a_cell_with_its_numbers(reference):
    rows = _published(reference)["table2"]
    assert len(rows) == 25
    for row in rows:
        name = f"coco-{row['scenario']}-{method_of(row)}"
        text = published(name)
        numbers = [float(n) for n in re.findall(r"\d+\.\d+", text)]
        wanted = [row[k] for k in ("final_mAP", "AbsGap", "RelGap_pct", "Omega_all", "upper_bound")]
        assert numbers == pytest.approx(wanted), text
        settings = config.load(name, [], absent=[])
        assert settings.method["name"] == method_of(row)
        assert [len(s.classes) for s in plan(settings)] == row["split"]
    assert "33.61" in published("coco-joint-ilyolox") and "40.2 " in published("coco-joint-gfl")


@pytest.mark.parametrize(
    ("split", "method", "lr"),
    [
        (split, method, lr)
        for split in ("19+1", "15+5", "10+10", "15+1x5")
        for method, lr in (("mma", 4e-4), ("bpf", 1e-3), ("abr", 4e-4))
        if (split, method) != ("15+1x5", "abr")  # no number is known
    ],
)
def test_the_two_stage_rows_of_voc_have_recipes_with_their_numbers(split, method, lr):
    name = f"voc-{split}-{method}"
    (row,) = [r for r in literature.rows() if (r.dataset, r.scenario, r.method.lower()) == ("VOC2007", split, method)]
    assert row.value is not None
    assert published(name).startswith(f"final AP50 {row.value:g}, AbsGap {76.4 - row.value:.1f} (upper bound 76.4")
    settings = config.load(name, [], absent=[])
    assert settings.detector.name == "fasterrcnn-r50" and settings.method["name"] == method
    t = settings.train
    assert (t.batch, t.lr, t.lr_later, t.milestones, t.optimizer) == (4, 0.005, lr, [0.75], "sgd")


def test_the_plots_have_recipes_with_their_points(reference):
    for series in _published(reference)["multi_step_plot"]["series"]:
        name = {3: "coco-40+20+20", 4: "coco-20x4", 5: "coco-40+10x4"}[series["steps"]]
        text = published(f"{name}-{method_of(series)}")
        listed = re.search(r"Ω ([\d. /]+)", text)
        assert listed and [float(n) for n in listed[1].split("/")] == list(series["points"].values()), text
        implied = re.search(r"implies a final mAP of ([\d.]+\d)", text)
        assert series["steps"] == 4 or (implied and float(implied[1]) == series["implied_final_mAP"]), text
    labels = _published(reference)["four_step_curve"]["printed_labels"]
    ends = [labels[f"task{t}_end_epoch{12 * t}"] for t in (1, 2, 3, 4)]
    found = re.search(r"mAP after tasks 1 to 4: ([\d. /]+)", published("coco-20x4-ilyolox"))
    assert found and [float(n) for n in found[1].split("/")] == ends


@pytest.mark.parametrize(
    ("kind", "splits"),
    [
        ("ilyolox", ([40, 20, 20], [20] * 4, [40, 10, 10, 10, 10])),
        ("gfl", ([40, 20, 20], [40, 10, 10, 10, 10])),
    ],
)
def test_every_bound_that_omega_needs_has_a_recipe(kind, splits):
    prefixes = {sum(sizes[: t + 1]) for sizes in splits for t in range(1, len(sizes))}
    assert {f"coco-joint{n if n < 80 else ''}-{kind}" for n in prefixes} <= set(RECIPES)


def method_of(row) -> str:
    return "ilyolox" if row["method"] == "Ours" else row["method"].lower()


def _published(reference):
    return json.loads((reference / "ilyolox_published.json").read_text(encoding="utf-8"))
