"""The scenarios of the package: every published split, with the classes the papers have in it."""

from __future__ import annotations

import json

import pytest

from ciod.data.names import COCO, VOC
from ciod.data.scenarios import scenario as sc

COCO_SPLITS = ["40+40", "50+30", "60+20", "70+10", "last40+first40", "40+20+20", "40+10x4", "20x4", "10x8", "joint"]
VOC_SPLITS = ["19+1", "15+5", "10+10", "5+15", "10+5x2", "5x4", "15+1x5", "10+2x5", "joint"]
# The ends of the ten rows of the paper's class list (first and last name, with the COCO ids printed there).
ROWS = [
    ("airplane", "bicycle"), ("bird", "carrot"), ("cat", "donut"), ("elephant", "keyboard"), ("kite", "person"),
    ("pizza", "skis"), ("snowboard", "toaster"), ("toilet", "zebra"),
]  # fmt: skip


def groups(name: str) -> list[tuple[str, ...]]:
    protocol = sc.read_protocol(name)
    return sc.groups_of(protocol, VOC if name.startswith("voc") else COCO)


@pytest.mark.parametrize("name", sc.available())
def test_every_scenario_reads_and_says_what_it_is(name):
    protocol = sc.read_protocol(name)
    assert protocol.description and protocol.name == name and protocol.data in ("${COCO}", "${VOC}", "shapes")
    assert f"ciod train scenario={name} " in (sc.FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    if protocol.data != "shapes":
        found = groups(name)
        total = 20 if name.startswith("voc") else 80
        assert sorted(n for g in found for n in g) == sorted(VOC if total == 20 else COCO)


def test_every_published_split_in_both_orders():
    have = set(sc.available())
    assert {f"coco-{s}{order}" for s in COCO_SPLITS for order in ("", "-id")} <= have
    assert {f"voc-{s}" for s in VOC_SPLITS} <= have
    assert "coco-19+21+20+20" in have


@pytest.mark.parametrize("split", ["50+30", "60+20", "70+10", "40+20+20", "40+10x4", "20x4", "10x8"])
def test_sizes_of_the_groups(split):
    for name in (f"coco-{split}", f"coco-{split}-id"):
        assert [len(g) for g in groups(name)] == sc.parse_split(split, 80)


def test_alphabetical_order_is_the_papers():
    tens = groups("coco-10x8")
    assert [(g[0], g[-1]) for g in tens] == ROWS
    assert [n for g in tens for n in g] == sorted(COCO)
    protocol = sc.read_protocol("coco-10x8")
    assert protocol.eval_images == "seen" and protocol.order == "alphabetical"


def test_where_person_is():
    """The largest class decides how hard a split is; the paper's orders put it into these tasks (from 1)."""
    where = {s: next(i for i, g in enumerate(groups(f"coco-{s}"), 1) if "person" in g) for s in COCO_SPLITS[:8]}
    assert where == {
        "40+40": 2, "40+20+20": 2, "40+10x4": 2, "20x4": 3, "50+30": 1, "60+20": 1, "70+10": 1, "last40+first40": 1,
    }  # fmt: skip
    assert groups("coco-40+40-id")[0][0] == "person"


def test_last40_first40_is_40_40_reversed():
    for order in ("", "-id"):
        assert groups(f"coco-last40+first40{order}") == groups(f"coco-40+40{order}")[::-1]


def test_class_order_of_the_published_numbers(reference):
    published = json.loads((reference / "ilyolox_published.json").read_text())
    listed = published["class_order_alphabetical"]
    assert [c["name"] for c in listed] == [n for g in groups("coco-20x4") for n in g]
    assert [c["name"] for c in sorted(listed, key=lambda c: c["coco_id"])] == list(COCO)
    ours = {f"{r['scenario']}": r["split"] for r in published["table2"]}
    for split, sizes in ours.items():
        assert [len(g) for g in groups(f"coco-{split}")] == sizes
    for series in published["multi_step_plot"]["series"]:
        name = {3: "coco-40+20+20", 4: "coco-20x4", 5: "coco-40+10x4"}[series["steps"]]
        assert [len(g) for g in groups(name)] == series["split"]


def test_md_detrs_tasks_are_supercategories():
    first, second, third, fourth = groups("coco-19+21+20+20")
    assert (len(first), len(second), len(third), len(fourth)) == (19, 21, 20, 20)
    assert {"person", "zebra", "truck"} < set(first) and {"pizza", "skis"} < set(third)
    assert {"bench", "oven", "tie", "bed"} < set(second) and {"laptop", "fork", "book"} < set(fourth)


def test_open_world_splits():
    """S-OWODB has the tasks of MD-DETR's groups; M-OWODB begins with the classes of VOC."""
    assert groups("coco-s-owodb") == groups("coco-19+21+20+20") and sc.read_protocol("coco-s-owodb").open_world
    first, second, third, fourth = groups("coco-m-owodb")
    assert [len(g) for g in (first, second, third, fourth)] == [20, 20, 20, 20]
    renamed = {"airplane": "aeroplane", "motorcycle": "motorbike", "dining table": "diningtable", "couch": "sofa",
               "potted plant": "pottedplant", "tv": "tvmonitor"}  # fmt: skip
    assert sorted(renamed.get(n, n) for n in first) == sorted(VOC)
    assert "truck" in second and {"bear", "sink", "tie"} < set(second) and {"kite", "cake"} < set(third)
    assert {"bed", "laptop", "vase", "bowl"} < set(fourth) and sc.read_protocol("coco-m-owodb").open_world


def test_voc_is_trained_on_trainval_and_scored_in_vocs_own_way():
    protocol = sc.read_protocol("voc-10+10")
    assert (protocol.train_split, protocol.test_split, protocol.metric) == ("trainval", "test", "voc07")
    assert groups("voc-19+1")[1] == ("tvmonitor",) and groups("voc-15+5")[1][0] == "pottedplant"
    assert groups("voc-10+10")[1][0] == "diningtable" and groups("voc-5+15")[0][-1] == "bottle"
    assert [len(g) for g in groups("voc-15+1x5")] == [15, 1, 1, 1, 1, 1]
