"""pytest -p tests.reached: at the end, the errors and sentences for people that no test has brought about.

Every ``raise`` of a CiodError counts, and every text of three words or more inside a function: a line of a list of
problems, the two halves of a condition, a warning. Modules of ciod are compiled with a note at each of them, so this
sees processes that tests start, too. When the whole suite was run and passed, one that is missing fails it; so it does
when some tests were run, with ``--reached detectors/mmdet/,exporters``, for files whose names begin so.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import importlib.util
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import CodeType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1] / "ciod"
FOLDER = "CIOD_REACHED"  # where every process notes what it reached
NOTE = "_ciod_reached"
WORDS = 3
# Texts that need what a machine for tests may lack, and why.
EXEMPT: dict[str, str] = {}
# Of these files nothing counts where the extra is not installed.
ADAPTER = ("detectors/mmdet/", "detectors/files/mmdet_files.py")
ABSENT = "set CIOD_"  # what says so why a test was skipped
INSTALLED = all(importlib.util.find_spec(name) for name in ("mmdet", "mmcv", "mmengine"))


class Site(NamedTuple):
    """A ``raise`` or a text. ``file`` is relative to the package."""

    file: str
    line: int
    column: int
    text: str

    @property
    def key(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@cache
def people() -> frozenset[str]:
    """Names of CiodError and of every class that inherits from it, as the source has them."""
    bases = {
        node.name: {ast.unparse(b).rpartition(".")[2] for b in node.bases}
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    found = {"CiodError"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return frozenset(found)


@cache
def sites() -> list[Site]:
    """All of the package."""
    names = people()
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        notes = _Notes(path.relative_to(ROOT).as_posix(), names)
        notes.visit(tree)
        found += notes.found
    return found


class _Notes(ast.NodeTransformer):
    """Puts a note at every site: before a ``raise``, around a text."""

    def __init__(self, file: str, names: frozenset[str]):
        self.file, self.names = file, names
        self.inside, self.found = 0, []

    def _note(self, node: ast.AST, text: str) -> str:
        site = Site(self.file, node.lineno, node.col_offset, text)
        self.found.append(site)
        return site.key

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.inside += 1
        docs = ast.get_docstring(node) is not None
        kept = node.body[:1] if docs else []
        node.body = kept + [n for old in node.body[len(kept) :] for n in self._all(old)]
        self.inside -= 1
        return node

    def _all(self, node: ast.AST) -> list:
        new = self.visit(node)
        return new if isinstance(new, list) else [new]

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.inside += 1
        self.generic_visit(node)
        self.inside -= 1
        return node

    def visit_Raise(self, node: ast.Raise) -> list[ast.AST]:
        what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if what is None or ast.unparse(what).rpartition(".")[2] not in self.names:
            self.generic_visit(node)
            return [node]
        key = self._note(node, ast.unparse(node))
        self.generic_visit(node)
        return [ast.copy_location(ast.Expr(_call(key)), node), node]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        text = "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                value.value = self.visit(value.value)
        return self._text(node, text)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return self._text(node, node.value) if isinstance(node.value, str) else node

    def _text(self, node: ast.expr, text: str) -> ast.AST:
        if not self.inside or sum(any(c.isalpha() for c in word) for word in text.split()) < WORDS:
            return node
        return ast.copy_location(_call(self._note(node, text), node), node)

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        node.body = [n for old in node.body for n in self._all(old)]
        return node


def _call(key: str, *value: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(NOTE, ast.Load()), [ast.Constant(key), *value], [])


# In every process --------------------------------------------------------------------------------------------------


class _Loader(importlib.machinery.SourceFileLoader):
    names: frozenset[str] = frozenset()

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        tree = _Notes(Path(path).relative_to(ROOT).as_posix(), self.names).visit(tree)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Finder:
    """Modules of this ciod; others are left to Python."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "ciod":
            return None
        place = ROOT.parent.joinpath(*name.split("."))
        package = (place / "__init__.py").is_file()
        file = place / "__init__.py" if package else place.with_suffix(".py")
        if not file.is_file():
            return None
        return importlib.util.spec_from_file_location(
            name, file, loader=_Loader(name, str(file)), submodule_search_locations=[str(place)] if package else None
        )


