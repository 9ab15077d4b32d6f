"""Disks that are full, read-only or torn, at every point where a run writes."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from ciod import files
from ciod.data.shapes import write_shapes
from ciod.engine import checkpoint
from ciod.errors import CiodError
from ciod.report.log import RunLog
from tests.engine.test_run import assert_equal, go

NOBODY = 65534
WORDS = ["split=1+1", "epochs=1", "batch=4", "save_every=2", "log_every=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=12, val=3, size=64)


class Disk:
    """Counts writes of whole files and of log lines; from ``full`` on there is no room."""

    def __init__(self, monkeypatch, full: int | None = None):
        self.points: list[str] = []
        self.full = full
        real_whole, real_write = files.os.fsync, RunLog.write
        del real_whole

        def fsync(fd: int) -> None:
            name = Path(f"/proc/self/fd/{fd}").readlink().name if Path("/proc/self/fd").exists() else str(fd)
            if not name.endswith(".tmp"):
                return  # a folder, or the log
            self._point(name.rpartition(".tmp")[0].rpartition(".")[0].lstrip("."))

        def write(log: RunLog, kind: str, **fields) -> None:
            with files.explained(log.path):
                self._point(f"metrics.jsonl {kind}")
            real_write(log, kind, **fields)

        monkeypatch.setattr(files.os, "fsync", fsync)
        monkeypatch.setattr(RunLog, "write", write)

    def _point(self, name: str) -> None:
        self.points.append(name)
        if self.full is not None and len(self.points) > self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_every_write_point(data, tmp_path, monkeypatch):
    """The file is named, what was saved before is whole, and with room the run ends with equal results."""
    with monkeypatch.context() as m:
        disk = Disk(m)
        whole = go(data, tmp_path / "whole", *WORDS)
        points = list(disk.points)
    assert {"run.yaml", "data.json", "state.pt", "model.safetensors", "results.json", "report.html"} <= set(points)
    kinds = {name: points.index(name) for name in points}  # the first of each kind, and the last of states and models
    last = {f"last {n}": len(points) - 1 - points[::-1].index(n) for n in ("state.pt", "model.safetensors")}
    for name, at in {**kinds, **last}.items():
        out = tmp_path / name.replace(" ", "-").replace(".", "-")
        with monkeypatch.context() as m:
            Disk(m, full=at)
            with pytest.raises(CiodError, match=r"cannot be written: there is no room .*MB are free.*run the same"):
                go(data, out, *WORDS)
        assert not list(out.rglob("*.tmp")), "nothing is left beside"
        for path, state in checkpoint.states(out / "last"):
            assert isinstance(state, dict), f"{path} is whole"
        go(data, out, *WORDS)
        assert_equal(whole, out)


def test_the_room_needed_is_named(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = files.atomic_write(tmp_path / "model.safetensors", b"old")
    monkeypatch.setattr(files.os, "fsync", full)
    words = r"model\.safetensors cannot be written: there is no room \(\d+ MB are free\); it needs 3\.00 MB\. What was"
    with pytest.raises(files.WriteError, match=words):
        files.atomic_write(path, b"x" * 3_000_000)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_real_limit_of_the_system(tmp_path):
    """RLIMIT_FSIZE: the system itself refuses to write more, also inside torch's writer."""
    import subprocess
    import sys

    code = f"""
import resource, signal, torch
from pathlib import Path
from ciod.engine import checkpoint
path = Path({str(tmp_path)!r}) / "state.pt"
checkpoint.save_state(path, {{"a": torch.zeros(10)}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save_state(path, {{"a": torch.zeros(100_000)}})
except checkpoint.CiodError as e:
    print(e)
print(checkpoint.load_state(path)["a"].shape[0])
"""
    env = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "cannot be written: there is no room" in done.stdout and done.stdout.endswith("10\n"), done.stderr


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(files.WriteError, match=r"cannot be written: Permission denied\. Choose a folder that may be"):
        files.atomic_write(tmp_path / "new" / "results.json", "x")


def test_other_faults_keep_their_words(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(files.WriteError, match=r"cannot be written: "):
        files.atomic_write(tmp_path / "file" / "inside.json", "x")


@contextmanager
def unprivileged():
    """Root may write everywhere; inside the block it is nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users on this system")
def test_a_read_only_folder():
    root = Path(tempfile.mkdtemp())  # not tmp_path: nobody but root may look into that
    root.chmod(0o755)
    try:
        data = write_shapes(root / "data", train=4, val=2, size=64)
        for path in (data, *data.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        go(data, root / "imports", *WORDS)  # modules that are not there yet might lie where nobody may read
        out = root / "run"
        out.mkdir()
        if os.geteuid() == 0:
            os.chown(out, NOBODY, -1)
        out.chmod(0o500)
        with unprivileged(), pytest.raises(CiodError, match=r"cannot be written: Permission denied"):
            go(data, out, *WORDS)
        assert not any(out.iterdir())
    finally:
        shutil.rmtree(root)


def test_an_image_that_vanishes_during_training(data, tmp_path, monkeypatch):
    from ciod.engine.fit import Fit

    own = write_shapes(tmp_path / "data", train=12, val=3, size=64)
    victim = sorted((own / "images").glob("train_*.jpg"))[0]
    real = Fit._step

    def removing(self, batch, at, total):
        victim.unlink(missing_ok=True)
        real(self, batch, at, total)

    monkeypatch.setattr(Fit, "_step", removing)
    from ciod.data import dataset

    monkeypatch.setattr(dataset, "CACHE_BYTES", 0)
    import json

    out = go(own, tmp_path / "run", "split=10", "epochs=2", "batch=4")
    assert any(victim.name in w for w in json.loads((out / "results.json").read_text())["warnings"])


class Hangs:
    """A data set whose third picture never comes."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> int:
        if i == 2:
            import time

            time.sleep(60)
        return i


def test_a_loader_that_stalls_or_dies():
    from torch.utils.data import DataLoader

    from ciod.engine.fit import Fit

    fit = Fit.__new__(Fit)
    fit.loader = DataLoader(Hangs(), num_workers=1, timeout=1)  # type: ignore[arg-type]
    with pytest.raises(CiodError, match=r"A loader process gave no batch in time.*train\.workers=0"):
        list(fit._batches())

    class Dies(Hangs):
        def __getitem__(self, i: int) -> int:
            os._exit(1)

    fit.loader = DataLoader(Dies(), num_workers=1, timeout=20)  # type: ignore[arg-type]
    with pytest.raises(CiodError, match=r"A loader process ended .*shared memory"):
        list(fit._batches())

    class Broken(Hangs):
        def __getitem__(self, i: int) -> int:
            raise CiodError("None of the 4 images of here can be read.")

    fit.loader = DataLoader(Broken(), num_workers=1, timeout=20)  # type: ignore[arg-type]
    with pytest.raises(CiodError, match=r"^None of the 4 images of here can be read\.$"):
        list(fit._batches())
