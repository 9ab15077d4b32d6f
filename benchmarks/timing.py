"""Interleaved timing: alternatives take turns, so that a busy machine is unfair to none of them."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ciod.runs.environment import peak_memory_mb


def interleaved(alternatives: Mapping[str, Callable[[], Any]], *, rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each call of each alternative, ``rounds`` calls each after ``warm`` that do not count.

    CPU time of this process where there is one thread, so that other processes on the machine do not count; else the
    clock. On a GPU each call is waited for.
    """
    gpu = torch.cuda.is_available()
    clock = time.process_time if torch.get_num_threads() == 1 and not gpu else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for i in range(warm + rounds):
        for name, call in alternatives.items():
            if gpu:
                torch.cuda.synchronize()
            began = clock()
            call()
            if gpu:
                torch.cuda.synchronize()
            if i >= warm:
                seconds[name].append(clock() - began)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median seconds a call."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def tell_peak(step: Callable[[], Any]) -> None:
    """Prints the peak MB of this process after three steps, for ``peak_mb``."""
    for _ in range(3):
        step()
    print(peak_memory_mb())


def peak_mb(module: str, argv: list[str]) -> float:
    """What ``tell_peak`` prints in a process of its own, ``python -m module argv``; of the GPU where there is one."""
    command = [sys.executable, "-m", module, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.split()[-1])


def serve(step: Callable[[], Any]) -> None:
    """Makes a step for each line of standard input and prints its seconds and the peak MB so far, for ``apart``."""
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = interleaved({"step": step}, rounds=1, warm=0)["step"][0]
        print(seconds, peak_memory_mb(), flush=True)


def apart(
    commands: Mapping[str, list[str]], *, rounds: int, warm: int = 2
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds a step, and peak MB, of alternatives that have a process each and take turns.

    Args:
        commands: arguments of ``python -m`` that end in ``serve``.

    Raises:
        RuntimeError: a process ended.
    """
    root = Path(__file__).parents[1]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": root}
    running: dict[str, subprocess.Popen[str]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peak: dict[str, float] = {}
    try:
        for name, argv in commands.items():
            running[name] = subprocess.Popen([sys.executable, "-m", *argv], **pipe)
            _line(
                running[name], name
            )  # one after the other: the start of one process does not disturb the steps of another
        for i in range(warm + rounds):
            for name, process in running.items():
                assert process.stdin is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                value, peak[name] = map(float, _line(process, name).split())
                if i >= warm:
                    seconds[name].append(value)
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    return medians(seconds), peak


def _line(process: subprocess.Popen[str], name: str) -> str:
    assert process.stdout is not None
    found = process.stdout.readline()
    if not found:
        raise RuntimeError(f"The process of {name} ended with {process.wait()}.")
    return found


def against(
    base: str, seconds: Mapping[str, float], peak: Mapping[str, float], lines: list[str]
) -> dict[str, dict[str, float]]:
    """Figures of each alternative with its ratios to ``base``; a line of each is added to ``lines``."""
    figures = {}
    for name, value in seconds.items():
        ratio, room = value / seconds[base], peak[name] / peak[base]
        figures[name] = {"seconds": value, "ratio": ratio, "peak_mb": peak[name], "memory_ratio": room}
        lines.append(f"  {name:25s} {value:7.3f} s  × {ratio:.3f}   {peak[name]:7.0f} MB  × {room:.3f}")
    return figures


def without(argv: list[str], options: tuple[str, ...]) -> list[str]:
    """``argv`` without these options and their values."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word.split("=")[0] in options:
            skip = "=" not in word
        else:
            kept.append(word)
    return kept


def settings(args: argparse.Namespace) -> dict[str, str]:
    """The arguments a benchmark ran with, JSON-ready."""
    return {k: str(v) for k, v in vars(args).items()}


def parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Arguments every benchmark has: threads, rounds, json, and its own with their defaults."""
    out = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--threads", type=int, default=torch.get_num_threads())
    out.add_argument("--json", type=Path, default=None, help="write the figures here as well")
    for name, value in defaults.items():
        out.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return out


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def tell(lines: list[str], figures: dict[str, Any], target: Path | None) -> None:
    """Prints the lines; writes figures and machine as JSON where asked."""
    print("\n".join(lines))
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({**figures, "machine": machine()}, indent=1) + "\n", encoding="utf-8")
