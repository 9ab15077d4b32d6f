"""pytest -p tests.reached: at the end, the errors for people that no test has raised.

Where an error is made is recorded when it is made, so this costs nothing; processes that tests start are not seen.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import ciod
from ciod.errors import CiodError

ROOT = Path(ciod.__file__).parent
NAMES = {"CiodError", "ConfigError", "DataError", "Damaged", "NotFinite", "Taken", "WriteError"}
REACHED: set[tuple[str, int]] = set()


def sites() -> list[tuple[str, int]]:
    """(file, line) of every ``raise`` of an error for people."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in NAMES:
                found.append((str(path), node.lineno))
    return found


def _record(self: CiodError, *args: object) -> None:
    Exception.__init__(self, *args)
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    if frame is not None:
        REACHED.add((frame.f_code.co_filename, frame.f_lineno))


def pytest_configure() -> None:
    CiodError.__init__ = _record  # type: ignore[method-assign]


def pytest_terminal_summary(terminalreporter) -> None:
    every = sites()
    missing = [s for s in every if not any((s[0], line) in REACHED for line in range(s[1], s[1] + 12))]
    terminalreporter.write_line(f"{len(every) - len(missing)} of {len(every)} errors for people were raised; not:")
    for file, line in missing:
        terminalreporter.write_line(f"  {Path(file).relative_to(ROOT.parent)}:{line}")
