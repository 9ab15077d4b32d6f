"""Interleaved timing: alternatives take turns, so that a busy machine is unfair to none of them."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


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
