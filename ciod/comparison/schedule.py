"""Trains the runs of a comparison in worker processes: starts them, logs their output, and collects failures."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ciod.comparison import gpus as devices
from ciod.comparison.plan import Cell
from ciod.comparison.process import VISIBLE, Say, follow, reason, without_ranks
from ciod.comparison.worker import ELSEWHERE, LOCKED, finished
from ciod.core.files import explained
from ciod.core.run_log import LINE, write_json
from ciod.runs.lock import holder

LOOK = 1.0  # seconds after which a run that another process trains is looked at again


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    cells: Sequence[Cell],
    *,
    jobs: int,
    logs: Path,
    say: Say,
    gpus: Sequence[str] = (),
    start: Callable[..., Any] | None = None,
) -> dict[str, str]:
    """Trains all unfinished runs, ``jobs`` at a time; a run waits for the runs that it needs.

    Runs that another process trains (the same comparison, started twice) are left to it, unless it ends before them.

    Args:
        logs: folder for the output of each run.
        gpus: each run sees one of them (``gpus.visible``); empty: all see what this process sees.
        start: starts a run elsewhere; None: as a ``Worker`` on this machine.
        say: is called with the lines that the runs print.

    Returns:
        Name of each failed cell → the reason. The others are finished.
    """
    with explained(logs, LINE):
        logs.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    ready = {c.name for c in cells if finished(c.folder, c.key)}
    waiting = [c for c in cells if c.name not in ready and _wanted(c, cells, ready)]
    running, start, others = list[Any](), start or Worker, Others(say)
    try:
        while waiting or running:
            for cell in list(waiting):
                if broken := [n for n in cell.needs if n in failed]:
                    failed[cell.name] = f"it starts from {broken[0]}, which failed: {failed[broken[0]]}"
                    waiting.remove(cell)
                elif not ready.issuperset(cell.needs) or len(running) >= jobs or others.train(cell):
                    continue
                elif finished(cell.folder, cell.key):  # by another process
                    ready.add(cell.name)
                    waiting.remove(cell)
                else:
                    gpu = devices.least_used(gpus, [w.gpu for w in running if w.gpu])
                    running.append(start(cell, logs, max(1, cores() // jobs), say, gpu))
                    waiting.remove(cell)
            time.sleep(0.05)
            for worker in [w for w in running if not w.alive]:
                running.remove(worker)
                problem = worker.problem()
                if worker.elsewhere:
                    waiting.insert(0, worker.cell)
                elif problem is None:
                    ready.add(worker.cell.name)
                else:
                    failed[worker.cell.name] = problem
                    say(f"{worker.cell.name}: failed: {problem}")
    finally:
        for worker in running:
            worker.stop()
    return failed


def part(cells: Sequence[Cell], k: int, n: int) -> list[Cell]:
    """The ``k``-th of ``n`` parts of the runs, with the first tasks that they start from.

    Parts are consecutive, so that few first tasks are needed in two parts. One process trains such a first task, and
    the others wait for it.
    """
    rows = [c for c in cells if c.kind != "first"]
    mine = rows[len(rows) * (k - 1) // n : len(rows) * k // n]
    needed = {c.starts_from for c in mine}
    return [c for c in cells if c in mine or c.name in needed]


def _wanted(cell: Cell, cells: Sequence[Cell], ready: set[str]) -> bool:
    """Whether a cell is still needed: a first task is only needed by runs that have not started yet."""
    return not cell.until or any(cell.name in c.needs and c.name not in ready and not c.started for c in cells)


class Others:
    """Which runs other processes train; says so once for each."""

    def __init__(self, say: Say):
        self._say = say
        self._next: dict[str, float] = {}  # when to look again

    def train(self, cell: Cell) -> bool:
        """Whether one of them trains ``cell``."""
        if time.monotonic() < self._next.get(cell.name, 0):
            return True
        who = holder(cell.folder, LOCKED)
        if who is None:
            return False
        if cell.name not in self._next:
            self._say(f"{cell.name}: {who} trains it; its result is used")
        self._next[cell.name] = time.monotonic() + LOOK
        return True


class Worker:
    """A process that trains one cell.

    Args:
        gpu: the only GPU that it sees; None: those that this process sees.
    """

    def __init__(self, cell: Cell, logs: Path, threads: int, say: Say, gpu: str | None = None):
        self.cell, self.gpu = cell, gpu
        self._last: list[str] = []
        with explained(logs / f"{cell.name}.log", LINE):
            self._log = (logs / f"{cell.name}.log").open("a", encoding="utf-8")
        job = write_json(logs / f"{cell.name}.json", cell.job())
        env = {"OMP_NUM_THREADS": str(threads), **without_ranks(os.environ), "PYTHONUNBUFFERED": "1"}
        if gpu is not None:
            env[VISIBLE] = gpu
            follow([f"{cell.name}: on GPU {gpu}\n"], self._log, say)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ciod.comparison.worker", str(job)],
            env=env,
            stdin=subprocess.PIPE,  # never written to: when it closes, the worker knows that this process has ended
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._readers = [
            threading.Thread(target=follow, args=(pipe, self._log, sink), daemon=True)
            for pipe, sink in ((self._process.stdout, say), (self._process.stderr, self._last.append))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def elsewhere(self) -> bool:
        """After its end: whether another process trains the cell."""
        return self._process.returncode == ELSEWHERE

    def problem(self) -> str | None:
        """After its end: why it failed, or None."""
        self._close()
        return reason(self._process.returncode, self._last)

    def stop(self) -> None:
        if self.alive:
            self._process.terminate()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        for reader in self._readers:
            reader.join()
        for file in (self._process.stdin, self._process.stdout, self._process.stderr, self._log):
            if file is not None:
                with suppress(OSError):  # lines that could not be written to a full disk
                    file.close()
