"""What goes wrong while an ONNX file is extended: kills, full disks, files that are damaged or no detector."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ciod
from ciod.cli import app
from ciod.core import files
from ciod.core.errors import CiodError
from tests.data.writers import sample_index, write_coco
from tests.detectors.onnx.graphs import SIZE, Net, small
from tests.extension.test_onnx import outputs

GIVEN = {"input": "0..1,rgb", "names": ["cat", "dog", "cow"], "epochs": 4, "views": 2, "batch": 2, "device": "cpu"}
KILLED = """
import os, signal, sys
from ciod.extension import settings
from ciod.extension.run import extend
from ciod.training.hooks import Hooks

class Killed(Hooks):
    def on_step(self, at, row):
        if at.done == 8:
            os.kill(os.getpid(), signal.SIGKILL)

given = eval(sys.argv[1])
extend(settings.load(given), hooks=[Killed()])
"""


@pytest.fixture
def place(tmp_path):
    small().save(tmp_path / "m.onnx")
    write_coco(sample_index(tmp_path / "raw", images=6, names=("dog", "eel")), tmp_path / "folder")
    return tmp_path


def run(place: Path, out: str):
    return ciod.extend(place / "m.onnx", place / "folder", place / out, **GIVEN)


def assert_same_model(place: Path, one: str, other: str) -> None:
    images = np.random.default_rng(0).random((2, 3, SIZE, SIZE), np.float32)
    for a, b in zip(*(outputs(place / out / "model.onnx", images) for out in (one, other))):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL is of POSIX systems")
def test_killed_and_repeated(place):
    """The file of the views is gone with the process; the repeated command ends as one that was never killed."""
    temporary = place / "temporary"
    temporary.mkdir()
    given = {**GIVEN, "model": str(place / "m.onnx"), "data": str(place / "folder"), "out": str(place / "part")}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, repr(given)],
        env={**os.environ, "TMPDIR": str(temporary)},
        cwd=Path(ciod.__file__).parents[1],
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert not list(temporary.glob("ciod-views-*")) and not (place / "part" / "model.onnx").exists()
    run(place, "part")
    run(place, "whole")
    assert_same_model(place, "part", "whole")


def test_a_disk_that_is_full_when_the_model_is_written(place, monkeypatch):
    whole = files.whole

    @contextmanager
    def full(path, **given):
        with whole(path, **given) as file:
            if Path(path).name == "model.onnx":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield file

    monkeypatch.setattr(files, "whole", full)
    with pytest.raises(files.WriteError, match=r"model\.onnx"):
        run(place, "part")
    assert not list((place / "part").glob("*.onnx*")), "half a file stayed"
    monkeypatch.setattr(files, "whole", whole)
    run(place, "part")
    assert (place / "part" / "model.onnx").is_file()


@pytest.mark.parametrize("command", ["extend", "check"])
def test_files_that_cannot_be_extended(place, command):
    """One sentence, and no model."""
    net = Net()
    x = net.conv(net.first, 4, stride=8)
    net.output(net.conv(net.node("GlobalAveragePool", [x], 4), 3, 1, act=None))
    net.save(place / "classifier.onnx")
    (place / "damaged.onnx").write_bytes((place / "m.onnx").read_bytes()[:2000])
    for name, sentence in (
        ("classifier", "no two of the strides 8, 16 and 32 have maps"),
        ("damaged", "is not a readable ONNX file"),
    ):
        words = [command, str(place / f"{name}.onnx"), "input=0..1,rgb"]
        words += [f"data={place / 'folder'}", f"out={place / name}"] if command == "extend" else []
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1 and isinstance(done.exception, CiodError) and sentence in str(done.exception)
        assert not list(place.glob(f"{name}/*.onnx"))
