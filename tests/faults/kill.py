"""python -m tests.faults.kill --times 100 [--command extend] [--processes 2] [--seed 0] [--folder DIR]

Trains two tasks on the built-in shapes, extends a detector by them, compares two methods on them, predicts or exports:
once without a fault, then ``--times`` times with SIGKILL at random moments, each repeated until it finishes. Every one
must end with bit-identical weights, losses, results, detections and graphs.
Prints one line per run and the figures; the exit code is 1 if one differed.
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
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from ciod import detectors
from ciod.core.run_log import read_metrics
from ciod.data.shapes.scenes import CLASSES, write_shapes
from ciod.detectors.files.weights import save_model

WORDS = ["split=6+4", "detector=yolox-pico", "size=64", "epochs=2", "batch=4", "log_every=3", "save_every=2",
         "warmup=1", "eval_every=1", "method=ilyolox",
         "method.center_score=0", "method.other_score=0", "device=cpu"]  # fmt: skip
FREE = ("seconds", "peak_memory_mb")


EXTEND = ["epochs=2", "batch=4", "log_every=3", "save_every=2", "warmup=1", "method=ilyolox",
          "method.center_score=0", "method.other_score=0", "device=cpu"]  # fmt: skip


@dataclass
class Command:
    """A command of ciod, on data in a folder."""

    words: list[str]
    processes: int = 1

    @classmethod
    def of(cls, name: str, root: Path, processes: int = 1) -> Command:
        data = write_shapes(root / "data", train=12, val=4, size=64)
        if name == "train":
            return cls(["train", *WORDS, f"data={data}"], processes)
        torch.manual_seed(0)
        save_model(root / "model.safetensors", detectors.build(CLASSES[:6], name="yolox-pico", size=64))
        model = str(root / "model.safetensors")
        if name == "compare":
            words = [w for w in WORDS if not w.startswith("method")]
            return cls(["compare", *words, "methods=finetune", "upper=none", f"data={data}"], processes)
        return cls({
            "extend": ["extend", model, *EXTEND, f"data={data}"],
            "predict": ["predict", model, f"data={data}", "score=0", "device=cpu"],
            "export": ["export", model, "nms=true", "onnx={out}/m.onnx"],
        }[name], processes)  # fmt: skip

    def start(self, out: Path, log: Path) -> subprocess.Popen:
        before = ["-m", "ciod.cli"]
        if self.processes > 1:
            before = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}", *before]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [w.format(out=out) for w in self.words]
        words += [] if words != self.words else [f"out={out}"]
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, *before, *words],
                stdout=file, stderr=file, env=env, start_new_session=True,
            )  # fmt: skip


def kill(process: subprocess.Popen) -> None:
    """The whole session at once: torchrun, its workers and theirs."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def differences(a: Path, b: Path) -> list[str]:
    """The differences between two finished results of a command, except times and memory."""
    found = []
    models = [p.relative_to(a) for p in sorted(a.rglob("model.safetensors"))]
    others = [p.relative_to(a) for p in a.rglob("*") if p.suffix == ".onnx" or p.name == "predictions.json"]
    assert models or others
    for model in models:
        x, y = load_file(a / model), load_file(b / model)
        found += [f"{model} {k}" for k in {*x, *y} if k not in x or k not in y or not torch.equal(x[k], y[k])]
    for folder in (p.parent.relative_to(a) for p in sorted(a.rglob("results.json"))):
        if results(a / folder) != results(b / folder):
            found.append(f"{folder}/results.json")
        if losses(a / folder) != losses(b / folder):
            found.append(f"{folder}/metrics.jsonl")
    found += [str(name) for name in others if (a / name).read_bytes() != (b / name).read_bytes()]
    return found


def results(out: Path) -> dict:
    content = json.loads((out / "results.json").read_text())
    content["tasks"] = [{k: v for k, v in t.items() if k not in FREE} for t in content["tasks"]]
    return content


def losses(out: Path) -> list[dict]:
    return [{k: v for k, v in m.items() if k not in (*FREE, "images_per_second")} for m in read_metrics(out)]


def once(command: Command, whole: Path, out: Path, seconds: float, rng: random.Random) -> tuple[int, list[str]]:
    """One run with up to three kills, then left to finish. Returns how many kills hit it, and what differs."""
    kills = 0
    for _ in range(rng.randint(1, 3)):
        process = command.start(out, out.parent / "log.txt")
        try:
            process.wait(timeout=rng.uniform(0.05, 1.0) * seconds)
            break
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
    process = command.start(out, out.parent / "log.txt")
    code = process.wait(timeout=60 + 20 * seconds)
    return kills, differences(whole, out) if code == 0 else [f"exit code {code}, see {out.parent / 'log.txt'}"]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--command", choices=("train", "extend", "compare", "predict", "export"), default="train")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args(words)
    root = given.folder or Path(tempfile.mkdtemp(prefix="ciod-kill-"))
    root.mkdir(parents=True, exist_ok=True)
    command = Command.of(given.command, root, given.processes)
    began = time.monotonic()
    whole = root / "whole"
    if command.start(whole, root / "whole.txt").wait() != 0:
        print((root / "whole.txt").read_text())
        return 1
    seconds = time.monotonic() - began
    rng, kills, bad = random.Random(given.seed), 0, 0
    for i in range(given.times):
        out = root / f"{i}" / "run"
        out.parent.mkdir(exist_ok=True)
        n, differ = once(command, whole, out, seconds, rng)
        while not n and not differ:  # it ended before it was killed: the machine has become faster since
            shutil.rmtree(out)
            seconds *= 0.8
            n, differ = once(command, whole, out, seconds, rng)
        kills, bad = kills + n, bad + bool(differ)
        print(
            f"run {i + 1}: killed {n} times, {'differs in ' + ', '.join(differ[:3]) if differ else 'equal'}", flush=True
        )
        if not differ:
            shutil.rmtree(out.parent)
    runs = f"{given.times} runs of {given.command}, {given.processes} process(es)"
    print(f"{runs}, {kills} kills, {given.times - bad} equal, {bad} not")
    if given.folder is None and not bad:
        shutil.rmtree(root)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
