"""The one reader of settings: ``key=value`` words, YAML files and Python values → settings by full key.

Every command has a ``Table``: a pydantic model of its settings and the shorter ways to write them. What is text stays
as it was typed (``ciod.core.typed``); an unknown setting is reported with the nearest one of the command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import BaseModel

from ciod.core import reading, typed, yaml_text
from ciod.core.errors import CiodError, nearest
from ciod.core.files import exists
from ciod.core.plural import few
from ciod.core.validation_messages import problems_of
from ciod.core.yaml_text import Sourced, without_sources


class Word(str):
    """The text after ``key=`` on the command line."""


class _Raw:
    """Mark of a setting whose value is passed on as written."""


RAW = _Raw()


@dataclass(frozen=True)
class Table:
    """The settings of a command.

    Args:
        model: its settings, in sections or not.
        short: shorter names → full dotted keys: ``epochs`` → ``train.epochs``.
        refused: full keys that are not settings of this command, and what to write instead.
        default_method: the method of ``method.NAME`` if no method is named; "": the command has no methods.
    """

    model: type[BaseModel]
    short: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    default_method: str = ""

    def full(self, key: str) -> str:
        return self.short.get(key, key)

    def annotation(self, full: str, method: type[BaseModel] | None = None) -> Any:
        """Type of a setting, ``Any`` for one that only the method has; None: there is no such setting."""
        model: type[BaseModel] = self.model
        head, _, leaf = full.partition(".")
        if head == "method" and leaf and self.default_method:
            if method is None or leaf == "name":
                return str if leaf == "name" else Any
            return method.model_fields[leaf].annotation if leaf in method.model_fields else None
        *sections, leaf = full.split(".")
        for part in sections:
            kind = model.model_fields[part].annotation if part in model.model_fields else None
            if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
                return None
            model = kind
        if leaf not in model.model_fields:
            return None
        return RAW if RAW in model.model_fields[leaf].metadata else model.model_fields[leaf].annotation

    def keys(self, method: type[BaseModel] | None = None) -> list[str]:
        """Everything that takes a value, as it may be written: short names first, then full ones."""
        names = [k for k, full in self.short.items() if full not in self.refused]
        of_method = [f"method.{k}" for k in method.model_fields] if method else []
        return [
            *names,
            *(k for k in _leaves(self.model) if self.full(k) not in self.refused and k not in names),
            *of_method,
        ]

    def unknown(self, key: str, method: type[BaseModel] | None = None) -> str:
        """The message about an unknown key. Its suggestion is a setting."""
        options = self.keys(method)
        section = f"{key.rpartition('.')[0]}."
        inside = [k for k in options if k.startswith(section)] if "." in key else []
        leaf = key.rpartition(".")[2]
        if section == "method." and method is not None and (others := _methods_with(leaf)):
            name = method.__module__.rpartition(".")[2]
            return f"{key}: no setting of {name}, but of {few(others, 4)}; write method={others[0]}."
        near = nearest(leaf, [k.removeprefix(section) for k in inside])
        if near is not None:
            near = near if self.short.get(near) == section + near else section + near
        else:
            near = nearest(key, options) or nearest(leaf, options)
        top = [k for k in options if "." not in k]
        hint = f"did you mean '{near}'?" if near else f"allowed: {_some(inside or top or options)}"
        return f"{key}: there is no such setting; {hint}"

    def flat(self, settings: Mapping[str, Any], problems: list[str] | None = None) -> dict[str, Any]:
        """Nested or shortened settings → full dotted key and value, which is not changed.

        Args:
            problems: gets a sentence per setting that is given twice with other values, as ``lr`` and ``train.lr``.
        """
        found: dict[str, Any] = {}
        for key, value in settings.items():
            if isinstance(value, Word) and value.startswith("{") and self._is_section(key):
                with contextlib.suppress(yaml_text.NotYAML):
                    value = yaml_text.parse_sourced(value)
            section = isinstance(value, Mapping) and self._is_section(key)
            more = self._flat(key if section else self.full(key), value)
            if problems is not None:
                problems += [
                    twice(full, without_sources(found[full]), without_sources(v))
                    for full, v in more.items()
                    if full in found and without_sources(found[full]) != without_sources(v)
                ]
            found |= more
        return found

    def _flat(self, full: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not self._is_section(full):
            return {full: value}
        return {k: v for leaf, inner in value.items() for k, v in self._flat(f"{full}.{leaf}", inner).items()}

    def _is_section(self, key: str) -> bool:
        return _is_model(self.annotation(key)) or (key == "method" and bool(self.default_method))

    def settings(self, *sources: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Values of the settings' types by full key, and all problems of keys and texts; later sources take
        precedence."""
        raw: dict[str, Any] = {}
        problems: list[str] = []
        for source in sources:
            raw |= self.flat(source, problems)
        own = any(k.startswith("method.") and k != "method.name" for k in raw)
        named = raw.get("method.name", self.default_method)
        method = self.method(self.default_method if str(named) == "auto" else named) if own else None
        found: dict[str, Any] = {}
        for key, value in raw.items():
            kind = self.annotation(key, method)
            if kind is None:
                problems.append(self.unknown(key, method))
                continue
            if kind is RAW:
                found[key] = str(value) if isinstance(value, Word) else value
                continue
            try:
                read = typed.read_word(str(value), kind) if isinstance(value, Word) else typed.fit(value, kind)
                if read is None and isinstance(value, Word) and not value.strip() and not typed.takes_none(kind):
                    problems.append(f"{key}: there is no value after the =.")
                    continue
                found[key] = read
            except typed.Unreadable as error:
                problems.append(f"{key}: '{value}' {error}")
        return found, problems

    def method(self, name: Any) -> type[BaseModel] | None:
        """The class of the method whose settings are read; None if there is none (a check reports this)."""
        from ciod import methods

        name = name.source if isinstance(name, Sourced) else str(name)
        try:
            return methods.find(name) if name and self.default_method else None
        except CiodError:
            return None

    def problems(self, tree: dict[str, Any]) -> list[str]:
        """Messages about wrong types and missing settings; ``tree`` is nested."""
        fields = self.model.model_fields
        missing = [k for k, f in fields.items() if f.is_required() and tree.get(k) in (None, "")]
        filled = {k: v for k, v in tree.items() if k not in missing}
        found = [p for p in problems_of(self.model, filled) if p.partition(":")[0] not in missing]
        return list(dict.fromkeys([*(f"{k}= is needed." for k in missing), *found]))


