"""A run's process, wherever it is started: its environment, its lines, and why it failed. Without PyTorch.

A Ray worker only starts processes and passes on what they print. It need not import PyTorch for that, which costs it
seconds and 300 MB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

VISIBLE = "CUDA_VISIBLE_DEVICES"
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "TORCHELASTIC_RESTART_COUNT")
Say = Callable[[str], None]


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that trains alone, whatever started this one."""
    return {k: v for k, v in environment.items() if k not in _RANKS}


def follow(pipe: Iterable[str], log: TextIO, sink: Say) -> None:
    """Passes on every line that a run prints, and writes it to its log."""
    for line in pipe:
        with suppress(OSError):  # a full disk: the run reports it, but would wait forever if its output were not read
            log.write(line)
            log.flush()
        sink(line.rstrip())


def reason(code: int, errors: Sequence[str]) -> str | None:
    """Why a process failed; None: it did not.

    Args:
        code: its exit code.
        errors: the lines that it wrote to standard error.
    """
    if code == 0:
        return None
    if code < 0:
        return f"its process was ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    message = next((line for line in reversed(errors) if line.strip()), "")
    return message or f"its process ended with code {code}"


def train_cell(job: str, log: str, folder: str, environment: Mapping[str, str], gpus: int) -> tuple[int, list[str]]:
    """Runs on a machine of a cluster: trains one cell in a process of its own, like ``jobs=``.

    Args:
        job: the worker's job, a file that all machines see.
        log: the lines of the run are added to this file.
        folder: working folder of the comparison; relative paths in the settings start there.

    Returns:
        Exit code of the process, and what it wrote to standard error.
    """
    env = {**without_ranks(os.environ), **environment, "PYTHONUNBUFFERED": "1"}
    if not gpus:
        env[VISIBLE] = ""  # the key of the run says that it was trained on a CPU
    errors: list[str] = []
    with Path(log).open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ciod.comparison.worker", job],
            env=env,
            cwd=folder,
            stdin=subprocess.PIPE,  # closes when this Ray worker ends in any way, and then the run ends, too
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert process.stdout and process.stderr
        lines = (line.rstrip() for line in process.stderr)
        second = threading.Thread(target=errors.extend, args=(lines,), daemon=True)
        second.start()
        follow(process.stdout, file, lambda _: None)
        code = process.wait()
        second.join()
    return code, errors
