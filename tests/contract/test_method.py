"""Each sentence of ``ciod check`` about a method, by a small method with one thing broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ciod import contract
from ciod.contract import method as checks
from ciod.contract import report
from ciod.core.errors import CiodError
from ciod.methods import find

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-method.md"
HEAD = """\
import random
from typing import Any, ClassVar
import torch
from pydantic import PrivateAttr
from ciod import Method

class Mine(Method):
"""
LOSS = "def loss(self, batch):\n    losses = super().loss(batch)\n    "
TEACHES = LOSS + "if self.teacher is None:\n        return losses\n    "
COUNTS = (
    "_n: int = PrivateAttr(default=0)\n" + LOSS + "self._n += 1\n    return {**losses, 'n': losses['cls'] * self._n}\n"
)


def write(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(HEAD + "".join(f"    {line}\n" for line in body.splitlines()))
    return f"{folder / 'mine.py'}:Mine"


BROKEN = {
    "tasks": [
        ("def begin_task(self, task):\n    pass", r"Mine\.begin_task \(mine\.py, line 8\) does not call super"),
        (LOSS + "return 3", r"Mine\.loss \(mine\.py, line 8\) returned an int; return a dict of scalar tensors"),
        (
            LOSS + "losses['box'].item()\n    return losses",
            r"waits for the device in every step: mine\.py, line 10 \(\.item",
        ),
        ("def state(self):\n    return {'n': 3}", r"does not restore \['n'\], which state\(\) returned"),
        (LOSS + "return losses['x']", r"method .*mine\.py:Mine: KeyError: 'x' in loss \(.*mine\.py, line 10\)"),
    ],
    "forwards": [
        (LOSS + "self.student(batch.images)\n    return losses", r"asks the student 2 times in a step; once is enough"),
        (
            TEACHES + "self.teach(batch)\n    self.teach(batch)\n    return losses",
            r"asks the teacher 2 times in a step; keep",
        ),
    ],
    "teacher": [
        (
            TEACHES + "for b in self.teacher.detector.buffers():\n        b.add_(1)\n    return losses",
            r"Mine\.loss \(mine\.py, line 8\) changes the teacher \(.*\); it must stay as it is",
        ),
        (TEACHES + "self.teacher.detector.train()\n    return losses", r"changes the teacher \(train mode\)"),
    ],
    "repetition": [
        (
            LOSS + "return {k: v * random.random() for k, v in losses.items()}",
            r"differs in step 1 when a run is repeated",
        ),
    ],
    "resuming": [
        (COUNTS, r"after a resume 'n' is .* instead of .*; state\(\) must return everything that loss keeps"),
        (
            COUNTS
            + "def state(self):\n    return {'n': self._n}\ndef load_state(self, state):\n    self._n = state['n']",
            r"Mine\.load_state \(mine\.py, line \d+\) does not accept an empty state \(KeyError\)",
        ),
    ],
    "zero weight": [
        (
            "weight: float = 1.0\n" + LOSS + "return {k: v * (2 + self.weight) for k, v in losses.items()}",
            r"with weight=0 the gradient of .* is not that of fine-tuning",
        ),
    ],
}


@pytest.mark.parametrize(("check", "body", "match"), [(c, *case) for c, cases in BROKEN.items() for case in cases])
def test_what_breaks_is_reported(tmp_path, check, body, match):
    name = write(tmp_path, body)
    subject = checks.Subject.of(name, find(name), 64)
    sentences = report.sentences_of(checks.CHECKS[check], subject, name, "method")
    assert any(re.search(match, s) for s in sentences), sentences


def test_every_check_is_broken_by_something():
    assert set(BROKEN) == set(checks.CHECKS)


def test_the_pages_method_keeps_the_contract(tmp_path):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert code
    (tmp_path / "feature_distill.py").write_text(code[1], encoding="utf-8")
    result = contract.check(f"{tmp_path / 'feature_distill.py'}:FeatureDistill")
    assert not result.broken and {c["state"] for c in result.content()} == {"kept"}, result.lines()


@pytest.mark.parametrize(
    ("check", "body", "match"),
    [
        ("teacher", "uses_teacher = False", "it uses no teacher"),
        ("zero weight", "other: float = 1.0", "it has no setting called weight"),
        ("zero weight", "weight: float = Field(1.0, gt=0)", "its weight may not be 0"),
        (
            "zero weight",
            "weight: float = 1.0\ndef distill(self, *_):\n    pass",
            "a Distillation also masks old classes",
        ),
    ],
)
def test_what_is_not_checked(tmp_path, check, body, match):
    name = write(tmp_path, body)
    text = (tmp_path / "mine.py").read_text().replace("import random\n", "import random\nfrom pydantic import Field\n")
    if "distill" in body:
        text = text.replace(
            "from ciod import Method", "from ciod.methods.base.distillation import Distillation as Method"
        )
    (tmp_path / "mine.py").write_text(text)
    subject = checks.Subject.of(name, find(name), 64)
    with pytest.raises(report.NotChecked, match=match):
        list(checks.CHECKS[check](subject))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("share: float", r"check: Mine of mine\.py has settings without a default \(share\); give them one"),
        (
            "needs: ClassVar = frozenset({'wings'})",
            r"check: no detector of ciod has all that Mine of mine\.py needs: wings",
        ),
    ],
)
def test_what_cannot_be_checked(tmp_path, body, match):
    with pytest.raises(CiodError, match=match):
        contract.check(write(tmp_path, body))
