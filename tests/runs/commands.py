"""Whole runs, small, and what is compared of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

import ciod
from ciod.config import load as config
from ciod.core.run_log import read_metrics
from ciod.runs import run as engine
from ciod.training.hooks import Hooks, Position, Row
from ciod.training.progress import Reporter

# Every teacher position is kept, so that the teacher matters although nothing is learnt in a few steps.
WORDS = ["split=6+4", "detector=yolox-pico", "size=64", "epochs=2", "batch=4", "log_every=1", "warmup=1",
         "lr=0.002", "lr_later=0.002", "method=ilyolox", "method.center_score=0", "method.other_score=0"]  # fmt: skip


def settings(data: Path, out: Path, *words: str) -> config.Run:
    return config.load(None, [*WORDS, f"data={data}", f"out={out}", "device=cpu", *words])


def go(data: Path, out: Path, *words: str, hooks: Sequence[Hooks] = ()) -> Path:
    chosen = settings(data, out, *words)
    return engine.train(chosen, command="a test", reporter=Reporter(quiet=True), hooks=hooks)


def weights_of(out: Path, task: int = 2) -> dict[str, torch.Tensor]:
    return load_file(out / f"task-{task}" / "model.safetensors")


def results_of(out: Path) -> dict:
    """Without what differs from one machine, day or folder to the next."""
    results = json.loads((out / "results.json").read_text())
    for task in results["tasks"]:
        for key in ("seconds", "peak_memory_mb"):
            assert task.pop(key) > 0
    return results


def steps_of(out: Path, task: int) -> int:
    """Steps of an epoch of ``task`` (0 or 1)."""
    return json.loads((out / "results.json").read_text())["tasks"][task]["steps"] // 2


def losses_of(out: Path) -> list[tuple]:
    return [(m["task"], m["epoch"], m["step"], m["losses"], m["lr"]) for m in read_metrics(out) if m["kind"] == "step"]


def assert_equal(a: Path, b: Path) -> None:
    for task in (1, 2):
        x, y = weights_of(a, task), weights_of(b, task)
        assert x.keys() == y.keys()
        for key in x:
            assert torch.equal(x[key], y[key]), f"task {task}: {key}"
    assert results_of(a) == results_of(b)
    assert losses_of(a) == losses_of(b)


class Killed(BaseException):
    """Nothing catches it: as sudden as a power cut, inside one process."""


@dataclass
class AtStep(Hooks):
    """Does something once a step (from 0) of a task (from 0) is through, before a state that knows it is saved."""

    task: int
    step: int
    do: Callable[[], object]

    def on_step(self, at: Position, row: Row) -> None:
        if (at.task, row.step) == (self.task, self.step):
            self.do()


def die() -> None:
    raise Killed


def kill_after(task: int, step: int) -> list[Hooks]:
    return [AtStep(task, step, die)]


def command(data: Path, out: Path, *words: str) -> list[str]:
    return ["train", *WORDS, f"data={data}", f"out={out}", "device=cpu", *words]


def launch(*words: str, cwd: Path, before: tuple[str, ...] = ("-m", "ciod.cli")) -> subprocess.CompletedProcess:
    root = str(Path(ciod.__file__).parents[1])
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    last = dict.fromkeys(words) | {w.partition("=")[0]: w for w in words if "=" in w and not w.startswith("-")}
    words = tuple(dict.fromkeys(last[w.partition("=")[0]] or w for w in words))  # of a setting given twice the last
    return subprocess.run([sys.executable, *before, *words], capture_output=True, text=True, cwd=cwd, env=env)


def assert_one_equals_two(data: Path, folder: Path, words: list[str]) -> None:
    """One process with four images per step, two with two: equal weights after each of two tasks.

    Batch normalisation with fixed statistics: others are per process. SGD: Adam divides rounding by itself.
    """
    words = ["train", *words, f"data={data}", "device=cpu", "norm=eval", "optimizer=sgd", "lr=0.01", "workers=0"]
    one = launch(*words, f"out={folder / 'one'}", cwd=folder)
    assert one.returncode == 0, one.stderr
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ciod.cli")
    two = launch(*words, f"out={folder / 'two'}", cwd=folder, before=torchrun)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("task 2/2") == 1  # one process speaks
    for task in (1, 2):
        a, b = weights_of(folder / "one", task), weights_of(folder / "two", task)
        assert a.keys() == b.keys()
        for key in a:
            assert (a[key].float() - b[key].float()).abs().max() <= 1e-5, f"task {task}: {key}"
    # they are not equal because nothing moves
    before, after = (weights_of(folder / "one", task) for task in (1, 2))
    neck = next(k for k in after if "neck." in k and after[k].dim() == 4)
    moved = after[neck] - before[neck]
    assert moved.abs().max() > 1e-4
    a, b = results_of(folder / "one"), results_of(folder / "two")
    assert [t["steps"] for t in a["tasks"]] == [t["steps"] for t in b["tasks"]]
    assert len(losses_of(folder / "two")) == len(losses_of(folder / "one"))
