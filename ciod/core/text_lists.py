"""Lists and mappings of names as people write them, ``[cat, hot dog]`` and ``{cat: Cat}``: read, and written.

Names are text: everything between two commas is the name, whatever YAML would make of it. A name with a comma, a
bracket or a colon needs quotes. What ``written_list`` and ``written_mapping`` write is read back unchanged, here and in
a YAML file.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from ciod.core import yaml_text
from ciod.core.errors import did_you_mean, nearest

DEEPEST = 2  # lists in lists, as a split has them; a bracket below that is part of a name
_QUOTED = r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^']|'')*'"
_ITEM = re.compile(rf"\s*({_QUOTED})\s*(?=[,\]])", re.DOTALL)
_PAIR = re.compile(
    rf"\s*(?P<key>{_QUOTED}|[^,]*?)\s*:(?:\s+|$|(?=[\"']))(?P<value>{_QUOTED}|[^,]*?)\s*(?:,|$)", re.DOTALL
)
_TIGHT = re.compile(r"\s*(?P<key>[^,:]+):(?P<value>[^,:]*?)\s*(?:,|$)")  # {a:b}
_PLAIN = re.compile(r"\w(?:[\w .+/()-]*[\w+/()-])?")


class Plain(str):
    """A name that was written without quotes; where a number is expected, it may be one."""


Names = list[Any]  # of Plain, str, and lists of them


def read_list(text: str) -> Names | None:
    """``[a, [b, "c, d"]]`` → its names; None if the text is not one complete list in brackets."""
    text = text.strip()
    if not text.startswith("["):
        return None
    found, end = _list(text, 0, 1)
    return found if end == len(text) else None


def read_names(text: str) -> Names | None:
    """Like ``read_list``, for text that may lack the outer brackets: ``cat,dog``. None: brackets that do not match."""
    found = read_list(text)
    if found is not None or text.lstrip().startswith(("[", "{")):
        return found
    found, end = _list(f"[{text}]", 0, DEEPEST)
    if found is None or end != len(text) + 2:  # there is a bracket inside
        return [Plain(part.strip()) for part in text.split(",")]
    return found


def _list(text: str, start: int, depth: int) -> tuple[Names | None, int]:
    """The list that begins with the bracket at ``start``, and the position after it; None if it does not end."""
    found: Names = []
    at = start + 1
    while True:
        quoted = _ITEM.match(text, at)
        if quoted:
            found.append(_unquoted(quoted[1]))
            at = quoted.end()
        else:
            at += len(text[at:]) - len(text[at:].lstrip())
            inner, end = _list(text, at, depth + 1) if depth < DEEPEST and text[at : at + 1] == "[" else (None, at)
            behind = text[end:].lstrip()[:1]
            if inner is not None and behind and behind in ",]":
                found.append(inner)
                at = end + text[end:].index(behind)
            else:
                end = _end_of_plain(text, at)
                name = text[at:end].strip()
                if name or text[end : end + 1] == ",":
                    found.append(Plain(name))
                at = end
        if at >= len(text):
            return None, at
        at += 1
        if text[at - 1] == "]":
            return found, at


def _end_of_plain(text: str, at: int) -> int:
    """Where a name without quotes ends: at a comma, or at a bracket that it has not opened itself."""
    opened = 0
    while at < len(text) and (text[at] != "," or opened) and (text[at] != "]" or opened):
        opened += {"[": 1, "]": -1}.get(text[at], 0)
        at += 1
    return at


def read_mapping(text: str) -> dict[str, str] | None:
    """``{a: b, "c, d": e}`` → its pairs; None if it is not a mapping, or a name without quotes has a comma or colon.

    ``{Hot Dog, Bun: hot dog, bun}`` can only mean one pair, and is read as that; in ``{a: b, c}`` a value may be
    missing.
    """
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    inside = text[1:-1].strip()
    found: dict[str, str] = {}
    at = 0
    while at < len(inside):
        pair = _PAIR.match(inside, at) or _TIGHT.match(inside, at)
        if pair is None:
            sides = re.split(r":\s+", inside)
            one = len(sides) == 2 and all(sides) and "," in sides[0] and '"' not in inside
            return {sides[0]: sides[1]} if one else None
        key, value = _unquoted(pair["key"]), _unquoted(pair["value"])
        if not key or not value:
            return None
        found[key] = value
        at = pair.end()
    return found


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        with contextlib.suppress(yaml_text.NotYAML):
            return str(yaml_text.parse(text))
        return text[1:-1]
    return text.strip()


def quoted(name: str) -> str:
    """A name as an entry of a list or mapping, in double quotes where it could be read as something else."""
    if _PLAIN.fullmatch(name) and name.isprintable():
        with contextlib.suppress(yaml_text.NotYAML):
            if yaml_text.parse(name) == name:
                return name
    kept = "".join(
        f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in name
    )  # YAML may read other characters as the end of a line
    return f'"{kept}"'


def near_name(key: str, name: str, known: Sequence[str]) -> str:
    """The end of a message about an absent class: the nearest name, and how it is written where it needs quotes."""
    near = nearest(name, known)
    hint = did_you_mean(name, known)
    return hint if near is None or quoted(near) == near else f"{hint} In {key}= it is written {quoted(near)}."


def written_list(names: Sequence[str]) -> str:
    """Inverse of ``read_list``.

    >>> written_list(["cat", "hot dog, bun", "007"])
    '[cat, "hot dog, bun", "007"]'
    """
    return f"[{', '.join(map(quoted, names))}]"


def written_mapping(pairs: Mapping[str, str]) -> str:
    """Inverse of ``read_mapping``."""
    return f"{{{', '.join(f'{quoted(a)}: {quoted(b)}' for a, b in pairs.items())}}}"


def word(key: str, text: str) -> str:
    """``key=text`` to paste into a shell."""
    return f"{key}={shlex.quote(text)}"


def alike(a: str, b: str) -> bool:
    """Whether two names differ in case, spaces, punctuation, width of the letters (ｃａｔ) or plural only.

    >>> alike("Traffic-Lights", "traffic light"), alike("buses", "bus"), alike("glass", "gas")
    (True, True, False)
    """
    return bool(_forms(a) & _forms(b))


def _forms(name: str) -> set[str]:
    """The bare word, and what it may be the plural of."""
    word = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())
    forms = {word}
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
        if word.endswith("ies"):
            forms.add(word[:-3] + "y")
        elif word.endswith("es"):
            forms.add(word[:-2])
    return forms
