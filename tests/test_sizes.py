"""No file is longer than 400 lines, no function longer than 60."""

from __future__ import annotations

import ast
from pathlib import Path

import ciod

ROOT = Path(ciod.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def test_no_file_is_longer_than_400_lines():
    lines = {p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert {name: n for name, n in lines.items() if n > 400} == {}


def test_no_function_is_longer_than_60_lines():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                if (n := node.end_lineno - node.lineno + 1) > 60:
                    long[f"{path.relative_to(ROOT).as_posix()}: {node.name}"] = n
    assert long == {}
