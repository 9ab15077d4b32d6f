"""How to cite a method: the BibTeX entries of ``papers.bib``."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_OF = re.compile(r"^ *methods *= *\{([^}]*)\},\n", re.M)


@cache
def _entries() -> tuple[tuple[frozenset[str], str], ...]:
    """The methods of each entry, and its text without their names."""
    text = (Path(__file__).parent / "papers.bib").read_text(encoding="utf-8")
    found: list[tuple[frozenset[str], str]] = []
    for entry in re.findall(r"^@.*?^\}$", text, re.M | re.S):
        of = _OF.search(entry)
        assert of is not None
        found.append((frozenset(re.split(r", *", of[1])), _OF.sub("", entry)))
    return tuple(found)


def bibtex(*methods: str) -> str:
    """The entries of these methods, each once; "": they come from no single paper."""
    return "\n\n".join(text for of, text in _entries() if of & set(methods))
