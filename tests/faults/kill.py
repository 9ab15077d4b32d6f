"""python -m tests.faults.kill --times 100 [--processes 2] [--seed 0] [--folder DIR]

Runs two tasks on the built-in shapes once without a fault; then again and again, killed with SIGKILL at a random moment
(and again a few times when resumed) until it ends. Every one must end with bit-identical weights, losses and results.
Prints a line a run and the figures; the exit code is 1 when one differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from ciod.core.run_log import read_metrics
from ciod.data.shapes.scenes import write_shapes

WORDS = ["split=6+4", "detector=yolox-pico", "size=64", "epochs=2", "batch=4", "log_every=3", "save_every=2",
         "warmup=1", "eval_every=1", "method=ilyolox",
         "method.center_score=0", "method.other_score=0", "device=cpu"]  # fmt: skip
FREE = ("seconds", "peak_memory_mb")


def start(data: Path, out: Path, processes: int, log: Path) -> subprocess.Popen:
    before = ["-m", "ciod.cli"]
    if processes > 1:
        before = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *before]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *before, "train", *WORDS, f"data={data}", f"out={out}"],
            stdout=file, stderr=file, env=env, start_new_session=True,
        )  # fmt: skip


def kill(process: subprocess.Popen) -> None:
    """The whole session at once: torchrun, its workers and theirs."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def differences(a: Path, b: Path) -> list[str]:
    """What two finished runs differ in, but times and memory."""
    found = []
    for task in ("task-1", "task-2"):
        x, y = load_file(a / task / "model.safetensors"), load_file(b / task / "model.safetensors")
        found += [f"{task} {k}" for k in x if k not in y or not torch.equal(x[k], y[k])]
    if results(a) != results(b):
        found.append("results.json")
    if losses(a) != losses(b):
        found.append("metrics.jsonl")
    return found


def results(out: Path) -> dict:
    content = json.loads((out / "results.json").read_text())
    content["tasks"] = [{k: v for k, v in t.items() if k not in FREE} for t in content["tasks"]]
    return content


def losses(out: Path) -> list[dict]:
    return [{k: v for k, v in m.items() if k not in (*FREE, "images_per_second")} for m in read_metrics(out)]


def once(
    whole: Path, data: Path, out: Path, seconds: float, processes: int, rng: random.Random
) -> tuple[int, list[str]]:
    """One run with up to three kills, then left to end. Returns how many kills met it alive, and what differs."""
    kills = 0
    for _ in range(rng.randint(1, 3)):
        process = start(data, out, processes, out.parent / "log.txt")
        try:
            process.wait(timeout=rng.uniform(0.05, 1.0) * seconds)
            break
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
    process = start(data, out, processes, out.parent / "log.txt")
    code = process.wait(timeout=60 + 20 * seconds)
    return kills, differences(whole, out) if code == 0 else [f"exit code {code}, see {out.parent / 'log.txt'}"]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args(words)
    root = given.folder or Path(tempfile.mkdtemp(prefix="ciod-kill-"))
    root.mkdir(parents=True, exist_ok=True)
    data = write_shapes(root / "data", train=12, val=4, size=64)
    began = time.monotonic()
    whole = root / "whole"
    if start(data, whole, given.processes, root / "whole.txt").wait() != 0:
        print((root / "whole.txt").read_text())
        return 1
    seconds = time.monotonic() - began
    rng, kills, bad = random.Random(given.seed), 0, 0
    for i in range(given.times):
        out = root / f"{i}" / "run"
        out.parent.mkdir(exist_ok=True)
        n, differ = once(whole, data, out, seconds, given.processes, rng)
        while not n and not differ:  # it ended before it was killed: the machine has become faster since
            shutil.rmtree(out)
            seconds *= 0.8
            n, differ = once(whole, data, out, seconds, given.processes, rng)
        kills, bad = kills + n, bad + bool(differ)
        print(
            f"run {i + 1}: killed {n} times, {'differs in ' + ', '.join(differ[:3]) if differ else 'equal'}", flush=True
        )
        if not differ:
            shutil.rmtree(out.parent)
    print(f"{given.times} runs of {given.processes} process(es), {kills} kills, {given.times - bad} equal, {bad} not")
    if given.folder is None and not bad:
        shutil.rmtree(root)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
