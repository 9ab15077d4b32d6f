"""Whether a method trains its first task as fine-tuning does, so that several methods can share one first task."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any, Protocol

from ciod.core import user_code

# Functions that may change the first task or collect data in it. Settings decide parameters, and ``state`` only stores.
_HOOKS = ("grow", "begin_task", "draw", "loss", "before_step", "end_task", "fresh")
_OLD = {"teacher", "_teacher", "old", "_task"}  # attributes that distinguish the first task from later ones


class Needs(Protocol):
    """The part of ``Method`` that this module uses."""

    @property
    def needs_first_task(self) -> bool: ...


def why(method: Needs) -> str | None:
    """Why ``method`` needs a first task of its own; None if any first task can be used."""
    if not method.needs_first_task:
        return None
    found = hooks(type(method))
    return f"its {', '.join(found)} may act in it" if found else "it says so"


def hooks(cls: type) -> list[str]:
    """Hooks of a user's method that do something in the first task, judged by their code. A hook that begins with a
    condition on ``self.teacher`` or ``self.old`` and returns does nothing in it.
    """
    found = ((name, user_code.overrides(cls, name)) for name in _HOOKS)
    return [name for name, function in found if function is not None and not _leaves_alone(function, name)]


def _leaves_alone(function: Any, name: str) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.FunctionDef) else []
    for statement in body:
        if isinstance(statement, ast.Expr) and (
            isinstance(statement.value, ast.Constant) or _is_super(statement.value, name)
        ):
            continue  # a docstring, or the call of the base
        return isinstance(statement, ast.If) and _asks_for_old(statement.test) and _returns(statement.body, name)
    return bool(body)


def _asks_for_old(test: ast.expr) -> bool:
    """``self.teacher is None``, ``not self.old`` or ``self.old == 0``, also with ``or`` between them and others."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(map(_asks_for_old, test.values))
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _is_old(test.operand)
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Is, ast.Eq)):
        return _is_old(test.left)
    return False


def _is_old(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in _OLD and _is_self(node.value)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _returns(body: list[ast.stmt], name: str) -> bool:
    """``return``, ``return None`` or ``return super().loss(batch)``, and nothing else."""
    if len(body) != 1 or not isinstance(body[0], ast.Return):
        return False
    value = body[0].value
    return value is None or (isinstance(value, ast.Constant) and value.value is None) or _is_super(value, name)


def _is_super(node: ast.expr, name: str) -> bool:
    """``super().name(…)``"""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == name
        and isinstance(node.func.value, ast.Call)
        and isinstance(node.func.value.func, ast.Name)
        and node.func.value.func.id == "super"
    )
