"""Class names that a reader takes for one: the same except for letter case, spaces or characters that do not show."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from ciod.data.index import Problems


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different names that look the same, in order of appearance."""
    groups: dict[str, dict[str, None]] = {}
    for name in names:
        groups.setdefault(_look(name), {})[name] = None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def listed(names: Iterable[str]) -> str:
    """``cat, Cat``; a name with something that does not show is written with its codes: ``'cat\\u200b'``."""
    return ", ".join(n if n.isprintable() and n == n.strip() and "\u00a0" not in n else ascii(n) for n in names)


def count_joined(written: Mapping[str, Counter[str]], problems: Problems) -> None:
    """Counts the objects whose class is written in a rarer way than another of the same class.

    Args:
        written: class name → how often it is written in which way.
    """
    for name, ways in written.items():
        for way, n in ways.items():
            if way != name and len(ways) > 1:
                kind = "object whose class name is written in another way, joined"
                problems.add(kind, f"{way!a} as {name}")
                problems.counts[kind] += n - 1


def _look(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ")
    return " ".join("".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc")).split())
