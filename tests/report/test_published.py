"""The literature's table: complete, every row with its source, found under our scenarios' names."""

from __future__ import annotations

from collections import Counter

import pytest

from ciod.core.errors import CiodError
from ciod.report import published


def test_every_row_says_where_it_is_from():
    rows = published.rows()
    assert len(rows) == 289
    assert Counter(r.dataset for r in rows).most_common(3) == [("COCO2017", 129), ("VOC2007", 126), ("LoCo-COCO", 12)]
    known = set(published.content()["confidence"])
    for r in rows:
        assert r.source_text and r.confidence in known, r
        assert r.method and r.detector and r.metric, r
        assert r.value is not None or r.note or r.rel_gap_pct is not None, r
    assert all(s["what"] and s["grade"] for s in published.sources().values())


def test_a_row_without_a_source(monkeypatch):
    listed = published.content()
    row = [*listed["rows"][0]]
    row[listed["columns"].index("source")] = "rumour+hearsay"
    monkeypatch.setattr(published, "content", lambda: {**listed, "rows": [row]})
    with pytest.raises(CiodError, match=r"published\.json: no source hearsay, rumour\."):
        published.rows()


def test_gaps_are_those_of_final_and_upper_bound():
    checked = 0
    for r in published.rows():
        if r.value is not None and r.upper_bound is not None and r.abs_gap is not None:
            assert r.upper_bound - r.value == pytest.approx(r.abs_gap, abs=0.11), r
            checked += 1
    assert checked > 50


COCO = ["toothbrush", "hair drier", "frisbee", "zebra", *(f"c{i}" for i in range(76))]
VOC = ["diningtable", "pottedplant", "tvmonitor", "aeroplane", *(f"c{i}" for i in range(16))]


@pytest.mark.parametrize(
    ("scenario", "dataset", "name", "count"),
    [
        ({"classes": COCO, "split": [40, 40]}, "COCO2017", "40+40", 37),
        ({"classes": COCO, "split": [40, 40], "name": "coco-last40+first40"}, "COCO2017", "last40+first40", 5),
        ({"classes": COCO, "split": [40, 10, 10, 10, 10]}, "COCO2017", "40+10x4", 24),
        ({"classes": COCO, "split": [20] * 4}, "COCO2017", "20x4", 3),
        ({"classes": COCO, "split": [19, 21, 20, 20]}, "COCO2017", "MD-DETR 4-task (19+21+20+20)", 3),
        ({"classes": COCO, "split": [40, 40], "images": "loco"}, "LoCo-COCO", "40+40", 4),
        ({"classes": VOC, "split": [15, 1, 1, 1, 1, 1]}, "VOC2007", "15+1x5", 17),
    ],
)
def test_rows_of_a_scenario(scenario, dataset, name, count):
    found = published.of(scenario)
    assert {(r.dataset, r.scenario) for r in found} == {(dataset, name)}
    everything = [r for r in published.rows() if (r.dataset, r.scenario) == (dataset, name)]
    assert len(everything) == count
    assert len(found) == sum(r.confidence != "low" for r in everything)
    assert [r.method.lower() for r in found] == sorted(r.method.lower() for r in found), "no ranking"


def test_scenarios_without_published_results():
    assert published.of({}) == []
    assert published.of({"classes": COCO, "split": [79, 1]}) == []
    assert published.of({"classes": COCO, "split": [80]}) == []
    assert published.of({"classes": [f"c{i}" for i in range(80)], "split": [40, 40]}) == []


def test_numbers_as_printed():
    row = next(r for r in published.rows() if (r.method, r.scenario) == ("LwF", "40+40"))
    assert (row.shown("value"), row.shown("omega_all"), row.shown("exemplars")) == ("17.2", "0.714", "–")
