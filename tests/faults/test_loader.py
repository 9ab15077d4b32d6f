"""Processes of the loader that stall, die, or find no shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import ciod
from ciod.core.errors import CiodError
from ciod.data import loader as dataset
from ciod.data.loader import batches
from ciod.data.shapes.scenes import write_shapes
from tests.runs.commands import go


class Good:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        return i


class Hangs(Good):
    def __getitem__(self, i: int) -> int:
        if i == 2:
            time.sleep(60)
        return i


class Dies(Good):
    def __getitem__(self, i: int) -> int:
        os._exit(1)


class Broken(Good):
    def __getitem__(self, i: int) -> int:
        raise CiodError("None of the 4 images of here can be read.")


class NoRoom(Good):
    def __getitem__(self, i: int) -> int:  # torch's own words
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)")


class Wrong(Good):
    def __getitem__(self, i: int) -> int:
        raise RuntimeError("The size of tensor a must match the size of tensor b")


@pytest.mark.parametrize(
    ("data", "timeout", "error", "words"),
    [
        (Hangs, 1, CiodError, r"A loader process returned no batch in time.*resume from .* train\.workers=0"),
        (Dies, 30, CiodError, r"A loader process ended \(.*memory may be exhausted.*train\.workers=0"),
        (Broken, 30, CiodError, r"^None of the 4 images of here can be read\.$"),
        (NoRoom, 30, CiodError, r"no space in shared memory \(/dev/shm\).*--shm-size=8g.*train\.workers=0"),
        (Wrong, 30, RuntimeError, r"(?s)Original Traceback.*size of tensor a"),
    ],
)
def test_a_loader_process_at_fault(data, timeout, error, words):
    with pytest.raises(error, match=words):
        list(batches(DataLoader(data(), num_workers=1, timeout=timeout)))


def test_a_loader_process_that_may_have_run_the_script_again(monkeypatch):
    """Where processes are not forked, a script without a main guard ends them as well as exhausted memory."""
    monkeypatch.setattr("ciod.core.main_guard.forks", lambda: False)
    with pytest.raises(CiodError, match=r"memory may be exhausted, or it ran the script again \(put the call under"):
        list(batches(DataLoader(Dies(), num_workers=1, timeout=30)))


def test_a_bus_error():
    """What torch says when a page of shared memory is not there after all."""

    def loader():
        yield 1
        raise RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit."
        )

    with pytest.raises(CiodError, match="found no space in shared memory"):
        list(batches(loader()))


def test_a_loader_that_stalls_stops_the_run(tmp_path, monkeypatch):
    """It stops with an error message, also in an evaluation; the same command finishes it without loader processes."""
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    words = ["split=10", "epochs=1", "train.workers=1"]
    monkeypatch.setattr(dataset, "STALLED", 2)
    whole = dataset.EvalData.__getitem__

    def stalls(self, i):
        time.sleep(60)
        return whole(self, i)

    with monkeypatch.context() as m:
        m.setattr(dataset.EvalData, "__getitem__", stalls)
        with pytest.raises(CiodError, match=r"A loader process returned no batch in time"):
            go(data, tmp_path / "run", *words)
    assert (go(data, tmp_path / "run", *words[:2], "train.workers=0") / "results.json").is_file()


TINY = """
import sys, torch
from pathlib import Path
from ciod.data.loader import batches, train_loader
from ciod.data.augment import TrainTransform
from ciod.config.load import Run
from ciod.data import formats
from ciod.core.errors import CiodError

index = formats.read(sys.argv[1], "train")
transform = TrainTransform(Run(data="shapes").augment, 512, 114)
loader = train_loader(index, transform, batch=4, seed=0, task=0, workers=1, pin=False)
try:
    print(sum(1 for _ in batches(loader)), "batches")
except CiodError as e:
    print(e)
"""


def test_shared_memory_that_is_too_small(tmp_path):
    """A /dev/shm of 1 MB, where the system lets this test have one of its own."""
    mount = ["unshare", *([] if os.geteuid() == 0 else ["-Ur"]), "-m", "sh", "-c"]
    small = "mount -t tmpfs -o size=1m tmpfs /dev/shm && "
    if not shutil.which("unshare") or subprocess.run([*mount, small + "true"], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    data = write_shapes(tmp_path / "data", train=8, val=1, size=64)
    (tmp_path / "tiny.py").write_text(TINY)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(ciod.__file__).parents[1]), *sys.path])}
    command = f"{small} exec {sys.executable} {tmp_path / 'tiny.py'} {data}"
    done = subprocess.run([*mount, command], capture_output=True, text=True, env=env, timeout=300)
    assert "A loader process found no space in shared memory (/dev/shm)" in done.stdout, done.stdout + done.stderr
    assert torch.multiprocessing.get_sharing_strategy() != "file_descriptor" or "Traceback" not in done.stdout
