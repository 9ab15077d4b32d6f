"""Converts what the user wrote to the type of a setting: text stays as written, everything else is YAML.

``data=010`` is the folder 010, ``epochs=10`` the number. The types are those of pydantic's fields.
"""

from __future__ import annotations

import contextlib
import os
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel

from ciod.core import text_lists, yaml_text
from ciod.core.errors import CiodError
from ciod.core.yaml_text import Sourced, without_sources

QUOTE = "cannot be read; quote it or check its brackets."


class Unreadable(CiodError):
    """Text that is not a value of the type. The message is the end of a sentence."""


@dataclass
class _Kind:
    """What a type allows."""

    text: bool = False  # any text, or one of several words
    other: bool = False  # numbers, switches, or anything: read as YAML
    none: bool = False
    items: list[Any] = field(default_factory=list[Any])  # element types of lists that hold text
    pairs: list[tuple[Any, Any]] = field(
        default_factory=list[tuple[Any, Any]]
    )  # key and value types of mappings that hold text
    models: list[type[BaseModel]] = field(default_factory=list[type[BaseModel]])

    @property
    def holds_text(self) -> bool:
        return self.text or bool(self.items or self.pairs)


def takes_none(annotation: Any) -> bool:
    """Whether a setting of this type can be None, or be anything."""
    return annotation is Any or _kind(annotation).none


def _kind(annotation: Any) -> _Kind:
    kind = _Kind()
    lists: list[Any] = []
    for one in _alternatives(annotation):
        origin, args = get_origin(one), get_args(one)
        if _is_text(one):
            kind.text = True
        elif origin is Literal:
            kind.text |= any(isinstance(a, str) for a in args)
            kind.other |= any(isinstance(a, (int, float)) for a in args)
            kind.none |= None in args
        elif one in (None, type(None)):
            kind.none = True
        elif origin in (list, tuple, set, frozenset):
            lists += [a for a in args if a is not ...]
        elif origin is dict and any(_kind(a).text for a in args[1:]):
            kind.pairs.append((args[0], args[1]))
        elif isinstance(one, type) and issubclass(one, BaseModel):
            kind.models.append(one)
        else:
            kind.other = True
    if any(_kind(a).holds_text for a in lists):
        kind.items = lists
    elif lists:
        kind.other = True
    return kind


def _alternatives(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [one for part in get_args(annotation) for one in _alternatives(part)]
    return [annotation]


def _is_text(one: Any) -> bool:
    return one is str or (isinstance(one, type) and issubclass(one, Path))


def is_free_text(annotation: Any) -> bool:
    """Whether any text is a value: a path or a name."""
    return any(_is_text(one) for one in _alternatives(annotation))


def read_word(text: str, annotation: Any) -> Any:
    """The value after ``key=`` on the command line; None if it is empty.

    Raises:
        Unreadable: brackets that do not match, and the like.
    """
    kind = _kind(annotation)
    if not kind.holds_text:
        return _yaml(text)
    if kind.items and (names := text_lists.read_list(text)) is not None:
        return fit(_sourced(names), annotation)
    if not text and (kind.none or not kind.text):
        return None
    if kind.text:
        value = _scalar(text) if kind.other and not is_free_text(annotation) else text
        return text if isinstance(value, str) or (value is None and not kind.none) else value
    if kind.items:
        return fit(_names(text), annotation)
    return _pairs(text)


def fit(value: Any, annotation: Any) -> Any:
    """A value of a YAML file (with ``Sourced`` leaves) or of Python. What does not fit is left to validation.

    Raises:
        Unreadable: text for a list or a mapping that cannot be read.
    """
    kind = _kind(annotation)
    if isinstance(value, Sourced):
        return _fit_scalar(value, kind)
    if _is_path(value):
        return os.fspath(value) if kind.text else value
    if yaml_text.is_sequence(value):
        inner = Union[tuple(kind.items)] if kind.items else Any  # noqa: UP007
        return [fit(v, inner) for v in value]
    if yaml_text.is_mapping(value):
        if kind.models:
            fields = kind.models[0].model_fields
            return {k: fit(v, fields[k].annotation if k in fields else Any) for k, v in value.items()}
        keys, values = kind.pairs[0] if kind.pairs else (Any, Any)
        return {fit(k, keys): fit(v, values) for k, v in value.items()}
    if isinstance(value, str) and not kind.text and not kind.other:
        if kind.items:
            return fit(_names(value), annotation)
        if kind.pairs:
            return _pairs(value)
    return without_sources(value)


def _is_path(value: object) -> TypeGuard[os.PathLike[str]]:
    return isinstance(value, os.PathLike)


def _fit_scalar(leaf: Sourced, kind: _Kind) -> Any:
    if leaf.value is None and (kind.none or not leaf.source):
        return None
    if kind.other and not isinstance(leaf.value, (str, type(None))):
        return leaf.value
    if kind.text:
        return leaf.source
    if kind.items and not kind.other:
        return [leaf.source]
    return leaf.value


def _names(text: str) -> list[Any]:
    found = text_lists.read_names(text)
    if found is None:
        raise Unreadable(QUOTE)
    return _sourced(found)


def _pairs(text: str) -> dict[str, str]:
    found = text_lists.read_mapping(text)
    if found is None:
        example = text_lists.written_mapping({"old name": "new, name"})
        raise Unreadable(f"is not a mapping of names such as {example}; a name with a comma or colon needs quotes.")
    return found


def _sourced(names: text_lists.Names) -> list[Any]:
    return [_sourced_name(n) for n in names]


def _sourced_name(name: Any) -> Any:
    if yaml_text.is_sequence(name):
        return _sourced(list(name))
    return Sourced(_scalar(name), str(name)) if isinstance(name, text_lists.Plain) else name


def _scalar(text: str) -> Any:
    try:
        return _yaml(text)
    except Unreadable:
        return text


def _yaml(text: str) -> Any:
    if any("\udc80" <= c <= "\udcff" for c in text):  # from a path that is not UTF-8, which YAML cannot hold
        return text
    try:
        value = yaml_text.parse(text)
    except yaml_text.NotYAML:
        raise Unreadable(QUOTE) from None
    if isinstance(value, str) and "e" in value.lower() and value[0] in "+-.0123456789":
        with contextlib.suppress(ValueError):  # 1e-3 is what people write; YAML 1.1 reads it as text
            return float(value)
    return value
