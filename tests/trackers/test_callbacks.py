"""``callbacks=`` of ``ciod.train`` and ``ciod.extend``: every event, in order, and no bit is changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ciod
from ciod.data.shapes.scenes import write_shapes
from tests.runs.commands import assert_equal, go

WORDS = {
    "split": "6+4", "detector": "yolox-pico", "size": 64, "epochs": 2, "batch": 4, "log_every": 1, "warmup": 1,
    "lr": 0.002, "lr_later": 0.002,
    "method": {"name": "ilyolox", "center_score": 0, "other_score": 0}, "device": "cpu",
}  # fmt: skip


class Events(ciod.Hooks):
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.results: list[tuple[int, int]] = []
        self.out: Path | None = None

    def on_task(self, at):
        self.seen.append(f"task {at.task}")

    def on_epoch(self, at, epoch):
        self.seen.append(f"epoch {epoch}")

    def on_end(self, at):
        self.seen.append("end")

    def on_evaluation(self, task, results):
        self.seen.append(f"evaluation {task}")
        self.results.append((task, len(results["tasks"])))

    def on_finish(self, out, results):
        self.seen.append("finish")
        self.out = out
        assert json.loads((out / "results.json").read_text())["tasks"] == json.loads(json.dumps(results["tasks"]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data"), train=12, val=4, size=64, seed=1)


def test_train(data, tmp_path):
    events = Events()
    ciod.train(data=str(data), out=str(tmp_path / "run"), callbacks=[events], **WORDS)
    one = ["epoch 0", "epoch 1", "end"]
    assert events.seen == ["task 0", *one, "evaluation 0", "task 1", *one, "evaluation 1", "finish"]
    assert events.results == [(0, 1), (1, 2)] and events.out == tmp_path / "run"
    assert_equal(go(data, tmp_path / "plain"), tmp_path / "run")


def test_extend(data, tmp_path):
    ciod.train(data=str(data), out=str(tmp_path / "base"), **{**WORDS, "split": [["circle", "square"]], "epochs": 1})
    events = Events()
    ciod.extend(
        tmp_path / "base" / "task-1" / "model.safetensors", data, tmp_path / "more",
        epochs=1, batch=4, size=64, device="cpu", callbacks=[events],
    )  # fmt: skip
    assert events.seen == ["task 1", "epoch 0", "end", "evaluation 1", "finish"]


def test_what_a_callback_raises_ends_the_run_and_the_command_resumes_it(data, tmp_path):
    class Bad(ciod.Hooks):
        def on_evaluation(self, task, results):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        ciod.train(data=str(data), out=str(tmp_path / "run"), callbacks=[Bad()], **WORDS)
    ciod.train(data=str(data), out=str(tmp_path / "run"), **WORDS)
    assert_equal(go(data, tmp_path / "plain"), tmp_path / "run")
