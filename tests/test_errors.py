"""What a person can mend is a CiodError with a sentence; anything else that is raised is a contract of the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ciod
from ciod.errors import CiodError
from tests.reached import sites

ROOT = Path(ciod.__file__).parent
# Control flow, abstract methods, Python's own protocols.
ALSO = {"NotImplementedError", "AttributeError", "KeyboardInterrupt", "RunAgain", "typer.Exit",
        "Image.DecompressionBombError"}  # fmt: skip
# Files whose ValueErrors pydantic or the command line turns into sentences.
CONVERTED = {"arguments.py", "detectors/model_file.py"}


def subclasses(cls: type) -> set[str]:
    return {cls.__name__}.union(*(subclasses(c) for c in cls.__subclasses__()))


def raised() -> list[tuple[str, str, str]]:
    """(file:line, what, docstrings around it) of every raise with an exception."""
    found = []

    def visit(node: ast.AST, docs: str, path: Path) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            docs += ast.get_docstring(node) or ""
        if isinstance(node, ast.Raise) and node.exc is not None:
            what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found.append((f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", ast.unparse(what), docs))
        for child in ast.iter_child_nodes(node):
            visit(child, docs, path)

    for path in sorted(ROOT.rglob("*.py")):
        visit(ast.parse(path.read_text(encoding="utf-8")), "", path)
    return found


def test_every_error_is_a_sentence_or_a_contract():
    import importlib
    import pkgutil

    for module in pkgutil.walk_packages(ciod.__path__, "ciod."):
        importlib.import_module(module.name)
    people = subclasses(CiodError)
    strange = []
    for where, what, docs in raised():
        if what in people or what in ALSO or what.rpartition(".")[2].islower():  # lower case: one that was made before
            continue
        if what == "ValueError" and (where.partition(":")[0] in CONVERTED or "ValueError" in docs):
            continue
        strange.append(f"{where} raises {what}")
    assert strange == []


def test_sites_are_found():
    found = sites()
    assert len(found) > 100
    assert all(Path(file).is_file() and line > 0 for file, line in found)


def test_a_sentence_is_one():
    with pytest.raises(CiodError, match=r"There is no detector 'yolox-nanu'; did you mean 'yolox-nano'\?"):
        __import__("ciod.detectors").detectors.find("yolox-nanu")
