"""Disks that are full, read-only or failing, at every point where a run writes."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from ciod.core import files
from ciod.core.errors import CiodError
from ciod.data.shapes.scenes import write_shapes
from tests.faults import disk
from tests.runs.commands import go

NOBODY = 65534
WORDS = ["split=1+1", "epochs=1", "batch=4", "save_every=2", "log_every=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=12, val=3, size=64)


@pytest.mark.slow
def test_a_full_disk_at_write_points(tmp_path):
    """``python -m tests.faults.disk`` tries them all."""
    points, tried, stopped = disk.every(tmp_path, kinds=True, real=False)
    files = {disk.kind(p.file) for p in points}
    assert files >= {
        ".lock",
        "metrics.jsonl",
        "run.yaml",
        "results.json",
        "report.html",
        "last/data.json",
        "last/state.pt",
        "last/previous.pt",
        "task-N/model.safetensors",
        "task-N/examples/N.jpg",
    }
    assert {p.what for p in points} == {"mkdir", "open", "write", "fsync", "replace", "link"}
    assert stopped == tried >= 12


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    only = ("state.pt", "model.safetensors", "metrics.jsonl")
    try:
        _, tried, stopped = disk.every(tmp_path, kinds=True, real=True, only=only)
    except PermissionError as e:
        pytest.skip(f"no tmpfs may be mounted here: {e}")
    assert tried == 3 and stopped >= 2  # the last page of a log may have room for a line


def test_the_needed_space_is_named(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = files.atomic_write(tmp_path / "model.safetensors", b"old")
    monkeypatch.setattr(files.os, "fsync", full)
    words = r"model\.safetensors cannot be written: no space is left \(\d+ MB are free\); it needs 3\.00 MB\. What was"
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
from ciod.training import checkpoint
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
    env = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "cannot be written: no space is left" in done.stdout and done.stdout.endswith("10\n"), done.stderr


def test_a_small_need_for_space_is_given_in_kilobytes(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(files.WriteError, match=r"a\.json cannot .* it needs 2\.3 kB\. "),
        files.explained(Path("a.json"), 2345),
    ):
        full()
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: full())
    with pytest.raises(files.WriteError, match=r"shapes cannot be written: no space is left .* it needs 2\.31 MB"):
        write_shapes(tmp_path / "shapes", train=700, val=300, size=68)


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(files.WriteError, match=r"cannot be written: Permission denied\. Choose a writable folder"):
        files.atomic_write(tmp_path / "new" / "results.json", "x")


def test_other_faults_keep_their_words(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(files.WriteError, match=r"cannot be written: "):
        files.atomic_write(tmp_path / "file" / "inside.json", "x")


@contextmanager
def unprivileged():
    """Root may write everywhere; inside the block the user is ``nobody``."""
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
    root = Path(tempfile.mkdtemp())  # not tmp_path: only root may read that
    root.chmod(0o755)
    try:
        data = write_shapes(root / "data", train=4, val=2, size=64)
        for path in (data, *data.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        go(data, root / "imports", *WORDS)  # modules imported later may be where the user ``nobody`` may not read
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
    from ciod.training.hooks import Hooks

    own = write_shapes(tmp_path / "data", train=12, val=3, size=64)
    victim = sorted((own / "images").glob("train_*.jpg"))[0]

    class Removes(Hooks):
        def on_step(self, at, row):
            victim.unlink(missing_ok=True)

    from ciod.data import image_cache

    monkeypatch.setattr(image_cache, "CACHE_BYTES", 0)
    import json

    out = go(own, tmp_path / "run", "split=10", "epochs=2", "batch=4", hooks=[Removes()])
    assert any(victim.name in w for w in json.loads((out / "results.json").read_text())["warnings"])
