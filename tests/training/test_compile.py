"""torch.compile and the teacher's stream: what they may change, and where they cannot be."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ciod.config import checks
from ciod.config import load as config
from ciod.config.load import Train
from ciod.core.distributed import World
from ciod.core.errors import ConfigError
from ciod.core.types import Targets
from ciod.methods.ilyolox import ILYOLOX
from ciod.training import speed
from tests import fixed
from tests.training.test_speed import grown, trained


def losses(device: str = "cpu", **settings) -> dict[str, float]:
    """The losses of one step of a distilling method, and the norm of its gradient."""
    train = Train(**settings)
    student = trained().to(device)
    teacher = speed.make_teacher(student, train)
    grown(student, train_norms=True)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    box = torch.tensor([[8.0, 8, 40, 44]])
    batch = fixed.batch(Targets.pad([box] * 2, [torch.tensor([3])] * 2), images).to(device)
    method = ILYOLOX(center_score=0.0, other_score=0.0, nms_iou=0.5)
    forward = speed.student(student, train, World(device=torch.device(device)))
    method.attach(teacher.beside(forward), student, teacher)
    method.begin_task(fixed.task(("a", "b", "c"), ("d",)))
    found = method.loss(batch)
    torch.stack(list(found.values())).sum().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in student.parameters() if p.grad is not None])
    assert student.state_dict().keys() == trained_names(student), "compiling changes no name"
    return {k: v.item() for k, v in found.items()} | {"gradient": norm.item()}


def trained_names(student) -> set[str]:
    return {n for n, _ in student.named_parameters()} | {
        n for n, b in student.named_buffers() if n not in ("mean", "std", "channel_of")
    }


def assert_near(found: dict[str, float], wanted: dict[str, float], limit: float) -> None:
    assert wanted["distill_cls"] > 0
    for key, value in wanted.items():
        assert abs(found[key] - value) <= limit * abs(value), key


def test_the_traced_graphs_compute_the_same(monkeypatch):
    """Tracing and differentiating as ``torch.compile`` does, without generating code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(torch.nn.Module, "compile", partial_method(backend="aot_eager"))
    assert_near(losses(compile=True), losses(), 1e-4)
    torch.compiler.reset()


def partial_method(**given):
    real = torch.nn.Module.compile
    return lambda self: real(self, **given)


@pytest.mark.slow
@pytest.mark.skipif(checks.lacks_compiler(), reason="no C++ compiler")
def test_compiled_code_computes_the_same():
    """The teacher alone: one graph. All graphs of a step take minutes to compile, and the test above traces them."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    wanted, found = (speed.make_teacher(trained(), Train(compile=c))(images) for c in (False, True))
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, wanted.boxes, rtol=1e-4, atol=1e-3)
    torch.compiler.reset()


def test_a_missing_compiler_is_reported_before_anything_runs(monkeypatch):
    monkeypatch.setattr(checks, "lacks_compiler", lambda: True)
    with pytest.raises(ConfigError, match=r"train\.compile needs a C\+\+ compiler"):
        config.load(None, ["data=shapes", "split=6+4", "compile=true", "device=cpu"])


def test_a_stream_is_nothing_on_a_cpu():
    assert losses(teacher_stream=True) == losses()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: runs where torch finds CUDA")
def test_a_stream_changes_nothing():
    assert_near(losses("cuda", teacher_stream=True), losses("cuda"), 1e-4)
