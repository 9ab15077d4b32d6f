"""Errors in a user's method file are reported with method, file and line before training time is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ciod import detectors, methods
from ciod.config import checks
from ciod.config import load as config
from ciod.core.errors import CiodError
from ciod.core.user_code import UserCodeError, user_errors
from ciod.data.shapes.scenes import write_shapes
from ciod.extension.run import extend
from ciod.extension.settings import load as extension_settings
from ciod.runs.run import train
from ciod.training.method_checks import MethodChecks
from ciod.training.offline_labels import with_offline_labels
from ciod.training.progress import Reporter
from ciod.training.watch import NotFinite
from tests import fixed

HEAD = """\
import sys
from typing import Any, ClassVar
import numpy as np
import torch
from pydantic import PrivateAttr
from ciod import Method

class Mine(Method):
"""
SIZE, OLD, NEW = 64, ("ant",), ("bee",)


def write(folder: Path, body: str, head: str = HEAD) -> str:
    """A method file; its class begins in line 8, ``body`` in line 9."""
    path = folder / "mine.py"
    path.write_text(head + "".join(f"    {line}\n" for line in body.splitlines()))
    return f"{path}:Mine"


def step(folder: Path, body: str, steps: int = 2, task: int = 0) -> MethodChecks:
    """Some steps of a task, as the loop does them."""
    torch.manual_seed(0)
    method = methods.find(write(folder, body))()
    detector = detectors.build(OLD, name="yolox-pico", size=SIZE)
    teacher = detector.frozen() if task else None
    if task:
        method.grow(detector, NEW)
    method.attach(detector, detector, teacher)
    method.begin_task(fixed.task(OLD, NEW) if task else fixed.task((), OLD))
    checks = MethodChecks(method, task)
    for i in range(steps):
        losses = checks.loss(fixed.batch(fixed.boxes_at_random(i, [2, 1], classes=1 + task), pictures(i)))
        checks.backward(torch.stack(list(losses.values())).sum())
        checks.after_backward()
    return checks


def pictures(seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)


LOSS = "def loss(self, batch):\n    losses = super().loss(batch)\n    "
RETURNS = {
    "pass": r"returned None; end it with return losses",
    "return sum(losses.values())": r'returned one tensor; return a dict: \{"name": tensor\}',
    "return 0.5": r"returned a float; return a dict of scalar tensors",
    "return list(losses.values())": r"returned a list; return a dict",
    "return {}": r"returned no loss: the dict is empty",
    "return {1: v for v in losses.values()}": r"a loss with the key 1, which is not text",
    "return {k: v.item() for k, v in losses.items()}": r"returned '\w+' as a float; it must stay a tensor \(no \.item",
    "return {k: v.detach().numpy() for k, v in losses.items()}": r"returned '\w+' as a NumPy array",
    "return {**losses, 'more': None}": r"returned 'more' as None; it must stay a tensor",
    "return {k: v.expand(2, 3) for k, v in losses.items()}": r"of shape \[2, 3\]; take its sum or mean",
    "return {k: v.long() for k, v in losses.items()}": r"of type torch\.int64; it must be a float",
    "return {k: v.detach() for k, v in losses.items()}": r"no loss with a gradient: they are detached",
}


@pytest.mark.parametrize(
    "body",
    [
        LOSS + "sum(losses.values()).backward()\n    return losses",
        LOSS + "w = next(self.detector.parameters())\n    losses['w'] = (w * w).sum()\n    w.data = w.data\n"
        "    with torch.no_grad():\n        w.mul_(2)\n    return losses",
    ],
    ids=["twice", "in place"],
)
def test_losses_that_cannot_be_differentiated(tmp_path, body):
    with pytest.raises(
        UserCodeError, match=r"^Mine\.loss \(mine\.py, line 9\) .* cannot be differentiated.* do not call it"
    ):
        step(tmp_path, body)


@pytest.mark.parametrize("body", RETURNS)
def test_a_wrong_return_value_of_loss_is_reported(tmp_path, body):
    with pytest.raises(
        UserCodeError, match=r"^Mine\.loss \(mine\.py, line 9\) returned .*" + RETURNS[body].removeprefix("returned ")
    ):
        step(tmp_path, LOSS + body)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (
            "def loss(self, batch):\n    with torch.no_grad():\n        return super().loss(batch)",
            "no loss with a gradient",
        ),
        (
            "_w: Any = PrivateAttr(default_factory=lambda: torch.ones((), requires_grad=True))\n"
            "def loss(self, batch):\n    return {'a': self._w * 2}",
            "depend on no weight of the detector: compute them from self.student",
        ),
        (
            "_n: int = PrivateAttr(default=0)\n"
            + LOSS
            + "self._n += 1\n    return losses if self._n < 2 else {'b': sum("
            "losses.values())}",
            "returned the losses b, but the first step had .* must be the same in every step",
        ),
        ("def loss(self, batch, epoch):\n    return {}", r"must take \(self, batch\): missing a required argument"),
        (
            "async def loss(self, batch):\n    return {}",
            r"Mine\.loss .* must be a plain function, without async or yield",
        ),
        ("def before_step(self):\n    yield 1", r"Mine\.before_step .* must be a plain function"),
        ("def grow(self, detector):\n    pass", r"Mine\.grow .* must take \(self, detector, names, taught\)"),
        ("def begin_task(self, task, student):\n    pass", r"Mine\.begin_task .*must take \(self, task\): missing a"),
        (
            "@torch.no_grad()\ndef loss(self, batch):\n    return super().loss(batch)",
            r"Mine\.loss \(mine\.py, line 9\) returned no loss with a gradient",
        ),
        ("def begin_task():\n    pass", r"Mine\.begin_task .*must take \(self, task\): too many positional"),
        (
            "loss: Any = 3",
            r"Mine of mine\.py has a setting called loss, which is a function of ciod\.Method; rename it",
        ),
        (
            "def begin_task(self, task):\n    self.detector.train()",
            r"Mine\.begin_task \(mine\.py, line 9\) does not call",
        ),
        ("def attach(self, student, detector, teacher):\n    pass", r"Mine\.attach .* does not call super\(\)\.attach"),
        ("def state(self):\n    return [1]", r"Mine\.state .* returned a list; return a dict of tensors"),
        (
            "def state(self):\n    return {'f': lambda: 1}",
            r"Mine\.state .* returned \['f'\]: a function, which a state",
        ),
        ("def state(self):\n    return {'a': [1, {'b': np.float64(1)}]}", r"returned \['a'\]\[1\]\['b'\]: a float64"),
        (
            "def state(self):\n    return {'a': {(1, 2): 3}}",
            r"returned \['a'\]: a tuple, which a state file cannot hold",
        ),
        (
            "def state(self):\n    return {'n': 3}",
            r"Mine\.load_state .* does not restore \['n'\], which state\(\) returned",
        ),
        (
            "_t: Any = PrivateAttr(default=None)\n" + LOSS + "self._t = torch.ones(3)\n    return losses\n"
            "def state(self):\n    return {} if self._t is None else {'t': self._t}\n"
            "def load_state(self, state):\n    self._t = state.get('t', 0) * 2",
            r"does not restore \['t'\]",
        ),
        (
            "_s: Any = PrivateAttr(default=None)\n" + LOSS + "self._s = object()\n    return losses\n"
            "def state(self):\n    return {'s': self._s}\ndef load_state(self, state):\n    self._s = state['s']",
            r"Mine\.state \(mine\.py, line 14\) returned \['s'\]: an object, which a state file cannot hold",
        ),
    ],
)
def test_mistakes_are_reported_in_the_first_steps(tmp_path, body, match):
    try:
        with pytest.raises(UserCodeError, match=match), user_errors(str(tmp_path / "mine.py") + ":Mine"):
            step(tmp_path, body)
    except TypeError as e:  # begin_task(), which this test calls before the checks
        assert "begin_task" in body and "positional" in str(e)


def test_a_loss_that_is_not_finite_at_once_is_not_the_learning_rates_fault(tmp_path):
    body = (
        LOSS
        + "losses['mean'] = torch.zeros(0, device=batch.images.device).mean() + sum(losses.values())\n    return losses"
    )
    with pytest.raises(
        NotFinite, match=r"Mine\.loss \(mine\.py, line 9\) returned mean = nan in the first step of task 1"
    ):
        step(tmp_path, body)


def test_a_grow_that_adds_nothing_is_reported(tmp_path):
    with pytest.raises(UserCodeError, match=r"Mine\.grow \(mine\.py, line 9\) did not add bee"):
        step(tmp_path, "def grow(self, detector, names, taught=()):\n    pass", task=1)


WAITS = {
    "a = losses['box'].item()": ".item()",
    "a = float(losses['box'])": "float(…)",
    "a = 1 if losses['box'] > 0 else 2": "bool(…)",
    "a = batch.targets.boxes.tolist()": ".tolist()",
    "a = batch.targets.boxes[batch.targets.valid]": "a mask as an index",
    "a = batch.targets.valid.nonzero()": ".nonzero()",
    "a = batch.targets.boxes.cpu()": ".cpu()",
}


@pytest.mark.parametrize("line", WAITS)
def test_what_waits_for_the_device_is_warned_of_once(tmp_path, line):
    checks = step(tmp_path, LOSS.replace("losses = ", "losses = ") + f"{line}\n    return losses", steps=3)
    (warning,) = checks.warnings
    assert warning.startswith("Mine.loss (mine.py, line 9) waits for the device in every step: mine.py, line 11 (")
    assert f"({WAITS[line]})" in warning


def test_a_correct_method_gets_no_warning(tmp_path):
    body = (
        "_seen: Any = PrivateAttr(default_factory=dict)\n" + LOSS + "self._seen['n'] = torch.ones(2)\n"
        "    return losses\ndef state(self):\n    return {'seen': dict(self._seen), 'no': float('nan'), 't': (1, 2)}\n"
        "def load_state(self, state):\n    self._seen = dict(state['seen'])"
    )
    assert step(tmp_path, body).warnings == [] == step(tmp_path, body, task=1).warnings


def test_a_method_that_overrides_nothing_is_warned_of(tmp_path):
    (warning,) = step(tmp_path, "def losses(self, batch):\n    return {}").warnings
    assert warning.startswith("Mine of mine.py overrides nothing of ciod.Method, so it is plain fine-tuning")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (HEAD + "    x = 3\n", r"cannot be imported: x has no type; write x: TYPE = 3 for a setting, or _x: TYPE"),
        ("import ciod\n\nraise ValueError('a\\nb')\n", r"cannot be imported: ValueError: a \(line 3\)"),
        ("import sys\nsys.exit(3)\n", r"cannot be imported: sys\.exit\(\) was called.* \(line 2\)"),
        ("def f(:\n", r"cannot be imported: SyntaxError: .* \(line 1\)"),
        ("class Mine:\n    pass\n", r"has no Method 'Mine' \(the class Mine does not derive from ciod\.Method\)"),
        ("Mine = 3\n", r"has no Method 'Mine' \(Mine is not a class\)"),
        ("from ciod.methods.ewc import EWC as Mine\n", r"only imports 'Mine' from ciod"),
    ],
)
def test_files_that_are_not_methods(tmp_path, text, match):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(CiodError, match=match):
        methods.find(f"{tmp_path / 'mine.py'}:Mine")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data"), train=4, val=2, size=64)


def run(folder: Path, data: Path, body: str) -> None:
    words = [f"data={data}", "split=5+5", "detector=yolox-pico", "size=64", "epochs=1", "batch=4", "device=cpu"]
    settings = config.load(None, [*words, f"method={write(folder, body)}", f"out={folder / 'out'}"])
    train(settings, command="a test", reporter=Reporter(quiet=True))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (LOSS + "return losses['x']", r"method .*mine\.py:Mine: KeyError: 'x' in loss \(.*mine\.py, line 11\)"),
        (LOSS + "sys.exit(1)", r"sys\.exit\(\) was called; it ends the whole program in loss \(.*line 11\)"),
        (LOSS + "return self.detector.match(1, 2)", r"AttributeError: .* in loss \(.*mine\.py, line 11\)"),
        (
            "def begin_task(self, task):\n    self.count = 0",
            r"the attribute count is not declared; write _count: TYPE = PrivateAttr",
        ),
        ("def end_task(self, task):\n    1 / 0", r"ZeroDivisionError: division by zero in end_task \(.*line 10\)"),
        ("def check(self):\n    return 1 / 0", r"ZeroDivisionError: division by zero in check \(.*line 10\)"),
    ],
)
def test_an_error_of_the_users_code_is_reported_as_such(tmp_path, data, body, match):
    with pytest.raises(UserCodeError, match=match):
        run(tmp_path, data, body)


def test_extend_reports_it_too(tmp_path, data):
    detector = detectors.build(["ant"], name="yolox-pico", size=64)
    from ciod.detectors.files import weights

    weights.save_model(tmp_path / "m.safetensors", detector)
    given = {"model": str(tmp_path / "m.safetensors"), "data": str(data), "out": str(tmp_path / "out"), "epochs": 1}
    given |= {"batch": 4, "device": "cpu", "method": write(tmp_path, LOSS + "return losses['x']")}
    with pytest.raises(UserCodeError, match=r"mine\.py:Mine: KeyError: 'x' in loss \(.*mine\.py, line 11\)"):
        extend(extension_settings(given), reporter=Reporter(quiet=True))


def test_faults_of_ciod_keep_their_traceback(tmp_path):
    with pytest.raises(KeyError), user_errors(write(tmp_path, "pass")):
        raise KeyError("ours")
    with pytest.raises(KeyboardInterrupt), user_errors(write(tmp_path, "pass")):
        raise KeyboardInterrupt


def test_distillation_terms_that_no_loss_has_are_warned_of(tmp_path):
    body = "distillation_terms: ClassVar[frozenset[str]] = frozenset({'distil'})\n" + LOSS + "return losses"
    (warning,) = step(tmp_path, body, task=1).warnings
    assert "but distillation_terms names distil: the run cannot check distillation" in warning
    assert step(tmp_path, body, task=0).warnings == [], "there is no teacher in the first task"
    body = body.replace("return losses", "return {**losses, 'distil': 0 * sum(losses.values())}")
    assert step(tmp_path, body, task=1).warnings == []


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("def fresh(self):\n    return None", r"Mine\.fresh \(mine\.py, line 9\) returned None; return a list"),
        ("def fresh(self):\n    return ['head']", r"Mine\.fresh .* returned a list; return a list of modules"),
    ],
)
def test_fresh_parts_are_modules(tmp_path, body, match):
    with pytest.raises(UserCodeError, match=match):
        step(tmp_path, body)


@pytest.mark.parametrize(("returned", "kind"), [("None", "None"), ("'wrong'", "a str"), ("[1]", "a list")])
def test_check_returns_messages(tmp_path, returned, kind):
    name = write(tmp_path, f"def check(self):\n    return {returned}")
    message = rf"Mine\.check \(mine\.py, line 9\) returned {kind}; return a list of messages"
    with pytest.raises(UserCodeError, match=message):
        checks.method_of(methods.find(name), {})


def test_draw_returns_the_images_that_it_was_given(tmp_path):
    body = "def draw(self, images, workers=0):\n    return images.select(np.arange(1))"
    method = methods.find(write(tmp_path, body))()
    images = fixed.index_of([(0, "ant")], ("ant",), 2)
    with pytest.raises(UserCodeError, match=r"Mine\.draw .* must return the given images with more boxes"):
        with_offline_labels(images, None, method, workers=0, reporter=Reporter(quiet=True))
