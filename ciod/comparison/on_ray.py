"""Trains the runs of a comparison on a Ray cluster (an extra: ``pip install 'ciod[ray]'``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ciod.comparison.plan import Cell
from ciod.comparison.process import Say, reason, train_cell
from ciod.comparison.worker import ELSEWHERE
from ciod.core.errors import CiodError
from ciod.core.files import explained
from ciod.core.plural import counted
from ciod.core.run_log import LINE, write_json

TRIES = 5  # how often a run is started again when its machine or its Ray worker is lost
Start = Callable[..., "RemoteWorker"]


def need_ray() -> Any:
    """Ray.

    Raises:
        CiodError: it is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]  # an extra that the tests do without
    except ImportError as error:
        raise CiodError("on: Ray is not installed: pip install 'ciod[ray]'") from error
    return ray


@contextmanager
def cluster() -> Generator[Any, None, None]:
    """A connection to the cluster of ``RAY_ADDRESS``, or to the one that runs on this machine.

    Raises:
        CiodError: there is none.
    """
    ray = need_ray()
    ours = not ray.is_initialized()
    if ours:
        address = os.environ.get("RAY_ADDRESS") or "auto"
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise CiodError(
                f"on: no Ray cluster answers ({address}: {_first_line(error)}). Start one with `ray start --head`, or "
                "set RAY_ADDRESS to one that runs."
            ) from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def shares(nodes: Sequence[Mapping[str, Any]], jobs: int | None, cuda: bool) -> tuple[int, int]:
    """CPUs and GPUs that each run asks for.

    With GPUs: one, and its part of the CPUs of its machine. Without: the CPUs divided by ``jobs``, or one.

    Args:
        nodes: as ``ray.nodes()`` lists them.

    Raises:
        CiodError: GPUs are needed, and no machine of the cluster has one.
    """
    have = [n["Resources"] for n in nodes if n["Alive"] and n["Resources"].get("CPU")]
    if cuda:
        with_gpu = [r for r in have if r.get("GPU")]
        if not with_gpu:
            raise CiodError("on: no machine of the Ray cluster has a GPU; write device=cpu, or add one that has.")
        return max(1, int(min(r["CPU"] / r["GPU"] for r in with_gpu))), 1
    if not jobs or not have:
        return 1, 0
    most = min(r["CPU"] for r in have)
    return max(1, int(min(most, sum(r["CPU"] for r in have) // jobs))), 0


class RemoteWorker:
    """A cell that the cluster trains; the counterpart of ``schedule.Worker``.

    Args:
        remote: ``train_cell`` as a remote function.
        given: its last arguments.
    """

    gpu: str | None = None

    def __init__(self, ray: Any, remote: Any, cell: Cell, logs: Path, given: tuple[Any, ...], say: Say):
        self.cell, self._ray, self._say = cell, ray, say
        self._log = logs.resolve() / f"{cell.name}.log"
        with explained(self._log, LINE):
            self._log.touch()
        self._at = self._log.stat().st_size
        job = write_json(logs / f"{cell.name}.json", cell.job()).resolve()
        self._result = remote.remote(str(job), str(self._log), str(Path.cwd()), *given)
        self._outcome: tuple[int, list[str]] | None = None

    @property
    def alive(self) -> bool:
        self._tell()
        return not self._ray.wait([self._result], timeout=0)[0]

    @property
    def elsewhere(self) -> bool:
        return self._got()[0] == ELSEWHERE

    def problem(self) -> str | None:
        """After its end: why it failed, or None."""
        self._tell()
        return reason(*self._got())

    def stop(self) -> None:
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.cancel(self._result, force=True)

    def _got(self) -> tuple[int, list[str]]:
        if self._outcome is None:
            try:
                self._outcome = self._ray.get(self._result)
            except self._ray.exceptions.RayError as error:
                self._outcome = 1, [f"Ray lost it {TRIES + 1} times, or could not start it: {_first_line(error)}"]
        assert self._outcome is not None
        return self._outcome

    def _tell(self) -> None:
        """Says the whole lines that were added to the log since the last call."""
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(self._at)
            whole, end, _ = file.read().rpartition(b"\n")
            self._at += len(whole) + len(end)
            for line in whole.decode("utf-8", "replace").splitlines():
                self._say(line)


@contextmanager
def starter(jobs: int | None, cuda: bool, say: Say) -> Generator[Start, None, None]:
    """A function that starts cells on the cluster, with the arguments of ``schedule.Worker``."""
    with cluster() as ray:
        cpus, gpus = shares(ray.nodes(), jobs, cuda)
        many = sum(bool(n["Alive"]) for n in ray.nodes())
        say(f"on Ray with {counted(many, 'machine')}; each run has {counted(cpus, 'CPU')}{' and 1 GPU' * gpus}")
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": TRIES, "max_calls": 1}
        remote = ray.remote(**options)(train_cell)
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cpus))}

        def start(cell: Cell, logs: Path, _: int, speak: Say, __: str | None) -> RemoteWorker:
            return RemoteWorker(ray, remote, cell, logs, (threads, gpus), speak)

        yield start


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
