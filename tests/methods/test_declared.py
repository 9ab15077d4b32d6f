"""Wrong declarations in the class of a user's method are reported as errors of the method, with file and line."""

from __future__ import annotations

import pytest

from ciod import methods
from ciod.config import load as config
from ciod.core.errors import ConfigError
from ciod.core.user_code import UserCodeError
from tests.methods.test_user_code import HEAD, write

FIELD = HEAD.replace("import PrivateAttr", "import Field, PrivateAttr")
DECLARED = {
    "weight: float = 'much'": r"the default of the setting weight: should be a valid number \(got 'much'\)",
    "weight: float = Field(-1, gt=0)": r"the default of the setting weight: should be greater than 0 \(got -1\)",
    "weight: int = None": r"the default of the setting weight: should be a valid integer \(got None\)",
    "weights: list[int] = 3": r"the default of the setting weights: should be a valid list \(got 3\)",
    "weights: dict[str, float] = {'a': 'b'}": r"setting weights\.a: should be a valid number \(got 'b'\)",
    "needs: ClassVar[Any] = 'dense'": r"needs = 'dense' has the wrong type; write for example needs = frozenset",
    "needs: ClassVar[Any] = None": r"needs = None has the wrong type",
    "distillation_terms: ClassVar[Any] = 'x'": r"distillation_terms = 'x' has the wrong type",
    "run_defaults: ClassVar[Any] = ['x']": r"run_defaults = \['x'\] has the wrong type",
    "uses_teacher: ClassVar[Any] = None": r"uses_teacher = None has the wrong type; write for example .* = True",
    "needs: frozenset[str] = frozenset()": r"has a setting called needs, which ciod\.Method uses itself; for its own",
    "def student(self):\n    return None": r"replaces student, which ciod fills; give it another name",
    "old: ClassVar[int] = 3": r"replaces old, which ciod fills",
}


@pytest.mark.filterwarnings("ignore:Field name")
@pytest.mark.parametrize("body", DECLARED)
def test_a_wrong_declaration(tmp_path, body):
    name = write(tmp_path, "\n" + body, FIELD)
    with pytest.raises(UserCodeError, match=rf"^Mine \(mine\.py, line 10\):? .*{DECLARED[body]}"):
        methods.find(name)
    with pytest.raises(ConfigError, match=DECLARED[body]):
        config.load(None, {"data": "shapes", "split": "6+4", "method": name})


def test_the_line_of_a_base_of_the_user(tmp_path):
    head = FIELD.replace("class Mine", "class Base") + "    weight: int = 'a'\n\nclass Mine(Base):\n"
    with pytest.raises(UserCodeError, match=r"^Mine \(mine\.py, line 9\): the default of the setting weight"):
        methods.find(write(tmp_path, "other: int = 1", head))


def test_a_type_that_does_not_exist(tmp_path):
    with pytest.raises(UserCodeError, match=r"Mine of mine\.py: the type of a setting is not known: .*define `Foo`"):
        methods.find(write(tmp_path, "weight: 'Foo' = 3", HEAD))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("run_defaults: ClassVar[dict] = {'train.lrr': 1}", r"Mine of mine\.py: run_defaults: train\.lrr: there is no"),
        ("run_defaults: ClassVar[dict] = {'train.teacher': 'x'}", r"run_defaults: train\.teacher: 'x' is not allowed"),
        ("weight: float", r"^method\.weight= is needed\.$"),
        ("def requires(self):\n    return None", r"Mine\.requires .* returned None; return a frozenset of traits"),
    ],
)
def test_what_only_the_settings_show(tmp_path, body, match):
    with pytest.raises((ConfigError, UserCodeError), match=match):
        config.load(None, {"data": "shapes", "split": "6+4", "method": write(tmp_path, body), "device": "cpu"})


def test_right_declarations_are_taken(tmp_path):
    body = (
        "run_defaults: ClassVar[dict] = {'lr': 0.5}\nweight: float = Field(1, gt=0)\nneeded: int\nneeds = frozenset()"
    )
    run = config.load(
        None, {"data": "shapes", "split": "6+4", "method": {"name": write(tmp_path, body, FIELD), "needed": 2}}
    )
    assert run.train.lr == 0.5
