"""Upper bounds of class prefixes into results.json, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciod.core.errors import CiodError
from ciod.report import results_file
from ciod.runs.results import SIX, Results
from tests.report import fake

NAMES = [f"class {i}" for i in range(8)]


def joint(folder: Path, n: int, value: float) -> Path:
    """A joint run on the first ``n`` classes that has ``value`` everywhere."""
    found = fake.results((n,), names=NAMES[:n], joint=True)
    found["tasks"][0]["all"] = dict.fromkeys(SIX, value)
    found["ap"] = {m: [dict.fromkeys(NAMES[:n], value)] for m in ("AP", "AP50")}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def run() -> Results:
    """Every class has AP 0.5 when it is learnt, and from then on 0.4."""
    found = fake.results((4, 2, 2), names=NAMES)
    ends = (4, 6, 8)
    found["ap"] = {
        m: [{n: 0.5 if i >= ([0, *ends][t]) else 0.4 for i, n in enumerate(NAMES[: ends[t]])} for t in range(3)]
        for m in ("AP", "AP50")
    }
    for t, task in enumerate(found["tasks"]):
        task["all"] = dict.fromkeys(SIX, sum(found["ap"]["AP"][t].values()) / ends[t])
    return Results(found)


def test_every_prefix_counts(run, tmp_path):
    bounds = [joint(tmp_path / "final", 8, 0.8), joint(tmp_path / "middle", 6, 0.6)]  # in any order
    run.finish(bounds)
    middle, last = (0.4 * 4 + 0.5 * 2) / 6, (0.4 * 6 + 0.5 * 2) / 8
    omega = (1 + middle / 0.6 + last / 0.8) / 3
    for m in SIX:
        assert run.content["continual"][m]["omega"] == pytest.approx(omega)
        assert run.content["continual"][m]["rel_gap"] == pytest.approx((0.8 - last) / 0.8)
    for m in ("AP", "AP50"):
        found = run.content["continual"][m]
        assert found["stability_deficiency"] == pytest.approx(0.5)
        assert found["plasticity_deficiency"] == pytest.approx(3 / 8)
        # kept 0.4 of 0.5 in both later tasks, learnt 0.5 where joint training has 0.8
        assert found["retention_adaptability"] == pytest.approx((0.8 + 0.5 / 0.8) / 2)
    assert [None if b is None else b["AP"] for b in run.content["upper_bounds"]] == [None, 0.6, 0.8]


def test_without_a_prefix_there_is_a_gap_and_no_omega(run, tmp_path):
    run.finish([joint(tmp_path / "final", 8, 0.8)])
    assert run.content["continual"]["AP"]["omega"] is None
    assert run.content["continual"]["AP"]["abs_gap"] == pytest.approx(0.8 - 0.425)
    run.finish([])
    assert run.content["continual"]["AP"]["abs_gap"] is None and run.content["upper_bounds"] is None


def test_classes_that_are_not_a_prefix(run, tmp_path):
    with pytest.raises(CiodError, match="not a finished joint run of the same classes"):
        run.finish([joint(tmp_path / "odd", 5, 0.8)])


def spoilt(name: str) -> str:
    good = fake.results((8,), names=NAMES, joint=True)
    lacking = {k: v for k, v in good.items() if k != name}
    task = {"tasks": [{k: v for k, v in good["tasks"][0].items() if k != name}]}
    return json.dumps({**good, **task} if name in ("all", "new_classes") else lacking)


SPOILT = [
    ("", r"results\.json is empty; it should hold JSON"),
    ("[]", r"results\.json should hold an object with keys, but holds a list"),
    (spoilt("")[:300], r"results\.json is not JSON: line 1, column \d+"),
    ('{"format": 9}', "has a format that this version of ciod does not read; it reads 1"),
    (spoilt("ap"), r"does not contain the results of a run: ap: Field required"),
    (spoilt("tasks"), r"does not contain the results of a run: tasks: Field required"),
    (spoilt("scenario"), r"does not contain the results of a run: scenario: Field required"),
    (spoilt("all"), r"does not contain the results of a run: tasks\.0\.all: Field required"),
]


@pytest.mark.parametrize(("content", "match"), SPOILT)
def test_an_upper_bound_with_damaged_results(run, tmp_path, content, match):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(CiodError, match=match):
        run.finish([tmp_path])


def test_of_a_first_task_no_more_is_needed_than_a_run_writes(whole):
    results_file.read(whole / "results.json", results_file.Finished)
