"""Variables of torchrun and SLURM, standard output, links: whatever a shell hands to a command."""

from __future__ import annotations

import errno
import io
import os
import resource
import socket
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from ciod.comparison import process
from ciod.config import load as config
from ciod.core import distributed, files, streams
from ciod.core.errors import CiodError
from ciod.data import loader
from ciod.runs import session
from ciod.runs.lock import owner_of

SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", *SLURM)


def place(monkeypatch, text: str) -> tuple[int, int, int]:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    for word in text.split():
        monkeypatch.setenv(*word.split("="))
    return distributed._environment()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ("", (0, 1, 0)),
        ("RANK=abc", (0, 1, 0)),  # of another program: torchrun sets both
        ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=1", (1, 2, 1)),
        ("RANK=0 WORLD_SIZE=1", (0, 1, 0)),
        ("SLURM_NTASKS=", (0, 1, 0)),
        ("SLURM_STEP_NUM_TASKS= SLURM_PROCID=0 MASTER_ADDR=a", (0, 1, 0)),
        ("MASTER_ADDR=a", (0, 1, 0)),  # of an earlier command
        ("SLURM_NTASKS=4 SLURM_PROCID=0 MASTER_ADDR=a", (0, 1, 0)),  # a batch script without srun
        ("SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 MASTER_ADDR=a", (0, 1, 0)),  # srun --ntasks=1
        ("SLURM_NTASKS=4(x2)", (0, 1, 0)),  # a shell of salloc, in which nothing was started with srun
        ("SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=3 MASTER_ADDR=a", (3, 4, 0)),
    ],
)
def test_one_process_among_others(variables, expected, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    assert place(monkeypatch, variables) == expected


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ("RANK=abc WORLD_SIZE=2", r"variable RANK='abc' is not a whole number; start processes with torchrun or srun"),
        ("RANK=-1 WORLD_SIZE=2", "RANK='-1' is not a whole number"),
        ("RANK=0 WORLD_SIZE=", "WORLD_SIZE='' is not a whole number"),
        ("RANK=0 WORLD_SIZE=1 LOCAL_RANK=x", "LOCAL_RANK='x' is not a whole number"),
        ("RANK=5 WORLD_SIZE=1", "RANK=5 and WORLD_SIZE=1 contradict each other"),
        ("RANK=0 WORLD_SIZE=2", r"2 processes train together \(WORLD_SIZE\), but MASTER_ADDR is not set"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a", "but MASTER_PORT is not set"),
        ("SLURM_STEP_NUM_TASKS=4(x2) SLURM_PROCID=0 MASTER_ADDR=a", r"NUM_TASKS='4\(x2\)' is not a whole number"),
        ("SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=2 MASTER_ADDR=a", "PROCID=2 and SLURM_STEP_NUM_TASKS=2 contradict each"),
    ],
)
def test_variables_that_make_no_sense(variables, match, monkeypatch):
    with pytest.raises(CiodError, match=match):
        place(monkeypatch, variables)


def test_a_port_that_is_not_a_number(monkeypatch):
    place(monkeypatch, "RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=x")
    message = r"The 2 processes of the run cannot find each other \(MASTER_ADDR=localhost, MASTER_PORT=x\): .*; start"
    with pytest.raises(CiodError, match=message), distributed.world("cpu"):
        pass


@pytest.mark.parametrize(
    ("variables", "hinted"),
    [
        ("MASTER_ADDR=a", False),
        ("SLURM_NTASKS=1 SLURM_PROCID=0", False),
        ("SLURM_NTASKS=4 SLURM_PROCID=0 MASTER_ADDR=a", True),
        ("SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 MASTER_ADDR=a", False),
        ("SLURM_NTASKS=4 SLURM_PROCID=0 RANK=0 WORLD_SIZE=1", False),  # torchrun in a batch script
    ],
)
def test_a_batch_script_without_srun_gets_a_hint(variables, hinted, monkeypatch, tmp_path):
    place(monkeypatch, variables)
    hint = distributed.not_by_srun()
    assert (hint is None) != hinted
    assert not hint or "SLURM reserved 4 tasks, but one process trains; write srun before" in hint
    heard: list[str] = []
    if "RANK" not in variables and "STEP" not in variables:
        with session.session(str(tmp_path / "out"), "cpu", SimpleNamespace(say=heard.append)) as (world, _):
            assert world.size == 1
    assert heard == ([hint] if hinted else [])


