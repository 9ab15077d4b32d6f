"""Writes the tables of docs/scripts.md, what each command prints with ``--json``, from ``ciod/cli/answers.py``.

    python scripts/json_page.py

``tests/test_scripts.py`` fails when the page is not what this writes.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, SOURCE = ROOT / "docs" / "scripts.md", ROOT / "ciod" / "cli" / "answers.py"
BEGIN, END = "<!-- written by scripts/json_page.py -->\n", "<!-- end -->\n"
TYPES = {"str": "text", "int": "number", "float": "number", "bool": "true or false", "None": "null", "Any": "any"}


def kind(annotation: str) -> str:
    """A type in words: ``list[str] | None`` → list of text, or null."""
    parts = annotation.split(" | ")
    if len(parts) > 1:
        return ", or ".join(map(kind, parts))
    if inner := re.fullmatch(r"list\[(.+)\]", annotation):
        return f"list of {kind(inner[1])}"
    if inner := re.fullmatch(r"dict\[str, (.+)\]", annotation):
        return "object" if inner[1] == "Any" else f"object of {kind(inner[1])}"
    return TYPES[annotation]


def tables() -> str:
    """One table per TypedDict, in the order of the source."""
    text = SOURCE.read_text(encoding="utf-8")
    lines, found = text.splitlines(), []
    for node in ast.parse(text).body:
        if not (
            isinstance(node, ast.ClassDef) and "TypedDict" in {b.id for b in node.bases if isinstance(b, ast.Name)}
        ):
            continue
        rows = [f"**{(ast.get_docstring(node) or '').rstrip('.').replace('``', '`')}**", "", "| key | type | |"]
        rows.append("| --- | --- | --- |")
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                what = kind(re.sub(r"dict\[str, float \| None\]", "dict[str, float]", ast.unparse(field.annotation)))
                note = lines[field.lineno - 1].partition("  # ")[2].replace("|", "\\|")
                rows.append(f"| `{field.target.id}` | {what} | {note} |")
        found.append("\n".join(rows))
    return "\n\n".join(found) + "\n"


def page() -> str:
    """The whole page."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n{tables()}\n{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