def _methods_with(setting: str) -> list[str]:
    """Names of the methods that have it."""
    from ciod import methods

    return [n for n in methods.available() if setting in methods.find(n).model_fields]


def split(words: Sequence[str] | None, table: Table | None = None) -> tuple[list[str], dict[str, Any], list[str]]:
    """Plain words (also a file whose name has a "="), ``key=value`` ones as ``Word`` by key, and problems.

    Args:
        table: of the command of these words, where a setting is given once; without it the last value is used.
    """
    plain, found, problems = [], {}, []
    as_given: dict[str, str] = {}  # full key → as it was written: lr=1 train.lr=2 are two values of one setting
    for word in words or []:
        key, eq, text = word.partition("=")
        key = key.strip()
        known = table is not None and table.annotation(table.full(key)) is not None
        if not eq or (table is not None and not known and exists(word)):
            plain.append(word)
        elif not key:
            problems.append(f"'{word}' is not a setting; write key=value, for example epochs=30.")
        else:
            full = table.full(key) if table is not None else key
            other = found.pop(as_given.get(full, ""), text)
            if other != text and table is not None:
                problems.append(twice(key, other, text))
            found[key], as_given[full] = Word(text), key
    return plain, found, problems


def twice(key: str, one: object, other: object) -> str:
    """The sentence about a setting with two values."""
    return f"{key}: it is given twice, as '{one}' and as '{other}'; write it once."


def read(
    table: Table, words: Sequence[str] | None, *, plain: str | None = None
) -> tuple[list[str], dict[str, Any], list[str]]:
    """Plain words, the settings that were given, and every problem, of a command without sections. If there is a
    problem the values are not validated.

    Args:
        plain: begins the message about plain words if the command takes none: "eval takes one model".
    """
    others, given, problems = split(words, table)
    found, more = table.settings(given)
    problems += more
    problems += unreported(table.problems(found), problems)
    if plain is not None:
        problems += [f"{plain}; '{w}' is neither a setting nor needed." for w in others]
    if problems:
        return others, found, problems
    values = table.model.model_validate(found)
    return others, {k: getattr(values, k) for k in found if getattr(values, k) is not None}, []


def unreported(problems: Sequence[str], reported: Sequence[str]) -> list[str]:
    """The problems of settings that have no problem in ``reported`` yet."""
    keys = {p.partition(":")[0] for p in reported}
    return [p for p in problems if p.partition(":")[0] not in keys and p.partition("=")[0] not in keys]


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Full dotted keys → nested sections."""
    tree: dict[str, Any] = {}
    for dotted, value in flat.items():
        *path, leaf = dotted.split(".")
        node = tree
        for part in path:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[leaf] = value
    return tree


def read_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Content of a YAML file of settings, with ``Sourced`` leaves, and its problems."""
    try:
        content = reading.read_yaml(path, sourced=True)
    except reading.Unreadable as e:
        return {}, [str(e)]
    if content is None or without_sources(content) is None:
        return {}, []
    if not isinstance(content, dict):
        return {}, [f"{path} must hold settings (key: value), not a {type(without_sources(content)).__name__}."]
    return {str(k): v for k, v in content.items()}, []


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for key, f in model.model_fields.items():
        if _is_model(f.annotation):
            yield from _leaves(f.annotation, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
