"""Bases below the gate, floors under denominators, unequal steps: what a comparison says of itself."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from ciod.report import compared, judged, ratios
from ciod.report.comparison import About, write_comparison
from ciod.report.ratios import Gate

from . import fake

NAMES = ["a", "b", "c"]


def run(base: float, after: float, seed: int = 0, *, method: str = "lwf", scale: float = 0.6) -> dict[str, Any]:
    """Classes a and b, then c: AP50 ``base`` of a and b when learnt, ``after`` in the end, 0.8 of c."""
    found = fake.results((2, 1), names=NAMES, seed=seed, method=method)
    rows = [dict.fromkeys("ab", base), {**dict.fromkeys("ab", after), "c": 0.8}]
    found["ap"] = {"AP50": rows, "AP": [{n: scale * v for n, v in r.items()} for r in rows]}
    found["continual"]["AP50"]["retention"] = after / base
    return found


def joint(value: float, seed: int = 0, *, scale: float = 0.6, steps: int = 960) -> dict[str, Any]:
    found = fake.results((2, 1), names=NAMES, seed=seed, joint=True)
    found["ap"] = {"AP50": [dict.fromkeys("abc", value)], "AP": [dict.fromkeys("abc", scale * value)]}
    found["tasks"][0]["all"] |= {"AP50": value, "AP": scale * value}
    found["tasks"][0]["steps"] = steps
    return found


def test_a_base_is_measured_against_joint_training_on_its_own_classes():
    bound = joint(0.9)
    bound["ap"]["AP50"][0]["c"] = 0.1
    assert ratios.base_of(run(0.6, 0.5), bound) == pytest.approx((0.6, 0.9)), "c is not of the first task"
    assert ratios.base_of(run(0.6, 0.5), None) == (0.6, None)
    assert ratios.base_of(fake.results((2, 1), tasks=1), bound) == (None, None)


def test_below_the_gate_the_ratios_are_withheld_and_the_reason_is_named():
    runs = [("lwf", run(0.5, 0.4)), ("lwf", run(0.85, 0.6, 1)), ("joint", joint(0.9)), ("joint", joint(0.9, 1))]
    low, good, *_ = compared.seed_rows(runs, Gate(0.9))
    assert all(low[k] is None for k in ratios.RATIOS) and good["retention"] == pytest.approx(0.6 / 0.85)
    assert low["base_share"] == pytest.approx(0.5 / 0.9) and low["old_after"] is not None, "an AP is not a ratio"
    mean, _ = compared.comparison_rows(runs, Gate(0.9))
    assert mean["retention"] is None and mean["all_ap50"] is not None
    (remark,) = judged.remarks(runs, Gate(0.9))
    start = "Seed 0: the base reaches 55.6 % of joint training's AP50 on its own classes (50.0 against 90.0);"
    assert remark.startswith(start)
    assert judged.bases(runs, Gate(0.9))[0] == ("0", ["50.0", "90.0", "55.6", "–", "below the gate"])
    assert judged.bases(runs, Gate(0.9))[1][1][-1] == "passes"
    assert compared.seed_rows(runs, Gate(0.5))[0]["retention"] == pytest.approx(0.8) and not judged.remarks(
        runs, Gate()
    )


def test_joint_models_that_are_not_rows_also_count_and_a_missing_one_is_named():
    runs = [("lwf", run(0.5, 0.4)), ("erd", run(0.88, 0.4))]
    (remark,) = judged.remarks(runs, Gate(0.9, {0: joint(0.9)}))
    assert "the base of lwf reaches" in remark, "erd has a first task of its own"
    (remark,) = judged.remarks(runs, Gate(0.9))
    assert remark == "There is no joint model (upper=none), so it is not known whether the bases have converged."


def test_a_ratio_is_withheld_where_its_denominator_is_under_the_floor():
    assert set(ratios.withheld(run(0.04, 0.02), joint(0.9), 0)) == {"retention", "rai"}
    assert set(ratios.withheld(run(0.6, 0.5), joint(0.06), 0)) == {"rel_gap", "omega", "stability", "plasticity", "rai"}
    weak = {**run(0.6, 0.5), "upper_bounds": [None, {"AP": 0.01}]}
    assert set(ratios.withheld(weak, joint(0.9), 0)) == {"omega"}
    assert ratios.withheld(run(0.6, 0.5), joint(0.9), 0) == {} == ratios.withheld(run(0.6, 0.5), None, 0.9)
    (remark, *_) = judged.remarks([("a", run(0.04, 0.02)), ("b", run(0.04, 0.03))], Gate())
    assert remark == (
        "a, b: retention, RAI withheld: AP50 of the old classes when they were learnt is 4.0 %, below 5.0 %."
    )


def test_retention_above_one_beyond_noise_is_a_base_that_has_not_converged():
    runs = [("erd", run(0.6, 0.66 + 0.001 * s, s)) for s in range(3)]
    (remark,) = judged.remarks(runs, Gate())
    assert remark.startswith("erd: retention is 110.2 %, above 100 % beyond noise: the later tasks keep teaching")
    assert judged.remarks([("erd", run(0.6, 0.5 + 0.1 * s, s)) for s in range(3)], Gate()) == []


def test_rows_that_differ_in_steps_are_named():
    runs = [("lwf", run(0.8, 0.7)), ("joint", joint(0.9, steps=480))]
    (remark,) = judged.remarks(runs, Gate())
    assert remark == (
        "The rows differ in optimiser steps: lwf 960, joint 480. Write equal_steps=true to compare equal effort."
    )
    assert judged.remarks([runs[0], ("joint", joint(0.9, steps=1000))], Gate()) == []
    for _, results in (short := [("lwf", run(0.8, 0.7)), ("joint", joint(0.9, steps=128))]):
        for task in results["tasks"]:
            task |= {"epochs": 4} if results is short[1][1] else {"steps": 55, "epochs": 2}
    assert judged.remarks(short, Gate()) == [], "110 and 128 steps: the last epoch, of 32, is complete"


def test_the_csv_has_every_class_after_every_task():
    runs = [("lwf", run(0.5, 0.4)), ("joint", joint(0.9))]
    runs[0][1]["scenario"] |= {"fold": 2, "order": ["b", "a", "c"]}
    one, bound = csv.DictReader(io.StringIO(compared.comparison_csv(runs, Gate(0.9))))
    assert (one["fold"], one["order"], one["withheld"]) == ("2", "b a c", " ".join(ratios.RATIOS))
    assert one["AP50 of a after task 1"] == "0.5" and one["AP50 of a after task 2"] == "0.4"
    assert one["AP50 of c after task 1"] == "" and one["task of c"] == "2" and one["steps"] == "960"
    assert bound["AP50 of c after task 1"] == "0.9" and bound["AP50 of c after task 2"] == ""


def test_the_page_has_the_bases_and_the_blocks(tmp_path):
    folders = {}
    for name, results in (("lwf", run(0.5, 0.4)), ("erd", run(0.5, 0.45)), ("joint", joint(0.9))):
        folders[name] = fake.write_run(tmp_path / name, results)
    about = About(command="ciod", against="lwf", gate=Gate(0.9), blocks=["seed 0, fold 1"], figures=True)
    page = write_comparison(folders, tmp_path / "page.html", about).read_text()
    assert "below the gate" in page and "block: seed 0, fold 1" in page and "the gate is 90.0 %" in page
    assert "Stability against plasticity" in page and "Who takes whose boxes" not in page, "no pictures.npz"
    for name in ("forest", "bars", "curves", "class-task", "stability-plasticity"):
        assert (tmp_path / "figures" / f"{name}.svg").read_text().startswith("<?xml")
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
