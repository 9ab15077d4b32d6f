"""YAML as settings, scenarios and data sets have it: ``no``, ``off``, ``on`` and ``yes`` are words."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ciod.core.errors import CiodError

VALUES = 1_000_000  # of a document, each alias counted as what it stands for: ten lines can mean a billion
_NO_TEXT = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # nor the name of a file, which may have \udc80 to \udcff
_BOOL = "tag:yaml.org,2002:bool"


class NotYAML(CiodError):
    """A text that is no YAML that ciod reads. Readers say of which file."""


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's booleans, ``true`` and ``false``: a class may be called ``no``."""


# Python's yaml is 1.1; the table of a class is shared with its parents unless it gets its own
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != _BOOL]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_untyped: Any = _Loader  # the stubs of yaml leave its resolvers and constructors open
_untyped.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def parse(text: str | bytes) -> Any:
    """Content of one document; None where there is none.

    Raises:
        NotYAML: it is no YAML, asks for more than data, is nested too deeply, contains itself, means more than
            VALUES values, has what is no text, or holds one that is not what it says: a 13th month, ``!!bool perhaps``.
    """
    try:
        loader: Any = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > VALUES:
            raise NotYAML(f"it means more than {VALUES:,} values, by aliases of aliases.")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise NotYAML(str(error)) from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # of its constructors
        raise NotYAML(f"a value that cannot be read: {error}") from error


def _values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node means. ``known``: of nodes seen; None while one is being counted."""
    if id(node) not in known:
        known[id(node)] = None
        if isinstance(node.value, str) and _NO_TEXT.search(node.value):
            raise NotYAML(f"{node.value!r} is no text: it has a null byte or half a character.")
        inside: Any = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values(n, known) for n in inside)
    found = known[id(node)]
    if found is None:
        raise NotYAML("a value contains itself.")
    return found
