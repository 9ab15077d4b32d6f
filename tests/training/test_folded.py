"""A folded teacher refuses to give its weights by name: they are not those of its student."""

from __future__ import annotations

import pytest
import torch

from ciod import detectors
from ciod.config import load as config
from ciod.config.load import Train
from ciod.core.errors import CiodError, ConfigError
from ciod.detectors.base import Detector
from ciod.training import speed

REFUSED = r"The teacher's weights are not those of a student.*needs exact_teacher .* and train\.teacher=exact"
READ = {
    "state_dict": lambda d: d.state_dict(),
    "named_parameters": lambda d: d.named_parameters(),
    "parameters": lambda d: list(d.parameters()),
    "mixed": lambda d: [a.lerp(b, 0.5) for a, b in zip(d.parameters(), d.parameters(), strict=True)],
    "a part": lambda d: d.trunk()[0].state_dict(),
}


def detector(name: str = "yolox-pico") -> Detector:
    torch.manual_seed(0)
    return detectors.build(["a", "b"], name=name, size=64, backbone_weights=None)


@pytest.mark.parametrize("name", ["yolox-pico", "gfl-pico"])
@pytest.mark.parametrize("read", READ)
def test_weights_by_name_are_refused(name, read):
    student = detector(name)
    for kind in ("folded", "bf16"):
        teacher = speed.make_teacher(student, Train(teacher=kind)).detector
        with pytest.raises(CiodError, match=REFUSED):
            READ[read](teacher)
        with pytest.raises(CiodError, match=REFUSED):
            READ[read](teacher.frozen())
    READ[read](student)
    READ[read](speed.make_teacher(student, Train(teacher="exact")).detector)


def test_an_exact_teacher_has_the_weights_of_its_student():
    student = detector()
    teacher = speed.make_teacher(student, Train(teacher="exact")).detector
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in student.state_dict().items())


FILE = """
from typing import Any, ClassVar
from ciod import Method

class Asks(Method):
    @property
    def exact_teacher(self):
        return True

class Sets(Asks):
    run_defaults: ClassVar[dict[str, Any]] = {"train.teacher": "exact"}
"""


def test_a_method_that_needs_an_exact_teacher_gets_one_or_is_refused(tmp_path):
    (tmp_path / "mixes.py").write_text(FILE)
    words = ["data=shapes", "split=6+4", "detector=yolox-pico"]
    with pytest.raises(ConfigError, match=r"need train\.teacher=exact, not folded"):
        config.load(None, [*words, f"method={tmp_path / 'mixes.py'}:Asks"])
    assert config.load(None, [*words, f"method={tmp_path / 'mixes.py'}:Sets"]).train.teacher == "exact"
