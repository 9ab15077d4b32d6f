"""Mistakes in a detector file of the user: reported with class, function, file and line, in the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ciod import detectors, methods
from ciod.core.errors import CiodError
from ciod.core.user_code import UserCodeError
from ciod.training.method_checks import MethodChecks
from ciod.training.watch import NotFinite
from tests import fixed

HEAD = """\
import torch
from ciod.detectors.yolox import YOLOX

class Mine(YOLOX):
"""
PLAIN = "def loss(self, *a, **k):\n    losses = super().loss(*a, **k)\n    "


def build(folder: Path, body: str):
    """A detector of a file; its class begins in line 4, ``body`` in line 5."""
    (folder / "mine.py").write_text(HEAD + "".join(f"    {line}\n" for line in body.splitlines()))
    torch.manual_seed(0)
    return detectors.build(("ant",), name=f"{folder / 'mine.py'}:Mine", size=64)


def step(folder: Path, body: str) -> None:
    """A step of fine-tuning, and a detection."""
    detector = build(folder, body)
    method = methods.find("finetune")()
    method.attach(detector, detector, None)
    method.begin_task(fixed.task((), ("ant",)))
    checks = MethodChecks(method, 0)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    losses = checks.loss(fixed.batch(fixed.boxes_at_random(0, [2, 1], classes=1), pictures))
    checks.backward(torch.stack(list(losses.values())).sum())
    detector.eval()
    detector.decode(detector(pictures))


WRONG = {
    "def forward(self, x):\n    return None": r"Mine\.forward \(mine\.py, line 5\) returned None; return Outputs",
    "def forward(self, x):\n    return super().forward(x).logits": r"forward .* returned a Tensor; r",
    "def match(self, *a):\n    return None": r"Mine\.match \(mine\.py, line 5\) returned None; return Matches",
    "def respond(self, *a):\n    return 3": r"Mine\.respond \(mine\.py, line 5\) returned a int; return Outputs",
    "def decode(self, *a, **k):\n    return {}": r"decode .*returned a dict; return a list",
    "def loss(self, *a, **k):\n    return 3.0": r"Mine\.loss \(mine\.py, line 5\) returned float; return \{",
    "def loss(self, *a, **k):\n    return None": r"Mine\.loss \(mine\.py, line 5\) returned None; return \{",
    PLAIN + "return sum(losses.values())": r"loss .* returned Tensor; return \{",
    PLAIN + "return {n: float(v) for n, v in losses.items()}": r"returned a float: 'cls' is not a scalar tensor; take",
    PLAIN
    + "return {n: v[None] for n, v in losses.items()}": r"returned a tensor of shape \[1\]: 'cls' is not a scalar",
    PLAIN
    + "return {n: v.detach() for n, v in losses.items()}": r"loss .* returned no loss with a gradient: they are deta",
    "def forward(self, x):\n    raise IndexError": r"^IndexError$",
}


@pytest.mark.parametrize("body", WRONG)
def test_a_wrong_return_value_is_reported(tmp_path, body):
    with pytest.raises((UserCodeError, IndexError)) as error:
        step(tmp_path, body)
    assert error.type is IndexError or error.match(WRONG[body])


def test_a_loss_that_is_not_finite_is_the_detectors(tmp_path):
    with pytest.raises(NotFinite, match=r"Mine\.loss \(mine\.py, line 5\) returned cls = inf.* not the learning rate"):
        step(tmp_path, PLAIN + "return {**losses, 'cls': losses['cls'] / 0}")


def test_a_detector_that_does_not_grow(tmp_path):
    detector = build(tmp_path, "def grow(self, names):\n    pass")
    method = methods.find("finetune")()
    method.attach(detector, detector, None)
    method.begin_task(fixed.task(("ant",), ("bee",)))
    with pytest.raises(
        UserCodeError, match=r"Mine\.grow .* did not add .*bee to the detector; call super\(\)\.grow\(nam"
    ):
        MethodChecks(method, 1)


def test_modules_of_the_trunk(tmp_path):
    with pytest.raises(
        UserCodeError, match=r"Mine\.trunk \(mine\.py, line 5\) returned None; return a list of modules"
    ):
        build(tmp_path, "def trunk(self):\n    return None").trunk()


def test_a_detector_that_is_right_is_not_changed(tmp_path):
    step(tmp_path, "def loss(self, *a, **k):\n    return super().loss(*a, **k)")
    detector = build(tmp_path, "def match(self, *a):\n    '''As it was.'''\n    return super().match(*a)")
    assert type(detector).match.__doc__ == "As it was."
    with torch.no_grad():
        assert detector(torch.rand(1, 3, 64, 64)).logits.shape[2] == 1


def test_a_syntax_error_has_one_line(tmp_path):
    (tmp_path / "mine.py").write_text("class Mine(:\n")
    with pytest.raises(CiodError, match=r"mine\.py cannot be imported: SyntaxError: invalid syntax \(line 1\)$"):
        detectors.build(("ant",), name=f"{tmp_path / 'mine.py'}:Mine", size=64)
