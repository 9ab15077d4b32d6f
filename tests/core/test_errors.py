"""What a user can fix raises CiodError with a message; any other exception means that code broke a contract."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ciod
from ciod.core.errors import CiodError
from tests.reached import FOLDER, people, sites

ROOT = Path(ciod.__file__).parent
# Control flow, Python's own protocols, and errors that were made elsewhere: what, and the files that may raise it.
ALSO = {
    "AttributeError": {"__init__.py"},
    "Elsewhere": {"comparison/worker.py"},
    "NotChecked": {"contract/detector.py", "contract/losses.py", "contract/method.py"},
    "KeyboardInterrupt": {"core/signals.py"},
    "RunAgain": {"core/signals.py"},
    "typer.Exit": {"cli/__init__.py", "cli/command.py", "cli/others.py"},
    "Image.DecompressionBombError": {"data/images.py"},
    "detections": {"detectors/base.py"},
    "configs.refused": {"detectors/files/hf_files.py"},
    "refused": {"detectors/query/configs.py"},
    "OSError": {"cli/command.py"},
    "self.error": {"training/checkpoint.py"},
    "not_finite": {"training/loop.py"},
    "NotImplementedError": {"detectors/masked_loss.py", "methods/base/method.py"},
}
# Files whose ValueErrors pydantic, the command line or the file itself turns into sentences.
CONVERTED = {"data/augment.py", "data/masks.py", "data/scenarios/protocol.py", "data/scenarios/subsets.py",
             "detectors/mmdet/config.py",
             "detectors/files/model_file.py", "detectors/onnx/written.py"}  # fmt: skip
# Where a contract of the code is a ValueError. Each is in the docstring of what raises it.
CONTRACTS = {"core/types.py", "data/formats/__init__.py", "data/index.py", "evaluation/ap.py",
             "evaluation/continual.py", "evaluation/lvis.py", "evaluation/open_world.py", "evaluation/voc.py",
             "report/draw.py"}  # fmt: skip


def strange(source: str, file: str) -> list[str]:
    """Everything in a module that could end in a traceback, or in a message that is not a CiodError."""
    found = []

    def say(node: ast.AST, what: str) -> None:
        found.append(f"{file}:{node.lineno} {what}")

    def visit(node: ast.AST, docs: str) -> None:
        if isinstance(node, ast.ClassDef):
            docs = ast.get_docstring(node) or ""
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            own = ast.get_docstring(node) or ""
            docs = docs + own if node.name.startswith("_") else own  # a private one, as a part of its class says it
        if isinstance(node, ast.Raise) and node.exc is not None:
            what = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            documented = file in CONTRACTS and re.search(r"ValueError:|Raises ValueError for", docs)
            if what.rpartition(".")[2] in people() or file in ALSO.get(what, ()):
                pass
            elif what != "ValueError" or not (file in CONVERTED or documented):
                say(node, f"raises {what}")
        if isinstance(node, ast.Assert) and node.msg is not None:
            say(node, "asserts with a message")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "SystemExit", "quit"):
            given = node.args[0] if node.args else None
            text = isinstance(given, (ast.JoinedStr, ast.BinOp)) or isinstance(getattr(given, "value", None), str)
            if text and file != "report/knowledge.py":
                say(node, "exits with a message")
        for child in ast.iter_child_nodes(node):
            visit(child, docs)

    visit(ast.parse(source), "")
    return found


def test_every_error_is_a_sentence_or_a_contract():
    found = [
        line
        for path in sorted(ROOT.rglob("*.py"))
        for line in strange(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('The disk is full.')",
        "raise ValueError('epochs must be positive')",
        "def f():\n '''Raises:\n    ValueError: always.'''\n raise ValueError('x')",  # no place for a contract
        "error = ValueError('x')\nraise error",
        "raise made()",
        "raise KeyError",
        "assert 1 < 0, 'one is more'",
        "import sys\nsys.exit('The disk is full.')",
        "import sys\nsys.exit(f'{1} is full.')",
        "raise SystemExit('The disk is full.')",
        "class CiodErrors(Exception): pass\nraise CiodErrors('x')",
        "raise AttributeError('x')",
    ],
)
def test_an_error_that_is_not_for_people_is_found(source):
    assert strange(source, "some.py")


def test_contracts_are_documented():
    bare = "class A:\n  'ValueError: elsewhere.'\n  def f(self):\n    raise ValueError('x')"
    assert strange(bare, "core/types.py") == ["core/types.py:4 raises ValueError"]
    assert strange("def f():\n  'Raises:\\n ValueError: x.'\n  raise ValueError('x')", "core/types.py") == []


def test_people_are_all_that_inherit():
    import importlib
    import pkgutil

    def names(cls: type) -> set[str]:
        return {cls.__name__}.union(*(names(c) for c in cls.__subclasses__() if c.__module__.startswith("ciod")))

    for module in pkgutil.walk_packages(ciod.__path__, "ciod."):
        importlib.import_module(module.name)
    assert people() == names(CiodError)


def test_sites_are_found():
    found = sites()
    assert len(found) > 600 and len({s.key for s in found}) == len(found)
    assert all((ROOT / s.file).is_file() and s.line > 0 for s in found)
    assert any(s.file == "training/loop.py" or s.text.startswith("raise ConfigError") for s in found)


def test_a_sentence_that_no_test_reaches_fails_the_tests():
    words = ["-p", "tests.reached", "--reached", "report/published.py", "tests/report/test_published.py"]
    env = {k: v for k, v in os.environ.items() if k != FOLDER and not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *words, "-k", "not without_a_source"],
        capture_output=True, text=True, env=env, cwd=ROOT.parent,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 of 1 errors and sentences for people were reached (report/published.py)" in done.stdout
    assert "not: ciod/report/published.py:" in done.stdout and "no source " in done.stdout


def test_a_sentence_is_one():
    with pytest.raises(CiodError, match=r"There is no detector 'yolox-nanu'; did you mean 'yolox-nano'\?"):
        __import__("ciod.detectors").detectors.find("yolox-nanu")
