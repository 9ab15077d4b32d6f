"""What a step frees is kept for the next one while a task is trained, and handed back after it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from ciod.engine import allocator

STEPS = """
import resource, torch
from ciod.engine.allocator import keeping_freed

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(n << 18) for n in (16, 1, 24, 7, 30, 2, 16, 12)]  # MiB
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1]) >> 10

with keeping_freed(torch.device("cpu")):
    first = step()
    later = sum(step() for _ in range(10))
    within = resident()
print(first, later, within, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than GNU's")
def test_pages_are_asked_for_once_and_handed_back_at_the_end():
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


@pytest.fixture
def glibc(monkeypatch):
    made.clear()
    monkeypatch.setattr(allocator.ctypes, "CDLL", Library)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    for name in [k for k in os.environ if k.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_it_ends_with_the_training_also_when_that_fails(glibc):
    with pytest.raises(ZeroDivisionError), allocator.keeping_freed(torch.device("cpu")):
        assert made[0].asked == [(-3, 32 << 20), (-1, (1 << 31) - 1)]
        raise ZeroDivisionError
    assert made[0].asked[2:] == [(-1, 64 << 20), (0,)]


@pytest.mark.parametrize("case", ["gpu", "variable", "library"])
def test_it_is_left_alone(glibc, case):
    """Where a GPU computes, where the user has said how it is to be, and where the C library is another."""
    if case == "variable":
        glibc.setenv("MALLOC_TOP_PAD_", "131072")
    if case == "library":
        glibc.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    with allocator.keeping_freed(torch.device("cuda" if case == "gpu" else "cpu")):
        pass
    assert not made
