"""Broken input from good input: bits, bytes, pieces and, where there is structure, values in wrong places."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

TOKENS = [
    b"null", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"[]", b"{}", b'""', b"true", b"9" * 400, b"[" * 3000, b"\0",
    b"\xff\xfe", b"\xef\xbb\xbf", b"&a;", b"<!DOCTYPE a [<!ENTITY a 'b'>]>", b"<object/>", b"!!python/name:os.system",
    b"&x [*x]", b"? ", b": ", b"- ", b"\n", b"\t", b"../../../etc/passwd", b"\xed\xa0\x80", b"0x1f", b"1_0",
    b"2001-01-01", b"2001-13-45", b"&x {a: *x}", b"!!int ''", b"!!bool a", b"!!timestamp a", b"!!set {a}", b"{1: 2}",
    b"{? [a] : b}", b"[[], {}]", b"no", b".inf", b"1:30",
]  # fmt: skip
ASSIGNED = re.compile(rb"[:=] *([^\n,}\]]+)")
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, -(2**63), float("nan"), float("inf"), "", "x", "1e999", "\ud800", "../..", [], {},
    [[]], [None], {"a": None}, [1, 2, 3], [1e308] * 4, "a" * 5000,
]  # fmt: skip


def mutate(content: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes."""
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.5:
            changed = _structure(content, rng)
            if changed is not None:
                content = changed
                continue
        content = _bytes(content, rng, others)
    return content


def _bytes(content: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    i, j = sorted(rng.randint(0, len(content)) for _ in range(2))
    j = min(j, i + rng.choice([1, 4, 64, 10**6]))
    kind = rng.randint(0, 6)
    if kind == 0 and content:
        changed = bytearray(content)
        changed[min(i, len(content) - 1)] ^= 1 << rng.randint(0, 7)
        return bytes(changed)
    if kind == 1:
        return content[:i] + content[j:]
    if kind == 2:
        return content[:j] + content[i:j] + content[j:]
    if kind == 3 and others:
        other = rng.choice(list(others))
        return content[:i] + other[rng.randint(0, len(other)) :]
    if kind == 4:
        return content[:i]
    if kind == 5 and (places := list(ASSIGNED.finditer(content))):  # another value, of YAML or of a word
        place = rng.choice(places)
        return content[: place.start(1)] + rng.choice(TOKENS) + content[place.end(1) :]
    return content[:i] + rng.choice(TOKENS) + content[j if rng.random() < 0.5 else i :]


def _structure(content: bytes, rng: random.Random) -> bytes | None:
    """JSON with a value replaced, a key removed or doubled; also the JSON at the head of a safetensors file."""
    head, tail = b"", b""
    if len(content) > 8 and content[8:9] == b"{":
        size = int.from_bytes(content[:8], "little")
        head, content, tail = b"safetensors", content[8 : 8 + size], content[8 + size :]
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return None
    inner = None
    if head and isinstance(tree, dict) and rng.random() < 0.7:  # the metadata are JSON in JSON
        inner = tree.get("__metadata__")
        try:
            target = json.loads(inner["ciod"]) if isinstance(inner, dict) else tree
        except (KeyError, TypeError, ValueError):
            return None
        target = _change(target, rng)
        if isinstance(inner, dict):
            inner["ciod"] = json.dumps(target)
    else:
        tree = _change(tree, rng)
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + tail if head else text


def _change(tree: Any, rng: random.Random) -> Any:
    places = list(_places(tree))
    if not places:
        return rng.choice(VALUES)
    box, key = rng.choice(places)
    kind = rng.randint(0, 4)
    if kind == 0:
        del box[key]
    elif kind == 1 and isinstance(box, list):
        box.append(box[key])
    elif kind == 2:
        other, place = rng.choice(places)
        box[key] = json.loads(json.dumps(other[place]))
    else:
        box[key] = rng.choice(VALUES)
    return tree


def _places(tree: Any) -> Any:
    if isinstance(tree, dict):
        for key in tree:
            yield tree, key
            yield from _places(tree[key])
    elif isinstance(tree, list):
        for i in range(len(tree)):
            yield tree, i
            yield from _places(tree[i])
