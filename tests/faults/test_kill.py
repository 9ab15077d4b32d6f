"""A few real kills, and a rank that is lost; ``python -m tests.faults.kill --times 100`` is the long form."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ciod
from tests.faults import kill

ROOT = str(Path(ciod.__file__).parents[1])


@pytest.fixture(autouse=True)
def package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize(
    ("command", "times"), [("train", 2), ("extend", 2), ("compare", 1), ("predict", 1), ("export", 1)]
)
def test_killed_at_random_moments(tmp_path, capsys, command, times):
    words = ["--command", command, "--times", str(times), "--seed", "1", "--folder", str(tmp_path)]
    assert kill.main(words) == 0, capsys.readouterr().out
    assert f"{times} equal, 0 not" in capsys.readouterr().out


LOSES = """
import os, signal
from pathlib import Path
from ciod.methods.finetune import Finetune

class Loses(Finetune):
    "Its second rank is killed once, in the second task."
    def before_step(self):
        mark = Path(__file__).with_name("lost")
        if self.old and os.environ["RANK"] == "1" and not mark.exists() and Path(__file__).with_name("lose").exists():
            self.__dict__["_n"] = self.__dict__.get("_n", 0) + 1
            if self.__dict__["_n"] == 2:
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_a_lost_rank(tmp_path):
    """torchrun starts the ranks again; the run ends by itself, with the same result."""
    from ciod.data.shapes.scenes import write_shapes

    data = write_shapes(tmp_path / "data", train=12, val=4, size=64)
    (tmp_path / "loses.py").write_text(LOSES)
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--max-restarts=3",
        "-m",
        "ciod.cli",
    ]
    words = [
        *(w for w in kill.WORDS if not w.startswith("method")),
        f"method={tmp_path / 'loses.py'}:Loses",
        f"data={data}",
    ]
    for name in ("whole", "run"):
        command = [sys.executable, *torchrun, "train", *words, f"out={tmp_path / name}"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (tmp_path / "lose").touch()
    assert (tmp_path / "lost").exists() and "resuming at task 2" in done.stdout
    assert kill.differences(tmp_path / "whole", tmp_path / "run") == []
