"""The GPUs of this machine for the runs of a comparison: each worker process sees one."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

import torch

from ciod.comparison.process import VISIBLE


def visible(environment: Mapping[str, str] | None = None, count: int | None = None) -> list[str]:
    """The GPUs that this process may use, as values of ``CUDA_VISIBLE_DEVICES`` for one of them each.

    The variable may hold indices, UUIDs (``GPU-…``) and MIG instances (``MIG-…``); they are passed on as written.

    Args:
        environment: default: that of this process.
        count: number of GPUs that PyTorch sees; default: PyTorch reports it.
    """
    environment = os.environ if environment is None else environment
    count = torch.cuda.device_count() if count is None else count
    given = environment.get(VISIBLE)
    if given is None:
        return [str(i) for i in range(count)]
    entries = [entry.strip() for entry in given.split(",")]
    if count and entries[0].startswith("MIG-"):  # a process sees one instance, however many are listed
        return [entry for entry in entries if entry.startswith("MIG-")]
    return entries[:count]  # CUDA ignores an entry that it does not know, and all after it; the count tells how many


def for_runs(device: str, kind: str) -> list[str]:
    """The GPUs to share out among the runs; none if there are fewer than two. ``device=cuda:1``: all runs use that one.

    Args:
        device: the setting.
        kind: ``cpu`` or ``cuda``, where the runs are trained.
    """
    found = visible() if kind == "cuda" and device in ("auto", "cuda") else []
    return found if len(found) > 1 else []


def least_used(gpus: Sequence[str], taken: Collection[str]) -> str | None:
    """The GPU for the next run: the first of those with the fewest runs; None without GPUs.

    Args:
        taken: GPU of each run that is being trained.
    """
    counts = [sum(t == gpu for t in taken) for gpu in gpus]
    return gpus[counts.index(min(counts))] if gpus else None


def sentence(gpus: Sequence[str], jobs: int) -> str:
    """How the runs are shared out."""
    many = "1 run" if jobs == 1 else f"{jobs} runs"
    return f"{many} at a time, each on one of {len(gpus)} GPUs ({VISIBLE}={','.join(gpus)})"
