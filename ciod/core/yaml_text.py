"""YAML as settings, scenarios and data sets have it: ``no``, ``off``, ``on`` and ``yes`` are words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeGuard

import yaml

from ciod.core.errors import CiodError

WRITTEN = 100_000  # values in a document: Python's reader takes five seconds for them
VALUES = 1_000_000  # of a document, each alias counted as what it stands for: ten lines can mean a billion
_NO_TEXT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # nor the name of a file, which may have \udc80 to \udcff
_BOOL = "tag:yaml.org,2002:bool"


class NotYAML(CiodError):
    """A text that is not valid YAML for ciod. The caller adds the name of the file."""


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's booleans, ``true`` and ``false``: a class may be called ``no``."""

    written, most = 0, WRITTEN

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Like that of the parent, but counts: reading a file of a few megabytes could take minutes."""
        self.written += 1
        if self.written > self.most:
            raise NotYAML(f"it has more than {self.most:,} values.")
        return super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]


# Python's yaml is 1.1; the table of a class is shared with its parents unless it gets its own
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != _BOOL]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_untyped: Any = _Loader  # the stubs of yaml do not type its resolvers and constructors
_untyped.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


@dataclass(frozen=True)
class Sourced:
    """A value without quotes that YAML takes for something other than text, and what was written: 8 and ``010``."""

    value: Any
    source: str


class _SourcedLoader(_Loader):
    """Keeps what was written beside every number, date, null and the like."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        parent: Any = super()  # the stubs of yaml do not type what it constructs
        value = parent.construct_object(node, deep=deep)
        if not isinstance(node, yaml.ScalarNode) or isinstance(value, (str, Sourced)):
            return value
        return Sourced(value, node.value)


def parse_sourced(text: str | bytes, most: int = WRITTEN) -> Any:
    """Like ``parse``, with ``Sourced`` leaves; keys of mappings stay as written."""
    return _with_text_keys(parse(text, most, _SourcedLoader))


def is_mapping(value: object) -> TypeGuard[dict[Any, Any]]:
    """``isinstance`` for a dict with any content."""
    return isinstance(value, dict)


def is_sequence(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """``isinstance`` for a list or tuple with any content."""
    return isinstance(value, (list, tuple))


def is_set(value: object) -> TypeGuard[set[Any]]:
    """``isinstance`` for a set with any content."""
    return isinstance(value, set)


def _with_text_keys(value: Any) -> Any:
    if is_mapping(value):
        return {k.source if isinstance(k, Sourced) else k: _with_text_keys(v) for k, v in value.items()}
    return [_with_text_keys(v) for v in value] if is_sequence(value) else value


def without_sources(value: Any) -> Any:
    """Only the values, as ``parse`` returns them."""
    if isinstance(value, Sourced):
        return value.value
    if is_mapping(value):
        return {without_sources(k): without_sources(v) for k, v in value.items()}
    if is_sequence(value) or is_set(value):
        return type(value)(without_sources(v) for v in value)
    return value


def parse(text: str | bytes, most: int = WRITTEN, loader_type: type[_Loader] = _Loader) -> Any:
    """Content of one document; None if it is empty.

    Args:
        most: maximum number of values written in it, including keys.

    Raises:
        NotYAML: it is not YAML, has tags other than data, a key twice, is nested too deeply, contains itself, has more
            than ``most`` written values or more than VALUES with aliases, invalid text, or a value that does not fit
            its type: a 13th month, ``!!bool perhaps``.
    """
    try:
        loader: Any = loader_type(text)
        loader.most = most
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > VALUES:
            raise NotYAML(f"it expands to more than {VALUES:,} values through aliases.")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise NotYAML(str(error)) from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # of its constructors
        raise NotYAML(f"a value that cannot be read: {error}") from error


def _refuse_twice(node: yaml.MappingNode) -> None:
    """Python's reader would keep the last of two values of one key silently."""
    seen: dict[tuple[str, Any], yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        first = seen.setdefault((key.tag, key.value), value)
        same = first is value or (isinstance(value, yaml.ScalarNode) and first.value == value.value)
        if not same and key.tag != "tag:yaml.org,2002:merge":
            raise NotYAML(f"the key '{key.value}' is given twice, the second time in line {key.start_mark.line + 1}.")


def _values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Number of values of a node. ``known``: counts of nodes seen so far; None while a node is being counted."""
    if id(node) not in known:
        known[id(node)] = None
        if isinstance(node.value, str) and _NO_TEXT.search(node.value):
            raise NotYAML(f"{node.value!r} is not text: it has a null byte or half a character.")
        inside: Any = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            _refuse_twice(node)
            inside = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(n, known) for n in inside)
    found = known[id(node)]
    if found is None:
        raise NotYAML("a value contains itself.")
    return found
