"""What the class of a user's method declares: its settings with their defaults, and what ciod asks of the class."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.errors import PydanticUserError

from ciod.core.user_code import UserCodeError, is_users, where
from ciod.core.validation_messages import problems_in
from ciod.methods.base.method import Method

_ATTRIBUTES: dict[str, tuple[Any, str]] = {
    "needs": ((frozenset, set), 'frozenset({"dense"})'),
    "distillation_terms": ((frozenset, set), 'frozenset({"distill_cls"})'),
    "run_defaults": (dict, '{"train.lr": 0.001}'),
    "uses_teacher": (bool, "True"),
    "learns_background": (bool, "True"),
    "needs_unlabelled": (bool, "True"),
    "paper": (str, '"Author et al., year"'),
}
_GIVEN = ("student", "detector", "teacher", "old")  # properties that ciod fills


def check_declared(cls: type[Method]) -> None:
    """Checks settings, their defaults and class attributes.

    Raises:
        UserCodeError: a default that its own setting refuses, a setting with the name of something else, or a class
            attribute of the wrong type.
    """
    for name in cls.model_fields:
        if name in Method.__dict__ or name in Method.__annotations__:
            raise UserCodeError(
                f"{_at(cls, name)} has a setting called {name}, which ciod.Method uses itself; for its own meaning "
                f"write {name}: ClassVar[…] = …, or give the setting another name."
            )
    for name in _GIVEN:
        if cls.__dict__.get(name) is not None or inspect.getattr_static(cls, name) is not Method.__dict__[name]:
            raise UserCodeError(f"{_at(cls, name)} replaces {name}, which ciod fills; give it another name.")
    for name, (kind, example) in _ATTRIBUTES.items():
        value = getattr(cls, name)
        if isinstance(value, property) or (isinstance(value, kind) and value is not None):
            continue
        raise UserCodeError(
            f"{_at(cls, name)}: {name} = {value!r} has the wrong type; write for example {name} = {example}."
        )
    _check_defaults(cls)


def _check_defaults(cls: type[Method]) -> None:
    try:
        build: Any = type(cls)
        strict = build(
            cls.__name__, (cls,), {"model_config": ConfigDict(validate_default=True), "__module__": cls.__module__}
        )
        strict.model_validate({})
    except PydanticUserError as error:
        first = str(error).splitlines()[0]
        raise UserCodeError(f"{where(cls)}: the type of a setting is not known: {first}") from error
    except ValidationError as error:
        wrong = [e for e in error.errors() if e["loc"] and not _required(cls, e["loc"][0])]
        if wrong:
            name, text = str(wrong[0]["loc"][0]), problems_in(cls, wrong[:1])[0]
            raise UserCodeError(f"{_at(cls, name)}: the default of the setting {text}") from error
    except Exception:  # of a computed default; reported where the method is made
        return


def _required(cls: type[BaseModel], name: object) -> bool:
    return name not in cls.model_fields or cls.model_fields[str(name)].is_required()


def _at(cls: type, name: str) -> str:
    """The class and the line where it declares ``name``."""
    own = [c for c in cls.__mro__ if is_users(c)]
    owner = next((c for c in own if name in (*vars(c), *getattr(c, "__annotations__", ()))), cls)
    line = _line(owner, name)
    file = inspect.getsourcefile(owner) if line else None
    return f"{cls.__name__} ({Path(file).name}, line {line})" if file else where(cls)


def _line(cls: type, name: str) -> int | None:
    try:
        tree = ast.parse(Path(inspect.getsourcefile(cls) or "").read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for part in node.body:
                targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
                named = [t.id for t in targets if isinstance(t, ast.Name)] + [getattr(part, "name", "")]
                if name in named:
                    return part.lineno
    return None
