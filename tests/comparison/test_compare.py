"""Whole comparisons: the files, an interruption by force, a run that dies."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

import ciod
from ciod.comparison import outcome, schedule
from ciod.comparison.settings import Rules
from ciod.core.errors import ConfigError

from .conftest import ILYOLOX, SETTINGS, in_this_process


def read(out: Path) -> dict:
    return json.loads((out / "compare.json").read_text())


def words(scenes: Path, out: Path, methods: list) -> list[str]:
    settings = [f"{k}={v}" for k, v in SETTINGS.items()]
    own = [f"methods={yaml.safe_dump(methods, default_flow_style=True, width=1000).strip()}", f"out={out}"]
    return [sys.executable, "-m", "ciod.cli", "compare", f"data={scenes}", *own, *settings]


def environment() -> dict[str, str]:
    """As many threads as this process has, so that sums come out the same."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def table(out: Path) -> list[tuple]:
    """The numbers of every run but time and memory."""
    return [
        tuple(v for k, v in row.items() if k not in ("seconds", "step_ratio", "memory")) for row in read(out)["by_seed"]
    ]


def test_a_wrong_upper_bound_is_reported_with_the_table(compared, tmp_path):
    shutil.copytree(compared, tmp_path / "a")
    (run,) = [r for r in read(compared)["runs"] if r["label"] == "ilyolox"]
    file = tmp_path / "a" / run["folder"] / "results.json"
    results = json.loads(file.read_text())
    results["tasks"][1]["all"]["AP"], results["upper_bounds"][1]["AP"] = 0.3, 0.2
    file.write_text(json.dumps(results))
    stream = io.StringIO()
    shown = SimpleNamespace(out=tmp_path / "a", seeds=[0], bounds=lambda _: [], scenario=[0, 1], rules=Rules())
    outcome.show(shown, read(compared), Console(file=stream))
    assert (
        "warning: ilyolox, seed 0: After task 2 AP is 30.0, more than the 20.0 of joint training" in stream.getvalue()
    )
    assert "warning: finetune, seed 0" not in stream.getvalue()


def test_files(compared):
    content = read(compared)
    assert [m["label"] for m in content["methods"]] == ["finetune", "ilyolox"]
    assert [r["status"] for r in content["runs"]] == ["finished"] * 2
    assert content["methods"][1]["settings"] == {"center_score": 0, "other_score": 0}
    assert content["methods"][0]["mean"]["seconds"] > 0 and content["methods"][0]["std"]["all_ap"] is None
    assert content["methods"][0]["mean"]["step_ratio"] == 1 and content["methods"][1]["mean"]["step_ratio"] > 0
    lines = list(csv.DictReader((compared / "compare.csv").open()))
    assert [float(line["step_ratio"]) for line in lines] == [r["step_ratio"] for r in content["by_seed"]]
    assert all("time per step" in (compared / name).read_text() for name in ("compare.md", "compare.html"))
    assert content["against"] == "finetune"
    (row,) = content["differences"]
    by_name = {r["name"]: r for r in content["by_seed"]}
    assert row["mean"]["all_ap"] == by_name["ilyolox"]["all_ap"] - by_name["finetune"]["all_ap"]
    assert [(x["method"], x["seed"]) for x in lines] == [("finetune", "0"), ("ilyolox", "0")]
    assert (compared / "compare.md").read_text().startswith("| method | old AP |")
    assert "\\begin{tabular}" in (compared / "compare.tex").read_text()
    page = (compared / "compare.html").read_text()
    assert "finetune-seed0/report.html" in page and "ciod.compare(" in page and "<svg" in page
    assert "The literature" not in page, "nothing was published on these scenes"


