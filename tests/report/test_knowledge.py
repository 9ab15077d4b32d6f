"""The figure of what ilYOLOX teaches: its sets are those of the method, its weights those of the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod import detectors
from ciod.core import losses as L
from ciod.core.errors import CiodError, ConfigError
from ciod.core.files import WriteError
from ciod.data.images import save_image
from ciod.detectors.files.weights import save_model
from ciod.methods.ilyolox import ILYOLOX
from ciod.report import knowledge
from tests import fixed
from tests.faults.disk import Disk
from tests.methods.test_ilyolox import BOXES, OBJECTNESS, PROBABILITIES

OLD, NEW = ("ant", "bee"), ("cow",)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    teacher = detectors.build(OLD, name="yolox-pico", size=64)
    student = detectors.build(OLD, name="yolox-pico", size=64)
    for weight in (p for p in teacher.head.parameters() if p.dim() > 1):
        torch.nn.init.normal_(weight, std=0.08)  # responses that differ from place to place
    student.load_state_dict(teacher.state_dict())
    student.grow(NEW)
    with torch.no_grad():
        for p in student.head.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    return teacher.eval(), student.eval()


@pytest.fixture(scope="module")
def low(pair, picture) -> dict[str, float]:
    """Settings that fit the scores of a new network, all near 0.01."""
    with torch.no_grad():
        message = pair[0](torch.from_numpy(picture).permute(2, 0, 1)[None])
    s = message.logits.sigmoid().amax(2)
    f = message.combine(s)
    return {"center_score": s.quantile(0.5).item(), "other_score": f.quantile(0.3).item(), "other_iou": 0.1,
            "nms_iou": 0.15}  # fmt: skip


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(("nms", "kept"), [(0.95, [0, 1, 4, 7]), (0.65, [0, 4, 7])])
def test_its_sets_are_those_worked_out_by_hand(pair, picture, monkeypatch, nms, kept):
    """The case of tests/methods: 3 fails the gate and adds 7; 2 is added and fails; 1 is lost at 0.65."""
    teacher, student = pair
    message = fixed.outputs(fixed.logit(PROBABILITIES), BOXES, fixed.logit(OBJECTNESS))
    monkeypatch.setattr(teacher, "forward", lambda _: message)
    monkeypatch.setattr(student, "forward", lambda _: message)
    k = knowledge.knowledge(teacher, student, picture, ILYOLOX(nms_iou=nms))
    found = {name: torch.nonzero(getattr(k, name))[:, 0].tolist() for name in ("center", "recruited", "gated", "kept")}
    assert found == {"center": [0, 3, 4], "recruited": [0, 1, 2, 3, 4, 7], "gated": [0, 1, 4, 7], "kept": kept}
    assert k.boxes.tolist() == [BOXES[i] for i in kept]
    assert k.box_labels.tolist() == [{0: 0, 1: 0, 4: 1, 7: 0}[i] for i in kept]


def test_its_positions_are_the_centres_of_cells(pair, picture):
    k = knowledge.knowledge(*pair, picture, ILYOLOX())
    assert [k.points[i].tolist() for i in (0, 1, 8, 64, 80, 83)] == [
        [4, 4],
        [12, 4],
        [4, 12],
        [8, 8],
        [16, 16],
        [48, 48],
    ]
    assert k.picture.shape == (64, 64, 3) and np.array_equal(k.picture, picture)


def test_its_weights_are_those_of_the_loss(pair, picture, low):
    teacher, student = pair
    k = knowledge.knowledge(teacher, student, picture, ILYOLOX(**low))
    assert len(k.matched) == len(k.bce) == len(k.kl) > 3
    assert (k.bce > k.kl).all(), "BCE counts the teacher's own uncertainty as an error of the class"
    assert k.bce.max() <= 2 and k.kl.min() >= 0
    batch = fixed.batch(fixed.no_boxes(1), torch.from_numpy(picture).permute(2, 0, 1)[None])
    for error, weight in (("bce", k.bce), ("kl", k.kl)):
        method = ILYOLOX(**low, error=error)
        method.attach(student, student, teacher)
        method.begin_task(fixed.task(OLD, NEW))
        with torch.no_grad():
            outputs, teacher_outputs = student(batch.images), method.teach(batch)
            kept = method.choose(teacher_outputs)
            matches = student.match(outputs, kept.targets)
            p = method.pair(outputs, teacher_outputs, kept, matches)
            whole = method.distill(outputs, teacher_outputs, kept, matches, matches.valid)["distill_cls"]
        mean = (weight * p.cls_error[0, matches.valid[0]]).sum() / L.count(matches.valid)
        assert whole.item() == pytest.approx(mean.item(), rel=1e-5)


@pytest.fixture
def files(pair, picture, tmp_path):
    for name, model in zip(("old", "new"), pair, strict=True):
        save_model(tmp_path / f"{name}.safetensors", model)
    save_image(tmp_path / "picture.png", picture)
    return [str(tmp_path / n) for n in ("old.safetensors", "new.safetensors", "picture.png")]


def test_the_command_draws(files, low, tmp_path):
    words = [f"{key}={value}" for key, value in low.items()]
    for words_, name in ((words, "some.jpg"), ([], "none.svg")):  # by the defaults nothing is taught here
        path = knowledge.main([*files, f"out={tmp_path / 'made' / name}", *words_])
        assert path.stat().st_size > 5_000
    assert (tmp_path / "made" / "some.jpg").stat().st_size < 300_000
    text = (tmp_path / "made" / "none.svg").read_text(encoding="utf-8")
    assert "<svg" in text


def test_mistakes_of_the_command(files, pair, tmp_path, monkeypatch):
    out = f"out={tmp_path / 'f.png'}"
    with pytest.raises(ConfigError, match="Write TEACHER STUDENT PICTURE"):
        knowledge.main([*files[:2], out])
    with pytest.raises(ConfigError, match=r"centre_score: there is no such setting; did you mean 'center_score'"):
        knowledge.main([*files, out, "centre_score=0.1"])
    with pytest.raises(ConfigError, match=r"select: the figure shows only crs; leave select= out\."):
        knowledge.main([*files, out, "select=threshold"])
    with pytest.raises(CiodError, match=r"are not the teacher's .* give models of two tasks of one run, the earlier"):
        knowledge.main([files[1], files[0], files[2], out])
    with pytest.raises(CiodError, match=r"out: the figure can be jpg, png, svg, pdf; f\.gif has none"):
        knowledge.main([*files, f"out={tmp_path / 'f.gif'}"])
    full = pytest.raises(WriteError, match=r"f\.png cannot be written: no space is left .* it needs [\d.]+ MB")
    with full, Disk(tmp_path, full=0).watching():
        knowledge.main([*files, out])
    assert not list(tmp_path.glob("*f.png*"))
    monkeypatch.setattr(type(pair[0]), "traits", frozenset({"features"}))
    with pytest.raises(CiodError, match="ilyolox cannot use the teacher: this detector has no dense"):
        knowledge.knowledge(*pair, np.zeros((8, 8, 3), np.uint8), ILYOLOX())
