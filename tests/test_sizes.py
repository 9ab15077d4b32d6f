"""No file is longer than 400 lines, no function longer than 60; the state of a run has only declared attributes."""

from __future__ import annotations

import ast
from dataclasses import fields
from inspect import signature
from pathlib import Path

import pytest

import ciod
from ciod.extension.run import Extension
from ciod.runs.run import Runner
from ciod.training.loop import Fit
from ciod.training.task import train_task

ROOT = Path(ciod.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def test_no_file_is_longer_than_400_lines():
    lines = {p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {name: n for name, n in lines.items() if n > 400} == {}


def test_no_function_is_longer_than_60_lines():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                if (n := node.end_lineno - node.lineno + 1) > 60:
                    long[f"{path.relative_to(ROOT).as_posix()}: {node.name}"] = n
    assert long == {}


@pytest.mark.parametrize("cls", [Runner, Extension, Fit], ids=lambda cls: cls.__name__)
def test_the_state_of_a_run_has_only_declared_attributes(cls):
    """An instance without ``__dict__`` refuses every other one."""
    assert {f.name for f in fields(cls)} == set(cls.__slots__)
    with pytest.raises(AttributeError):
        object.__new__(cls).not_declared = 1


def test_the_training_of_a_task_is_called_with_keywords():
    assert all(f.kw_only for f in fields(Fit) if f.init)
    assert all(p.kind is p.KEYWORD_ONLY for p in signature(train_task).parameters.values())
