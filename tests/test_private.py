"""No test replaces a name that is private to the package or to a library: it needs a hook, or a public name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py") if "corpus" not in p.parts)
REPLACING = frozenset({"setattr", "delattr", "setitem", "delitem", "patch", "object"})


def private(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.startswith("_") and not last.endswith("__")


def replaced(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of each private name that is replaced: by ``monkeypatch.setattr`` and the like, or an assignment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found = [name.rpartition(".")[2] for name in given if called in REPLACING and private(name)]
            yield from ((node.lineno, name) for name in found)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)) and private(node.attr):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in ("self", "cls"):
                yield node.lineno, node.attr


def test_no_test_replaces_a_private_name():
    trees = {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in FILES}
    assert [f"tests/{file}:{line}: {name}" for file, tree in trees.items() for line, name in replaced(tree)] == []


@pytest.mark.parametrize(
    "line",
    [
        'monkeypatch.setattr(module, "_name", 1)',
        'monkeypatch.setattr("ciod.core.files._name", 1)',
        'mock.patch("ciod.core.files._name")',
        'mock.patch.object(module, "_name")',
        'setattr(thing, "_name", 1)',
        "thing._name = 1",
        "a, thing.inner._name = 1, 2",
        "thing._name += 1",
        "del thing._name",
    ],
)
def test_a_private_name_that_is_replaced_is_found(line):
    assert list(replaced(ast.parse(line))) == [(1, "_name")]


@pytest.mark.parametrize(
    "line", ["self._name = 1", 'monkeypatch.setattr(module, "name", 1)', 'setattr(Own, "__call__", f)', "_name = 1"]
)
def test_a_public_name_may_be_replaced(line):
    assert list(replaced(ast.parse(line))) == []