def test_the_first_task_is_shared_and_bounds_reach_every_run(compared):
    firsts = [f for f in compared.iterdir() if f.name.startswith("first-")]
    joint = [f for f in compared.iterdir() if f.name.startswith("joint-")]
    assert len(firsts) == len(joint) == 1
    model = load_file(firsts[0] / "task-1" / "model.safetensors")
    bound = json.loads((joint[0] / "results.json").read_text())["tasks"][0]["all"]
    for name in ("finetune-seed0", "ilyolox-seed0"):
        mine = load_file(compared / name / "task-1" / "model.safetensors")
        assert all(torch.equal(model[k], mine[k]) for k in model)
        results = json.loads((compared / name / "results.json").read_text())
        assert results["upper_bounds"] == [None, bound]
        assert set(results["continual"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl"}


def test_the_same_command_again_trains_nothing(compared, scenes, monkeypatch):
    seen = []

    def look(cells, **given):
        seen.extend(c for c in cells if not schedule.finished(c.folder, c.key))
        return {}

    before = table(compared)
    monkeypatch.setattr(schedule, "run", look)
    again = ciod.compare(methods=["finetune", ILYOLOX], seeds=1, out=compared, data=str(scenes), **SETTINGS)
    assert seen == [] and table(compared) == before
    assert [r["status"] for r in again["runs"]] == ["finished"] * 2


def test_a_dry_run_lists_and_trains_nothing(compared, scenes, capsys, monkeypatch):
    from ciod.cli import app

    monkeypatch.setattr(schedule, "run", None)
    words = [f"{k}={v}" for k, v in {"data": scenes, "out": compared, **SETTINGS}.items()]
    methods = "methods=[finetune, {name: ilyolox, center_score: 0, other_score: 0}, pseudo_label]"
    app(["compare", "--dry-run", methods, *words], standalone_mode=False)
    output = capsys.readouterr().out
    assert "4 of 5 exist already" in output
    assert "finished  ilyolox-seed0" in output and "to train  pseudo_label-seed0" in output


def test_another_comparison_uses_its_cache(compared, scenes, tmp_path, monkeypatch):
    trained = []

    def look(cells, **given):
        trained.extend(c.name for c in cells if not schedule.finished(c.folder, c.key))
        return in_this_process(cells)

    monkeypatch.setattr(schedule, "run", look)
    ciod.compare(
        methods="pseudo_label,joint", seeds=1, out=tmp_path / "b", cache=compared, data=str(scenes), **SETTINGS
    )
    assert trained == ["pseudo_label-seed0"]
    assert [m["label"] for m in read(tmp_path / "b")["methods"]] == ["pseudo_label", "joint"]


def test_a_part_writes_no_page(compared, scenes, monkeypatch, capsys):
    given = {"methods": ["finetune", ILYOLOX], "seeds": 1, "out": compared, "data": str(scenes), **SETTINGS}
    before = (compared / "compare.html").stat().st_mtime_ns
    monkeypatch.setattr(schedule, "run", lambda cells, **_: {cells[-1].name: "a test"})
    content = ciod.compare(only="1/2", **given)
    output = " ".join(capsys.readouterr().out.split())
    assert content["runs"] == [{"label": "joint-seed0", "status": "failed", "error": "a test"}]
    assert "failed: joint-seed0: a test" in output
    assert "part 1 of 2: 0 of 1 runs are finished, 4 of 4 in total. When all parts are finished, repeat the" in output
    assert (compared / "compare.html").stat().st_mtime_ns == before
    settings = {"data": str(scenes), **SETTINGS}
    ciod.comparison.run(settings=settings, methods=given["methods"], out=compared, only="2/2", dry=True)
    output = capsys.readouterr().out
    assert "finished  ilyolox-seed0" in output and "joint-seed0" not in output


def test_jobs_are_a_number(scenes, tmp_path):
    with pytest.raises(ConfigError, match="jobs: 0 must be a number from 1"):
        ciod.compare(methods="finetune", jobs=0, out=tmp_path, data=str(scenes), **SETTINGS)


def kill_when(command: list[str], sign: str, out: Path) -> None:
    """Runs a command and ends it by force when a file appears in ``out``."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob(sign)):
        time.sleep(0.01)
    assert process.poll() is None, f"it ended before {sign} appeared"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_twice_and_resumed_it_gives_the_same_table(compared, scenes, tmp_path):
    out = tmp_path / "out"
    command = words(scenes, out, ["finetune", ILYOLOX])
    kill_when(command, "first-*/last/state.pt", out)
    kill_when(command, "ilyolox-seed0/last/state.pt", out)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "exist already" in done.stdout and "ilyolox" in done.stdout
    assert table(out) == table(compared)
    for name in ("finetune-seed0", "ilyolox-seed0"):
        ours, theirs = (load_file(f / name / "task-2" / "model.safetensors") for f in (out, compared))
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs), f"{name} learnt something else"


def owner(lock: Path, command: subprocess.Popen) -> int:
    """Waits until a process holds ``lock``; its number."""
    while command.poll() is None:
        try:
            return json.loads(lock.read_text())["pid"]
        except (OSError, ValueError):
            time.sleep(0.01)
    raise AssertionError(f"it ended before {lock} appeared")


@pytest.mark.slow
def test_two_commands_in_one_folder_share_the_runs_and_one_takes_over_from_the_other(compared, scenes, tmp_path):
    out = tmp_path / "out"
    command = [*words(scenes, out, ["finetune", ILYOLOX]), f"cache={compared}"]
    a = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trainer = owner(out / "finetune-seed0" / ".cell.lock", a)
    os.kill(trainer, signal.SIGSTOP)  # so that it is still training when the other command needs it
    b = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    owner(out / "ilyolox-seed0" / ".cell.lock", b)  # b trains the other run meanwhile; then a and its run die
    assert a.poll() is None and not (out / "compare.json").exists()
    for pid in (a.pid, trainer):
        os.kill(pid, signal.SIGKILL)
    a.wait()
    output = b.communicate()[0]
    assert b.returncode == 0 and "finetune-seed0: process" in output and "trains it; its result is used" in output
    assert table(out) == table(compared)
    for name in ("finetune-seed0", "ilyolox-seed0"):
        ours, theirs = (load_file(f / name / "task-2" / "model.safetensors") for f in (out, compared))
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs), f"{name} learnt something else"
    assert not list(out.rglob("*.lock"))


def contents(out: Path) -> dict[str, str]:
    """The page and the sheet without what differs from call to call: times, memory, folders."""
    page = (out / "compare.html").read_text(encoding="utf-8").replace(str(out), "OUT")
    page = re.sub(r"\d+(\.\d+)? s\b|\d+ min \d+ s|[\d.,]+ MB|\d+\.\d+ ×", "", page)
    sheet = list(csv.DictReader((out / "compare.csv").open()))
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "step_ratio", "memory")} for row in sheet]
    return {"page": page, "csv": json.dumps(rows), "tests": (out / "differences.csv").read_text()}


@pytest.mark.slow
def test_blocks_killed_twice_and_cut_in_two_halves_give_the_same_page(scenes, tmp_path, monkeypatch, capsys):
    """Two blocks: two folds, class orders and seeds, two methods and joint training."""
    base = words(scenes, Path("OUT"), ["finetune", ILYOLOX])
    base = [w for w in base if not w.startswith("out=")] + ["folds=2", "blocks=2"]
    given = {"methods": ["finetune", ILYOLOX], "data": str(scenes), "folds": 2, "blocks": 2, **SETTINGS}
    whole, halves = tmp_path / "a" / "out", tmp_path / "b" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "run", in_this_process)
        ciod.compare(out=whole, **given)
    first, second = ([*base, f"out={halves}", "--only", f"{k}/2"] for k in (1, 2))
    kill_when(first, "first-*/last/state.pt", halves)
    kill_when(second, "ilyolox-seed1/last/state.pt", halves)
    both = [subprocess.Popen(c, env=environment(), stdout=subprocess.PIPE, text=True) for c in (first, second)]
    output = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [0, 0] and not (halves / "compare.html").exists()
    assert "part 1 of 2: 4 of 4 runs are finished" in output[0] and "repeat the command without only=" in output[1]
    for _ in range(2):  # merging is the same command without a part, and may be repeated
        capsys.readouterr()
        ciod.compare(out=halves, **given)
        output = capsys.readouterr().out
        assert "8 of 8 exist already" in output, output
        assert contents(halves) == contents(whole)
    lines = list(csv.DictReader((whole / "compare.csv").open()))
    assert {(x["seed"], x["fold"], x["order"]) for x in lines} == {("0", "1", "seed:0"), ("1", "2", "seed:1")}


CRASH = """
import os, signal
from ciod.methods.base.method import Method

class Crash(Method):
    def loss(self, batch):
        if self.teacher is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch)
"""


@pytest.mark.slow
def test_a_run_that_dies_is_named_and_the_others_are_compared(compared, scenes, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(CRASH)
    out = tmp_path / "out"
    command = [*words(scenes, out, [{"name": f"{mine}:Crash"}, "finetune"]), f"cache={compared}", "jobs=2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    why = "its process was ended by signal 9"
    assert f"failed: Crash, seed 0: {why}" in done.stdout
    content = read(out)
    assert {r["label"]: r["status"] for r in content["runs"]} == {"Crash": "failed", "finetune": "finished"}
    assert why in content["runs"][0]["error"] and content["methods"][0]["finished_seeds"] == 0
    assert why in (out / "compare.html").read_text() and why in (out / "compare.md").read_text()
    assert table(out) == [row for row in table(compared) if row[0] == "finetune"]
