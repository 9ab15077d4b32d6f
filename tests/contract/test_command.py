"""``ciod check FILE.py:Class``: sentences, exit codes and JSON."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ciod.cli import app

GOOD = (
    "from ciod import Method\n\nclass Mine(Method):\n    share: float = 1.0\n    def fresh(self):\n        return []\n"
)


def run(*words: str):
    return CliRunner().invoke(app, ["check", *words])


def test_a_method_that_keeps_the_contract(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    done = run(f"{tmp_path / 'mine.py'}:Mine", "--json")
    answer = json.loads(done.stdout)
    assert done.exit_code == answer["exit_code"] == 0 and answer["command"] == "check"
    assert answer["lines"][-1].endswith("mine.py:Mine: It keeps the contract.")
    assert {c["name"]: c["state"] for c in answer["checks"]}["zero weight"] == "not checked"


def test_one_that_does_not(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD.replace("return []", "return None"))
    done = run(f"{tmp_path / 'mine.py'}:Mine")
    assert done.exit_code == 1
    assert "- Mine.fresh (mine.py, line 5) returned None; return a list of modules." in done.stdout
    assert "broken" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("words", [["a.py:A", "input=rgb"], ["a.onnx", "onnx=false"], ["a.py:A", "more"]])
def test_settings_that_do_not_belong(words):
    assert run(*words).exit_code != 0
