"""Runs killed at awkward moments resume to the same result; folders without a run of these settings are refused."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch

from ciod.core.errors import CiodError
from ciod.training import checkpoint
from ciod.training.hooks import Hooks
from tests.runs.commands import Killed, assert_equal, command, go, kill_after, launch, steps_of


@pytest.mark.parametrize(
    ("task", "epoch"), [(1, 1), (1, 0), (0, 1)], ids=["task 2 epoch 2", "task 2 epoch 1", "task 1 epoch 2"]
)
def test_resumed_equals_uninterrupted(whole, data, tmp_path, task, epoch):
    with pytest.raises(Killed):
        go(data, tmp_path / "run", hooks=kill_after(task, epoch * steps_of(whole, task)))
    assert not (tmp_path / "run" / "task-2").exists()
    torch.manual_seed(12345)  # another process has another state of every generator
    go(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_killed_between_training_and_evaluation(whole, data, tmp_path):
    class AtTheEnd(Hooks):
        def on_end(self, at):
            if at.task == 1:
                raise Killed

    with pytest.raises(Killed):
        go(data, tmp_path / "run", hooks=[AtTheEnd()])
    state = checkpoint.load_state(tmp_path / "run" / "last" / "state.pt")
    assert state and state["fit"]["done"] == 2 * steps_of(whole, 1)
    go(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_killed_while_the_state_is_written(whole, data, tmp_path, monkeypatch):
    """Half a state beside the old one: the old one counts."""
    with monkeypatch.context() as m:
        saved = []
        real = torch.save

        def dying(state, file):
            saved.append(1)
            if len(saved) == 5:
                file.write(b"half")
                raise Killed
            real(state, file)

        m.setattr(checkpoint.torch, "save", dying)
        with pytest.raises(Killed):
            go(data, tmp_path / "run")
    assert len(saved) == 5
    go(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_a_second_kill_is_survived_too(whole, data, tmp_path):
    for step in (0, steps_of(whole, 1)):
        with pytest.raises(Killed):
            go(data, tmp_path / "run", hooks=kill_after(1, step))
    go(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_an_incomplete_state_file_says_what_to_do(data, tmp_path):
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "run" / "last" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(CiodError, match=r"state\.pt is incomplete.*choose another out=, or remove"):
        go(data, tmp_path / "run")


def test_other_settings_in_the_same_folder_are_refused(whole, data, tmp_path):
    with pytest.raises(CiodError, match=r"holds a run with other settings \(train\.lr was 0\.002, is 0\.5\)"):
        go(data, whole, "lr=0.5")
    with pytest.raises(CiodError, match=r"other settings \(.*method\.nms_iou was not given, is 0\.7"):
        go(data, whole, "method.nms_iou=0.7")
    shutil.copytree(whole, tmp_path / "run")
    # what changes no result may change
    go(data, tmp_path / "run", "log_every=5", "workers=0", "eval_every=1", "picture_cache=disk")


def test_resume_never(whole, data):
    with pytest.raises(CiodError, match="already holds a run; choose another out=, or resume=auto"):
        go(data, whole, "resume=never")


def test_a_folder_that_lost_its_state(whole, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text((whole / "results.json").read_text())
    with pytest.raises(CiodError, match=r"holds a run without its last/ folder; choose another out="):
        go(data, tmp_path / "run")


KILLER = """
import os, signal
from pathlib import Path
from ciod.methods.ilyolox import ILYOLOX

class Killer(ILYOLOX):
    "ilYOLOX in a process that is killed while there is a certain file next to this one."
    def before_step(self):
        if self.teacher is not None and Path(__file__).with_name("kill").exists():
            self.__dict__["_n"] = self.__dict__.get("_n", 0) + 1
            if self.__dict__["_n"] == STEP:
                os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_real_kill(whole, data, tmp_path):
    (tmp_path / "killer.py").write_text(KILLER.replace("STEP", str(steps_of(whole, 1) + 2)))
    method = f"method={tmp_path / 'killer.py'}:Killer"
    alive = launch(*command(data, tmp_path / "whole", method), cwd=tmp_path)
    assert alive.returncode == 0, alive.stderr
    (tmp_path / "kill").touch()
    killed = launch(*command(data, tmp_path / "run", method), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "task-2").exists()
    (tmp_path / "kill").unlink()
    resumed = launch(*command(data, tmp_path / "run", method), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at task 2 of 2" in resumed.stdout
    assert_equal(tmp_path / "whole", tmp_path / "run")
