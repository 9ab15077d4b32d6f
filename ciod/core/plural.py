"""Counts and lists in sentences: "1 class", "4 classes", "cat, dog, … (80)"."""

from __future__ import annotations

from collections.abc import Sequence


def counted(n: int, noun: str) -> str:
    """A number with its noun."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun[:-1] + 'ie' if noun.endswith('ry') else noun}{'es' if noun.endswith(('s', 'x')) else 's'}"


def few(names: Sequence[str], most: int = 12) -> str:
    """All names, or the first ones and the total number."""
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")
