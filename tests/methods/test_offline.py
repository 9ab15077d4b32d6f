"""Pseudo-labels drawn once, before a task's first step, instead of at every step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ciod.config import load as config
from ciod.core.errors import ConfigError
from ciod.core.types import Targets
from ciod.data.images import save_image
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.yolox import YOLOX
from ciod.methods.base.method import Method
from ciod.methods.pseudo_label import PseudoLabel
from ciod.runs import run as engine
from ciod.training.hooks import Hooks
from ciod.training.offline_labels import with_offline_labels
from ciod.training.progress import Reporter
from tests import fixed
from tests.methods.test_pseudo_label import NEW, OLD, Asked, teacher
from tests.runs.commands import Killed, assert_equal, kill_after


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=8, val=2, size=64)


def settings(data: Path, out: Path, *words: str) -> config.Run:
    """After a few steps a teacher has only low scores: its best five boxes per image. Pixels are not augmented, so that
    the teacher sees at once what it would see at every step."""
    given = ["split=6+4", "detector=yolox-pico", "size=64", "epochs=2", "batch=4", "log_every=1", "warmup=0",
             "scale=[1,1]", "flip=0", "photometric=0", "method=pseudo_label", "method.score=0", "method.top_k=5",
             f"data={data}", f"out={out}", "device=cpu"]  # fmt: skip
    return config.load(None, [*given, *words])


def go(data: Path, out: Path, *words: str, hooks: Sequence[Hooks] = ()) -> Path:
    chosen = settings(data, out, *words)
    return engine.train(chosen, command="a test", reporter=Reporter(quiet=True), hooks=hooks)


BESIDE = {"alone": (), "memory": ("memory=3",), "pool": ("pool={data}", "pool.share=0.25", "memory=2")}


@pytest.mark.parametrize("beside", BESIDE)
def test_once_is_at_every_step_where_pixels_stay_as_they_are(data, tmp_path, monkeypatch, beside):
    """The same boxes in the same images; but what is drawn ends with the picture, and a teacher's box need not."""
    words, seen, asked = [w.format(data=data) for w in BESIDE[beside]], [], []
    real_match, real_teach = YOLOX.match, Method.teach
    monkeypatch.setattr(YOLOX, "match", lambda *given: (seen.append(given[2]), real_match(*given))[1])
    monkeypatch.setattr(Method, "teach", lambda *given: (asked.append(1), real_teach(*given))[1])
    go(data, tmp_path / "online", *words)
    online, seen[:] = seen[-len(asked) :], []
    assert len(online) > 2
    go(data, tmp_path / "offline", f"first={tmp_path / 'online'}", "method.offline=true", *words)
    assert len(online) == len(seen) == len(asked), "and not once more"
    for a, b in zip(online, seen, strict=True):
        assert len(a.boxes) == len(b.boxes) == 4
        assert all(ranked(a, i) == pytest.approx(ranked(b, i), abs=1e-2) for i in range(4))
        for name in ("known", "background"):
            one, other = getattr(a, name), getattr(b, name)
            assert (one is None) == (other is None) == (beside == "alone")
            assert one is None or torch.equal(one, other)


def ranked(targets: Targets, image: int) -> list[float]:
    """Labels and boxes of an image, cut at its edges, in an order of their own."""
    valid = targets.valid[image]
    rows = torch.cat([targets.labels[image, valid, None], targets.boxes[image, valid].clamp(0, 64)], 1)
    assert (rows[:, 0] < 6).sum() >= 5, "of the teacher; exemplars have their own"
    return [v for row in sorted(rows.tolist(), key=lambda r: [r[0], *(round(x) for x in r[1:])]) for v in row]


def test_resumed_equals_uninterrupted(data, tmp_path):
    words = ["method.offline=true", "scale=[0.7,1.3]", "flip=0.5"]
    whole = go(data, tmp_path / "whole", *words)
    with pytest.raises(Killed):
        go(data, tmp_path / "run", *words, hooks=kill_after(1, 2))
    go(data, tmp_path / "run", *words)
    assert_equal(whole, tmp_path / "run")


def method_of(answers: Asked, **given) -> PseudoLabel:
    method = PseudoLabel(offline=True, **given)
    method.attach(answers, answers, answers)
    method.begin_task(fixed.task(OLD, NEW))
    return method


@pytest.fixture
def pictures(tmp_path):
    """One of 128 × 96 pixels, which the teacher sees at half its size, with a cow."""
    index = fixed.index_of([(0, "cow")], OLD + NEW, 1, folder=tmp_path)
    files = [f.with_suffix(".png") for f in index.files]
    save_image(files[0], np.zeros((96, 128, 3), np.uint8))
    return replace(index, files=files, sizes=np.array([[96, 128]], np.int32))


def test_boxes_are_counted_in_the_picture_s_own_pixels(pictures):
    """The teacher's ants lie at 0, 0, 20, 20 and one to the right, its bee of 0.35 at 10, 40, 30, 60."""
    drawn = method_of(Asked(teacher()), score=0.3).draw(pictures)
    assert drawn is not None
    assert drawn.labels.tolist() == [2, 0, 1], "the cow that was there, an ant, a bee"
    assert drawn.boxes[1:].tolist() == [[0, 0, 40, 40], [20, 80, 60, 96]], "cut at the edge"
    assert drawn.area[1:].tolist() == [1600, 640] and not drawn.crowd.any() and not drawn.difficult.any()
    assert drawn.image.tolist() == [0, 0, 0] and drawn.boxes.dtype == pictures.boxes.dtype
    assert len(pictures.labels) == 1, "what was given stays as it is"


def test_the_guard_and_the_thresholds_hold(pictures):
    over = replace(pictures, boxes=np.array([[0, 0, 40, 38]], np.float32))
    assert method_of(Asked(teacher())).draw(over).labels.tolist() == [2]
    assert method_of(Asked(teacher()), guard_iou=None).draw(over).labels.tolist() == [2, 0]
    assert method_of(Asked(teacher()), score=0.95).draw(pictures).labels.tolist() == [2]


def test_nothing_is_drawn_in_the_first_task_or_unasked(pictures):
    method = PseudoLabel(offline=True)
    answers = Asked(teacher())
    method.attach(answers, answers, None)
    assert method.draw(pictures) is None
    online = PseudoLabel()
    online.attach(answers, answers, answers)
    assert online.draw(pictures) is None and Method().draw(pictures) is None and answers.calls == 0
    assert with_offline_labels(pictures, None, online, workers=0, reporter=Reporter(quiet=True)) == (pictures, None, [])


def test_a_teacher_that_is_sure_of_nothing_is_warned_of(data, tmp_path):
    """The run is then fine-tuning, and looks like it."""
    out = go(data, tmp_path / "run", "method.offline=true", "method.score=1")
    warnings = json.loads((out / "results.json").read_text())["warnings"]
    message = [w for w in warnings if w.startswith("The teacher produced no pseudo-labels in the ")]
    assert len(message) == 1 and "this run is plain fine-tuning" in message[0]


def test_no_doubt(data, tmp_path):
    with pytest.raises(ConfigError, match=r"method\.offline=true cannot be combined with method\.doubt"):
        settings(data, tmp_path, "method.offline=true", "method.doubt=0.2")
