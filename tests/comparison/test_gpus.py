"""Which GPU each run of a comparison gets. The machines here have none, so the list of them is given."""

from __future__ import annotations

import os

import pytest

import ciod
from ciod.comparison import gpus, schedule

from .conftest import SETTINGS


@pytest.mark.parametrize(
    ("given", "count", "found"),
    [
        (None, 4, ["0", "1", "2", "3"]),
        (None, 0, []),
        ("3,1", 2, ["3", "1"]),
        ("", 0, []),
        ("-1", 0, []),
        ("2, 5,-1,3", 2, ["2", "5"]),  # CUDA stops at an entry that does not exist
        ("GPU-8932f937, GPU-1111", 2, ["GPU-8932f937", "GPU-1111"]),
        ("MIG-aaaa,MIG-bbbb", 1, ["MIG-aaaa", "MIG-bbbb"]),  # PyTorch sees the first only
    ],
)
def test_the_gpus_that_are_shared_out(given, count, found):
    assert gpus.visible({} if given is None else {gpus.VISIBLE: given}, count) == found


def test_a_run_goes_to_the_gpu_with_the_fewest_runs():
    assert gpus.least_used(["5", "3"], []) == "5"
    assert gpus.least_used(["5", "3"], ["5"]) == "3"
    assert gpus.least_used(["5", "3"], ["5", "3", "3"]) == "5"
    assert gpus.least_used([], ["5"]) is None


@pytest.mark.parametrize(
    ("device", "kind", "shared"),
    [("auto", "cuda", True), ("cuda", "cuda", True), ("cuda:1", "cuda", False), ("auto", "cpu", False)],
)
def test_a_gpu_that_was_chosen_by_hand_stays(device, kind, shared, monkeypatch):
    monkeypatch.setattr(gpus, "visible", lambda: ["0", "1"])
    assert gpus.for_runs(device, kind) == (["0", "1"] if shared else [])
    monkeypatch.setattr(gpus, "visible", lambda: ["0"])
    assert gpus.for_runs(device, kind) == []


@pytest.mark.parametrize(("words", "jobs"), [({}, 2), ({"jobs": 1}, 1), ({"jobs": 6}, 6)])
def test_as_many_jobs_as_gpus(scenes, tmp_path, monkeypatch, capsys, words, jobs):
    given = {}

    class Stop(Exception):
        pass

    def run(cells, **kw):
        given.update(kw)
        raise Stop

    monkeypatch.setattr(gpus, "for_runs", lambda device, kind: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(schedule, "run", run)
    with pytest.raises(Stop):
        ciod.compare(methods="finetune", out=tmp_path / "o", data=str(scenes), **words, **SETTINGS)
    assert given["jobs"] == jobs and given["gpus"] == ["GPU-a", "GPU-b"]
    many = "1 run" if jobs == 1 else f"{jobs} runs"
    assert f"{many} at a time, each on one of 2 GPUs (CUDA_VISIBLE_DEVICES=GPU-a,GPU-b)" in capsys.readouterr().out


def test_a_worker_sees_its_gpu_only_and_the_result_is_the_same(compared, scenes, tmp_path, monkeypatch, capsys):
    """The variable of each process, as it is given to the system; the keys of runs know nothing of it."""
    seen = {}
    real = schedule.subprocess.Popen

    def popen(command, env, **more):
        seen[len(seen)] = env.get(gpus.VISIBLE)
        return real([command[0], "-c", "pass"], env=env, **more)

    monkeypatch.setattr(schedule.subprocess, "Popen", popen)
    monkeypatch.setattr(gpus, "for_runs", lambda device, kind: ["7", "MIG-x"])
    monkeypatch.setattr(ciod.comparison.outcome, "write", lambda made, failed: {"runs": made.cells})
    monkeypatch.setattr(ciod.comparison.outcome, "show", lambda *_: None)
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    content = ciod.compare(methods=["finetune"], out=tmp_path / "o", data=str(scenes), **SETTINGS)
    assert sorted(seen.values()) == ["7", "7", "MIG-x"]  # the first task and joint training, then the run
    assert gpus.VISIBLE not in os.environ
    output = capsys.readouterr().out
    for cell in content["runs"]:
        log = (tmp_path / "o" / "logs" / f"{cell.name}.log").read_text()
        assert "on GPU 7" in log or "on GPU MIG-x" in log
        assert log.strip() in output
        assert (compared / cell.folder.name).exists()  # the same key as without GPUs
