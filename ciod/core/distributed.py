"""torchrun or SLURM environment → process group and device. Without either: one process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from ciod.core.errors import CiodError
from ciod.core.signals import Stop

PATIENCE = 20.0  # seconds after which a process says that it waits for the others
_ADVICE = "start processes with torchrun or srun, or unset these variables to train with one process."


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this one is."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop: Stop = field(default_factory=Stop)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> range:
        """This rank's contiguous part of n items."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, part: list[Any]) -> list[Any]:
        """Concatenation of every rank's list, in rank order, on every rank."""
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return [x for p in parts for x in p]

    def all(self, yes: bool) -> bool:
        """Whether the answer of every rank is true."""
        if self.size == 1:
            return yes
        vote = torch.tensor(int(yes), device=self.device)
        dist.all_reduce(vote, op=dist.ReduceOp.MIN)
        return bool(vote)

    def any(self, *yes: bool) -> list[bool]:
        """For each answer, whether it is true on any rank."""
        if self.size == 1:
            return list(yes)
        votes = torch.tensor([int(y) for y in yes], device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return [bool(v) for v in votes.unbind()]

    def take_over(self, module: torch.nn.Module) -> None:
        """Every rank gets the weights and statistics of the first (batch statistics differ between ranks)."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """``auto`` uses a GPU if there is one.

    Raises:
        CiodError: the device does not exist.
    """
    if wanted == "auto":
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise CiodError(f"device: '{wanted}' is not a device; allowed: auto, cpu, cuda, cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise CiodError(f"device: {wanted} is a device that ciod does not use; allowed: auto, cpu, cuda, cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CiodError(f"device: {wanted} was requested, but PyTorch finds no GPU; use device=auto or device=cpu.")
    number: Any = device.index  # None if it has no number, whatever the stub says
    if device.type == "cuda" and number is not None and number >= (there := torch.cuda.device_count()):
        raise CiodError(f"device: there is no {wanted}; the last of the {there} GPUs here is cuda:{there - 1}.")
    return torch.device("cuda", local_rank) if device.type == "cuda" and number is None else device


@contextmanager
def world(wanted: str = "auto") -> Generator[World, None, None]:
    """Sets up the process group for as long as it is needed."""
    rank, size, local = _environment()
    device = pick_device(wanted, local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    started = False
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            with _told_while_waiting(rank, size):
                dist.init_process_group(backend, store=_store_of_this_attempt(), rank=rank, world_size=size)
        except (ValueError, RuntimeError, OSError) as error:
            place = _meeting_place()
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise CiodError(
                f"The {size} processes of the run cannot find each other ({place}): {reason}; {_ADVICE}"
            ) from error
        started = True
    try:
        with Stop().listening() as stop:
            yield World(rank, size, device, stop)
    finally:
        if started:
            dist.destroy_process_group()


def _meeting_place() -> str:
    return ", ".join(f"{k}={os.environ.get(k, '')}" for k in ("MASTER_ADDR", "MASTER_PORT"))


@contextmanager
def _told_while_waiting(rank: int, size: int) -> Generator[None, None, None]:
    """PyTorch waits up to 30 minutes for the other processes, and prints nothing."""

    def tell() -> None:
        print(
            f"Process {rank} of {size} waits for the others ({_meeting_place()}). If none will come, stop it, and "
            f"{_ADVICE}",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(PATIENCE, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def not_by_srun() -> str | None:
    """A sentence if SLURM reserved several tasks, but started this process as one: a batch script without ``srun``."""
    tasks = os.environ.get("SLURM_NTASKS", "")
    if not tasks.isdecimal() or int(tasks) < 2 or _by_srun() or "RANK" in os.environ:
        return None
    return f"SLURM reserved {tasks} tasks, but one process trains; write srun before the command to train with all."


def _by_srun() -> bool:
    """A batch script has SLURM_PROCID=0 and SLURM_NTASKS, too, but no variable of a step, which srun sets."""
    return {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= os.environ.keys()


def _store_of_this_attempt() -> Any:
    """The store through which the processes find each other; None: PyTorch's default. Processes that torchrun restarts
    must not find the addresses of those that died: they would wait for them until the timeout."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if attempt is None:
        return None
    torch_dist: Any = dist  # its stubs lack what its documentation has
    store, _, _ = next(iter(torch_dist.rendezvous("env://")))
    return torch_dist.PrefixStore(f"attempt {attempt}", store)


def _environment() -> tuple[int, int, int]:
    """rank, number of processes, rank on this machine."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:  # torchrun
        return _place("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if _by_srun() and "MASTER_ADDR" in env and env["SLURM_STEP_NUM_TASKS"] not in ("", "1"):
        env.setdefault("MASTER_PORT", "29500")
        return _place("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    return 0, 1, 0


def _place(rank: str, size: str, local: str) -> tuple[int, int, int]:
    """The same, from three environment variables.

    Raises:
        CiodError: they are not numbers, or contradict each other; says which.
    """
    found = {name: os.environ.get(name, "0") for name in (rank, size, local)}
    for name, text in found.items():
        if not (text.isascii() and text.isdigit() and len(text) < 7):
            raise CiodError(f"The environment variable {name}={text!r} is not a whole number; {_ADVICE}")
    r, n, at = (int(text) for text in found.values())
    if r >= n:
        raise CiodError(f"The environment variables {rank}={r} and {size}={n} contradict each other; {_ADVICE}")
    if n > 1 and (missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]):
        raise CiodError(
            f"The environment says that {n} processes train together ({size}), but {missing[0]} is not set; {_ADVICE}"
        )
    return r, n, at