def install(names: frozenset[str]) -> None:
    """From here on modules of ciod note what they reach, in a file of this process in the folder that FOLDER names.

    Args:
        names: ``people()``, which takes longer than all the rest of this.
    """
    folder, seen = os.environ[FOLDER], set()
    _open, _write, _close, _pid = os.open, os.write, os.close, os.getpid

    def note(key: str, value: object = None) -> object:
        if key not in seen:
            seen.add(key)
            try:
                # at once, as the process may be killed; opened each time, as tests count open files
                file = _open(f"{folder}/{_pid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                _write(file, f"{key}\n".encode())
                _close(file)
            except OSError:
                seen.discard(key)
        return value

    _Loader.names = names
    setattr(builtins, NOTE, note)
    sys.meta_path.insert(0, _Finder)


def reached() -> set[str]:
    return {line for path in Path(os.environ[FOLDER]).iterdir() for line in path.read_text().splitlines()}


# In pytest ---------------------------------------------------------------------------------------------------------

_CHILD = """
import importlib.util, os
if os.environ.get({folder!r}):
    spec = importlib.util.spec_from_file_location("_reached", {file!r})
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install(frozenset({names!r}))
"""


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--reached",
        metavar="FILES",
        default="",
        help="beginnings of names of files in ciod/, with commas: every error and sentence there must be reached",
    )


def pytest_load_initial_conftests(early_config) -> None:
    """Before pytest's own, as a conftest.py may import ciod. Workers of xdist are children like any other process."""
    if FOLDER in os.environ:
        return
    if "ciod" in sys.modules:
        raise RuntimeError("ciod was imported before tests.reached could see it")
    notes, hook = (Path(tempfile.mkdtemp(prefix=f"ciod-{what}-")) for what in ("reached", "hook"))
    notes.chmod(0o777)  # some tests run as ``nobody``
    hook.chmod(0o755)
    child = _CHILD.format(folder=FOLDER, file=str(Path(__file__).resolve()), names=sorted(people()))
    (hook / "sitecustomize.py").write_text(child)
    os.environ[FOLDER] = str(notes)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])
    early_config.add_cleanup(lambda: [shutil.rmtree(f, ignore_errors=True) for f in (notes, hook)])
    install(people())


def counted(config) -> list[Site]:
    """The sites that this run is to reach."""
    only = tuple(filter(None, config.getoption("reached").split(",")))
    found = [s for s in sites() if f"{s.file}: {s.text}" not in EXEMPT]
    if only:
        return [s for s in found if s.file.startswith(only)]
    return [s for s in found if INSTALLED or not s.file.startswith(ADAPTER)]


def missing(config) -> list[Site]:
    had = reached()
    return [s for s in counted(config) if s.key not in had]


def whole_suite(config) -> bool:
    """No test was left out by the command."""
    chosen = ("keyword", "markexpr", "lf", "failedfirst", "deselect", "ignore", "ignore_glob", "collectonly", "maxfail")
    return config.args_source.name == "TESTPATHS" and not any(config.getoption(o, None) for o in chosen)


def absent(terminalreporter) -> int:
    """How many tests were skipped because photographs, weights or golden cases are not on this machine."""
    return sum(ABSENT in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))


def counts(config) -> bool:
    """Whether a site that is missing fails the tests."""
    if config.getoption("reached"):
        return True
    return whole_suite(config) and not absent(config.pluginmanager.get_plugin("terminalreporter"))


def pytest_sessionfinish(session, exitstatus: int) -> None:
    config = session.config
    if hasattr(config, "workerinput") or exitstatus or not counts(config):
        return
    if missing(config) or not counted(config):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config) -> None:
    lacking, every = missing(config), len(counted(config))
    without = "" if INSTALLED else f"without {' and '.join(ADAPTER)}, whose extra is not installed"
    where = config.getoption("reached") or without
    summary = f"{every - len(lacking)} of {every} errors and sentences for people were reached"
    terminalreporter.write_line(f"{summary} ({where})" if where else summary)
    for site in lacking:
        terminalreporter.write_line(f"  not: ciod/{site.file}:{site.line}: {' '.join(site.text.split())[:100]}")
    if lacking and whole_suite(config) and (skipped := absent(terminalreporter)):
        terminalreporter.write_line(f"  This fails nothing here: {skipped} tests were skipped for lack of their data.")
