"""What a step frees is kept for the next one while a task is trained, and handed back after it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from ciod.training import allocator
from tests.runs.commands import Killed, assert_equal, go, kill_after

STEPS = """
import resource, torch
from ciod.training.allocator import keeping_freed

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(n << 18) for n in (16, 1, 48, 7, 30, 2, 16, 12)]  # MiB
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1]) >> 10

with keeping_freed(torch.device("cpu")):
    first = step()
    for _ in range(6):
        step()  # blocks may still find their places
    later = sum(step() for _ in range(10))
    within = resident()
print(first, later, within, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no GNU C library here: runs on Linux")
def test_pages_are_requested_once_and_returned_at_the_end():
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "THP_", "LD_PRELOAD"))}
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, env=plain)
    first, later, within, after = (int(word) for word in done.stdout.split())
    assert later < first / 4
    assert after < within - 80


class Library:
    def __init__(self, name: None):
        self.asked: list[tuple[int, ...]] = []
        made.append(self)

    def mallopt(self, *given: int) -> int:
        self.asked.append(given)
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.asked.append((pad,))
        return 1


made: list[Library] = []
KEEP, BACK = [(-4, 0), (-1, (1 << 31) - 1)], [(-4, 65536), (-1, 64 << 20), (0,)]


@pytest.fixture
def glibc(monkeypatch):
    made.clear()
    monkeypatch.setattr(allocator.ctypes, "CDLL", Library)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return monkeypatch


def test_it_ends_with_the_training_also_when_that_fails(glibc):
    with pytest.raises(ZeroDivisionError), allocator.keeping_freed(torch.device("cpu")):
        assert made[0].asked == KEEP
        raise ZeroDivisionError
    assert made[0].asked == KEEP + BACK


@pytest.mark.parametrize("case", ["unwanted", "gpu", "library"])
def test_it_is_left_alone(glibc, case):
    """Where it is not asked for, where a GPU computes, and with another C library."""
    if case == "library":
        glibc.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    with allocator.keeping_freed(torch.device("cuda" if case == "gpu" else "cpu"), wanted=case != "unwanted"):
        pass
    assert not made


def test_a_run_resumed_without_this_setting_ends_equal(whole, data, tmp_path, glibc):
    with pytest.raises(Killed):
        go(data, tmp_path / "run", "keep_freed=true", hooks=kill_after(1, 0))
    assert [library.asked for library in made] == [KEEP + BACK] * 2, "one for each task"
    go(data, tmp_path / "run")
    assert len(made) == 2
    assert_equal(whole, tmp_path / "run")
