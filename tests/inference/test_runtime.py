"""The copy of a detector whose network runs in ONNX Runtime: the same detections, and PyTorch where it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

import ciod
from ciod import detectors
from ciod.core.types import Outputs
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.base import Detector
from ciod.detectors.onnx.detector import OnnxDetector
from ciod.inference import images, job, runtime
from ciod.inference import quick as q

pytest.importorskip("onnx", reason="onnx is absent: pip install 'ciod[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
SIZE = 64


def made(name: str = "yolox-pico") -> Detector:
    torch.manual_seed(0)
    detector = detectors.build(["arrow", "circle", "star"], name=name, size=SIZE).eval()
    for m in detector.modules():  # as after training
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    for layer in detector.class_modules().values():
        for block in layer.blocks:
            torch.nn.init.normal_(block.weight, std=0.5)
            torch.nn.init.zeros_(block.bias)
    for layer in getattr(detector.head, "obj", ()):
        torch.nn.init.zeros_(layer.bias)
    return detector


@cache
def pair(name: str = "yolox-pico") -> tuple[Detector, Detector]:
    """A detector and its copy; neither may be changed."""
    detector = made(name)
    return detector, q.quick(detector, "onnx")


def pictures(n: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def same(one: ciod.Detections, other: ciod.Detections) -> bool:
    """Whether both have the same boxes, whatever the order of equal scores."""
    if len(one) != len(other) or not len(one):
        return len(one) == len(other)
    rows = [np.column_stack([d.labels, d.boxes / SIZE, d.scores]) for d in (one, other)]
    gap = np.abs(rows[0][:, None] - rows[1][None]).max(2)
    return bool((gap.min(1) < 1e-4).all() and (gap.min(0) < 1e-4).all())


@pytest.fixture
def fast() -> tuple[Detector, Detector]:
    return pair()


@torch.no_grad()
@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico"])
def test_detections_are_the_same(name):
    detector, copy = pair(name)
    assert isinstance(copy.forward, runtime.Run)
    for x, floor in ((pictures(3), 0.2), (pictures(1), 0.001)):
        wanted = detector.decode(detector(x), score_threshold=floor)
        found = copy.decode(copy(x), score_threshold=floor)
        assert sum(map(len, wanted)) and all(map(same, wanted, found))


@torch.no_grad()
def test_a_picture_has_the_same_bits_in_any_batch_and_run(fast):
    copy, x = fast[1], pictures(3)
    all_, one = copy(x), copy(x[1:2])
    assert torch.equal(all_.logits[1], one.logits[0]) and torch.equal(all_.boxes[1], one.boxes[0])
    again = q.quick(fast[0], "onnx")(x)
    assert torch.equal(again.logits, all_.logits) and torch.equal(again.boxes, all_.boxes)


@torch.no_grad()
@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico"])
def test_old_outputs_stay_bit_identical_when_a_branch_is_added(name):
    detector, x = made(name), pictures()
    before = pair(name)[1](x)
    detector.add_branch(["d"], taught=["circle"])
    after = q.quick(detector, "onnx")(x)
    n = before.logits.shape[1]
    assert after.parts != () and torch.equal(after.logits[:, :n, :3], before.logits)
    assert torch.equal(after.boxes[:, :n], before.boxes)


@torch.no_grad()
def test_an_arbiter_weighs_the_branches_as_before():
    detector, x = made(), pictures()
    branch = detector.add_branch(["d"], taught=["circle"]).eval()
    for level in branch.levels:
        level.obj.bias.fill_(1.0)
        for block in level.cls.blocks:
            block.weight.normal_(std=0.5)
    arbiter, draws = detector.add_arbiter(), torch.Generator().manual_seed(0)
    row = torch.arange(detector.num_classes).repeat(60)
    # Statistics of a few small pictures would make it a steep function of the maps, and show how processors round.
    features = torch.randn(detector.num_classes, arbiter.features, generator=draws)[row]
    features = features + torch.randn(features.shape, generator=draws)
    arbiter.learn(features, row, torch.arange(len(row)) * 4 // len(row))
    copy = q.quick(detector, "onnx")
    outputs, wanted = copy(x), detector(x)
    weighed = detector.scores(wanted)
    assert len(outputs.maps) == len(wanted.maps) > 0 and not torch.equal(weighed, wanted.scores())
    assert torch.allclose(copy.scores(outputs), weighed, atol=1e-5)
    assert [len(d) for d in copy.decode(outputs)] == [len(d) for d in detector.decode(wanted)]


@torch.no_grad()
def test_other_images_and_a_changed_copy_are_for_pytorch(fast):
    detector, copy = fast
    x = torch.rand(1, 3, 96, 96) * 255
    assert torch.allclose(copy(x).logits, detector(x).logits, atol=1e-4)
    grown = copy.frozen()
    grown.grow(["d"])
    assert grown(pictures()).logits.shape[2] == 4
    assert torch.allclose(grown(pictures()).logits[..., :3], detector(pictures()).logits, atol=1e-4)


# Only where a score can be above the threshold ------------------------------------------------------------------------


def test_scores_left_out_are_below_the_threshold():
    random = torch.Generator().manual_seed(1)
    detector = made()
    for parts in ((), (40, 24)):
        outputs = Outputs(
            torch.randn(2, 64, 3, generator=random) * 3,
            torch.rand(2, 64, 2, generator=random).repeat(1, 1, 2) * 40 + torch.tensor([0.0, 0.0, 15.0, 20.0]),
            torch.zeros(64, 2),
            torch.ones(64),
            objectness=torch.randn(2, 64, generator=random) * 3,
            parts=parts,
        )
        for given in (outputs, _root(outputs), _plain(outputs)):
            for more in (
                {},
                {"multi_label": True},
                {"max_detections": 3},
                {"classes": torch.tensor([True, False, True])},
            ):
                for floor in (0.0, 0.001, 0.4, 0.999999):
                    wanted = detector.decode(given, score_threshold=floor, **more)
                    found = q.candidates_only(detector)(given, score_threshold=floor, **more)
                    assert all(map(same, wanted, found))


def _root(outputs: Outputs) -> Outputs:
    return Outputs(**{**vars(outputs), "root": True})


def _plain(outputs: Outputs) -> Outputs:
    return Outputs(**{**vars(outputs), "objectness": None})


# What cannot run there ------------------------------------------------------------------------------------------------


@dataclass
class Other(Outputs):
    pass


class OwnOutputs(type(made())):
    def forward(self, images):
        return Other(**vars(super().forward(images)))


class OwnDecoding(type(made())):
    def decode(self, outputs, **given):
        return super().decode(outputs, **given)


def _of(kind: type, detector: Detector) -> Detector:
    detector.__class__ = kind
    return detector


def _hooked(detector: Detector) -> Detector:
    detector.backbone.register_forward_hook(lambda *_: None)
    return detector


@pytest.mark.parametrize(
    "detector, why",
    [
        (lambda: made().to("meta"), "it is on meta, and this is for a CPU"),
        (lambda: _hooked(made()), "its modules have hooks, which would not be called"),
        (lambda: _of(OwnDecoding, made()), "it has a way of its own to make detections"),
        (lambda: _of(OwnOutputs, made()), "its outputs are of a kind of their own"),
    ],
)
def test_a_detector_that_cannot_says_why(detector, why):
    with pytest.raises(
        ciod.CiodError, match=f"engine: yolox-pico cannot run in ONNX Runtime: {why}. Write engine=torch"
    ):
        q.quick(detector(), "onnx")


def test_a_network_that_cannot_be_written_or_differs_is_for_pytorch(monkeypatch):
    detector = made()
    with monkeypatch.context() as m:
        m.setattr(runtime, "agree", lambda *_: False)
        with pytest.raises(ciod.CiodError, match="its outputs would not be the same"):
            q.quick(detector, "onnx")
    with monkeypatch.context() as m:
        m.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
        with pytest.raises(ciod.CiodError, match="cannot run in ONNX Runtime: division by zero"):
            q.quick(detector, "onnx")
        assert not isinstance(q.quick(detector, "auto").forward, runtime.Run)
    with monkeypatch.context() as m:
        m.setattr(runtime, "PACKAGES", ("no_such_package",))
        assert not isinstance(q.quick(detector, "auto").forward, runtime.Run)
        with pytest.raises(
            ciod.CiodError, match=r"no_such_package, which is not installed: pip install 'ciod\[onnx\]'"
        ):
            q.quick(detector, "onnx")


def test_outputs_that_differ_are_noticed():
    one, other = made(), made()
    assert runtime.agree(one, other, runtime.noise(SIZE))
    with torch.no_grad():
        next(iter(other.head.reg)).bias.add_(0.01)
    assert not runtime.agree(one, other, runtime.noise(SIZE))
    other.add_branch(["d"])
    assert not runtime.agree(one, other, runtime.noise(SIZE))


# Who uses it ----------------------------------------------------------------------------------------------------------


def test_many_pictures_use_it_by_themselves_and_few_on_request(fast, monkeypatch):
    detector, copy = fast
    monkeypatch.setattr(q, "in_runtime", lambda d: copy)
    assert (
        q.quick(detector, "auto", q.MANY) is copy and q.quick(detector, "auto") is copy and ciod.fast(detector) is copy
    )
    assert q.quick(detector, "auto", q.MANY - 1) is not copy and q.quick(detector, "torch") is not copy
    assert q.quick(detector, "onnx", 1) is copy
    onnx = object.__new__(OnnxDetector)
    assert q.quick(onnx, "onnx") is onnx
    with pytest.raises(ciod.CiodError, match="engine: there is no 'onx'; did you mean 'onnx'"):
        q.quick(detector, "onx")


def test_predict_and_eval_take_an_engine(fast, tmp_path, monkeypatch):
    detector, copy = fast
    used: list[str] = []
    real = q.quick
    for module in (images, job, q):
        monkeypatch.setattr(module, "quick", lambda d, *given: used.append(given[0]) or real(d, *given))
    monkeypatch.setattr(q, "in_runtime", lambda d: copy)
    folder = write_shapes(tmp_path / "data", train=2, val=2, size=SIZE)
    paths = images.files(str(folder))[:2]
    plain = ciod.predict(detector, paths, score_threshold=0.0, device="cpu")
    assert not used
    quickly = ciod.predict(detector, paths, score_threshold=0.0, device="cpu", engine="onnx")
    assert used == ["onnx"] and all(same(plain[p], quickly[p]) for p in paths)
    one = copy.predict(paths[0], score_threshold=0.0)
    assert same(one, plain[paths[0]])
    made_job = job.Job(detector, [str(p) for p in paths], tmp_path / "out", engine="onnx", draw=False)
    assert used == ["onnx", "onnx"] and made_job.detector is copy
    scored = [ciod.evaluate(detector, folder, split="val", device="cpu", engine=e) for e in ("torch", "onnx")]
    assert used == ["onnx"] * 3
    assert scored[0].table.overall["AP50"] == pytest.approx(scored[1].table.overall["AP50"], abs=1e-3)