def test_a_process_that_waits_for_others_says_so(monkeypatch, capfd):
    """A real rendezvous that no other process joins."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place(monkeypatch, f"RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT={port}")
    monkeypatch.setattr(distributed, "PATIENCE", 0.05)
    real = distributed.dist.init_process_group
    short = partial(real, timeout=timedelta(seconds=1))
    monkeypatch.setattr(distributed.dist, "init_process_group", short)
    with pytest.raises(CiodError, match="processes of the run cannot find each other"), distributed.world("cpu"):
        pass
    output = capfd.readouterr().err
    assert (
        f"Process 0 of 2 waits for the others (MASTER_ADDR=localhost, MASTER_PORT={port}). If none will come" in output
    )
    assert "unset these variables to train with one process" in output


def test_what_a_comparison_starts_trains_alone(monkeypatch):
    """Also if the comparison itself was started by srun or torchrun."""
    place(monkeypatch, "RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2")
    env = process.without_ranks(os.environ)
    place(monkeypatch, " ".join(f"{k}={env[k]}" for k in OURS if k in env))
    assert "MASTER_ADDR" in env and distributed._environment() == (0, 1, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_on_standard_output():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "ciod.cli", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == (
        "ciod: The output of this command cannot be written (No space left on device); redirect it to a disk with free "
        "space.\n"
    )


def test_a_device_that_is_full_when_a_command_ends(monkeypatch):
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streams, "discard", lambda: None)
    monkeypatch.setattr("sys.stdout", Full())
    with pytest.raises(streams.OutputError, match="No space left on device"), streams.streams():
        pass


def test_what_is_printed_in_the_middle_of_a_command(monkeypatch):
    monkeypatch.setattr(streams, "discard", lambda: None)
    with pytest.raises(streams.OutputError, match="No space left on device"), streams.streams():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), streams.streams():  # any other error is not about it
        raise FileNotFoundError(errno.ENOENT, "No such file", "a")


def test_a_link_that_leads_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "run"):
        assert files.is_loop(path)
        with pytest.raises(files.WriteError, match="cannot be written: it is a link that leads to itself"):
            files.named(path)
        with pytest.raises(files.WriteError, match="leads to itself"), owner_of(path):
            pass
        with pytest.raises(CiodError, match=r"out: .*loop.* is a link that leads to itself"):
            config.load(None, {"data": str(tmp_path), "out": str(path)})
    assert not files.is_loop(tmp_path) and not files.is_loop(tmp_path / "absent") and not files.is_loop("a\0b")


@pytest.mark.skipif(loader.resource is None, reason="Windows has no such limit")
def test_loader_processes_and_few_file_handles(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(CiodError, match=r"train\.workers=4 needs about 112 open files, but the system allows 64"):
        loader._check_handles(4)
    loader._check_handles(1)
    loader._check_handles(0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    loader._check_handles(64)


def test_handles_that_run_out_while_batches_travel():
    def runs_out(error: Exception):
        raise error
        yield

    for error in (OSError(errno.EMFILE, "Too many open files"), RuntimeError("received 0 items of ancdata")):
        with pytest.raises(CiodError, match="A loader process ran out of file handles: raise their number with ulimit"):
            next(loader.batches(runs_out(error)))
    with pytest.raises(OSError, match="broken"):
        next(loader.batches(runs_out(OSError("broken"))))
