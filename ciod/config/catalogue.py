"""A description of every setting of a command: type, default, which results it changes, and what it does."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ciod.config.marks import LATER_TASKS, NO_RESULT, Effect
from ciod.core.limits import MANY

BY_EFFORT = "by effort"
NONE = "—"
"""Default of a setting that has none, or that is chosen when the command runs."""
_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "any"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """One setting of a command."""

    section: str
    """Dotted; "" at the top."""
    key: str
    """The full name: ``train.epochs``."""
    kind: str
    """Its type and limits: ``integer ≥ 1``; several kinds are separated by "or"."""
    default: str
    changes: str
    """Which results it changes: ``all``, ``later tasks`` or ``none``."""
    note: str
    """Its documentation; "" without one."""


def settings(model: type[BaseModel], by_effort: Collection[str] = ()) -> Iterator[Setting]:
    """Every setting of a model of settings, those of its sections too, in the order of the code.

    Args:
        by_effort: keys of those that ``effort`` chooses if they are not set.
    """
    for found in _settings(model, "", ()):
        yield replace(found, default=BY_EFFORT) if found.key in by_effort else found


def _settings(model: type[BaseModel], prefix: str, marks: Iterable[Any]) -> Iterator[Setting]:
    about = notes(model)
    for name, field in model.model_fields.items():
        of_field = [*marks, *field.metadata]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.", of_field)
        else:
            key, default, note = f"{prefix}{name}", default_of(field), about.get(name, "")
            yield Setting(prefix.rstrip("."), key, kind_of(field), default, _changes(of_field), note)


def notes(model: type) -> dict[str, str]:
    """The documentation of each field: the string below it, in the class or in those that it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            found |= _own_notes(cls)
    return found


def _own_notes(model: type) -> dict[str, str]:
    try:
        (definition,) = ast.parse(inspect.getsource(model).lstrip()).body
    except (OSError, TypeError):  # a class without Python source
        return {}
    assert isinstance(definition, ast.ClassDef)
    body, found = definition.body, {}
    for field, after in zip(body, [*body[1:], None]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


def default_of(field: FieldInfo) -> str:
    """The default as it would be written; ``NONE`` for None and for a required setting."""
    if field.is_required():
        return NONE
    return written(field.get_default(call_default_factory=True))


def written(value: Any) -> str:
    """A value of Python as it is written in a setting."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {written(v)}' for k, v in value.items())}}}"
    return str(value)


def kind_of(field: FieldInfo) -> str:
    """Type and limits of a field as text."""
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(args[0], [*args[1:], *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(a, metadata) for a in args if a is not type(None)))
    if origin is Literal:
        return ", ".join(str(a) for a in args)
    if origin in (list, tuple):
        return f"list of {_plural(_kind(args[0]))}" if args else "list"
    if origin is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return " ".join([_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation))), *_limits(metadata)])


def _plural(kind: str) -> str:
    name, _, limits = kind.partition(" ")
    return f"{name}s {limits}".strip() if name in ("integer", "number", "list") else kind


def _limits(metadata: Iterable[Any]) -> Iterator[str]:
    parts = [part for given in metadata for part in (given.metadata if isinstance(given, FieldInfo) else [given])]
    found = []
    for part in parts:
        for name, sign in _SIGNS.items():
            limit = getattr(part, name, None)
            if limit is not None and limit != MANY:
                found.append(f"{sign} {limit:g}")
        if multiple := getattr(part, "multiple_of", None):
            found.append(f"a multiple of {multiple}")
    yield from [", ".join(found)] if found else []


def _changes(marks: Iterable[Any]) -> str:
    effects = [mark for mark in marks if isinstance(mark, Effect)]
    if NO_RESULT in effects:
        return "none"
    return "later tasks" if LATER_TASKS in effects else "all"
