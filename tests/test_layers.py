"""A package imports only from packages below it, and no modules import each other in a circle."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import ciod
from ciod.config.load import load
from ciod.data.shapes.scenes import write_shapes
from ciod.runs import fingerprints
from ciod.runs.run import train
from tests.layers import LAYERS, circle, floors, imports, modules, picture, upward

ROOT = Path(ciod.__file__).parent
PAGE = ROOT.parent / "docs" / "architecture.md"
MINE = (("top",), ("left", "right"), ("base",))  # the lines of the package that the tests plant mistakes in


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    return imports(ROOT)


def test_a_package_imports_only_from_those_below_it(found):
    assert upward(found) == []


def test_no_modules_import_each_other_in_a_circle(found):
    assert circle(found) == []


def test_every_package_has_a_line(found):
    assert {name.partition(".")[0] for name in modules(ROOT)} == set(floors())
    assert len([room for line in LAYERS for room in line]) == len(floors()), "a package has two lines"


def test_the_picture_in_the_docs_is_that_of_the_code(found):
    block = re.search(r"```text\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block is not None
    assert block[1] == picture(found), "write the output of python -m tests.layers into docs/architecture.md"


def walk() -> tuple[set[str], set[str]]:
    """The page's files of a training step: those of the numbered walk; those, or folders, that they call."""
    section = PAGE.read_text(encoding="utf-8").partition("## How one training step runs")[2].partition("\n## ")[0]
    steps, _, called = section.partition("These files call others")
    return set(re.findall(r"`ciod/([\w/]+\.py)`", steps)), set(re.findall(r"`([\w/]+(?:\.py|/))`", called))


def test_one_step_crosses_at_most_nine_files_and_each_exists():
    files, called = walk()
    assert 5 <= len(files) <= 9
    assert [f for f in files | called if not (ROOT / f).exists()] == []


class Profile(ciod.Hooks):
    """Notes the files of ciod that run from the end of the first step of the second task to the end of the second."""

    def __init__(self):
        self.files: set[str] = set()

    def on_step(self, at, row):
        if at.task == 1:
            sys.setprofile(self.note if at.done == 1 else None)

    def on_end(self, at):
        sys.setprofile(None)

    def note(self, frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            self.files.add(path.relative_to(ROOT).as_posix())


def test_the_files_of_a_step_are_those_of_the_page(tmp_path):
    data = write_shapes(tmp_path / "data", train=8, val=2, size=64)
    words = ["split=6+4", "detector=yolox-pico", "size=64", "epochs=1", "batch=2", "method=ilyolox", "log_every=1",
             "workers=0", "method.center_score=0", "method.other_score=0", "device=cpu"]  # fmt: skip
    profile = Profile()
    train(load(None, [*words, f"data={data}", f"out={tmp_path / 'run'}"]), hooks=[profile])
    files, called = walk()
    assert files - profile.files == set(), "the page has a file that does not run"
    folders = tuple(f for f in called if f.endswith("/"))
    assert {f for f in profile.files - files - called if not f.startswith(folders)} == set()


def test_the_code_fingerprint_of_a_run_covers_all_that_it_stands_on(found):
    """A new package below ``runs`` is in it, or is listed here because it only shows or sends results."""
    below = {room for room in {name.partition(".")[0] for name in found} if floors()[room] < floors()["runs"]}
    covered = {name.partition("/")[0] for name in fingerprints.of_code("finetune")["files"]}
    assert covered == (below | {"runs"}) - {"report", "trackers"}


# The checks find what they are for ---------------------------------------------------------------------------------


def planted(root: Path, **more: str) -> Path:
    """A package of five modules in good order, with other text in some of them."""
    files = {
        "base/a": "",
        "base/b": "from tiny.base.a import X",
        "left/__init__": "import tiny.base.b",
        "right/c": "from tiny.base import a",
        "top": "from tiny import left\nfrom tiny.right import c",
    }
    for name, text in (files | {k.replace("__", "/"): v for k, v in more.items()}).items():
        file = root / "tiny" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root / "tiny"


def test_a_package_in_order_has_no_edge_upwards(tmp_path):
    found = imports(planted(tmp_path))
    assert found == {
        "base.a": set(), "base.b": {"base.a"}, "left": {"base.b"}, "right.c": {"base.a"}, "top": {"left", "right.c"}
    }  # fmt: skip
    assert upward(found, MINE) == [] and circle(found) == []
    assert picture(found, MINE).splitlines()[0] == "top         → left, right"


@pytest.mark.parametrize(
    "text",
    [
        "from tiny.top import X",
        "import tiny.top",
        "from tiny import top as other",
        "def f():\n    from tiny.top import X",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tiny.top import X",
    ],
)
def test_an_import_upwards_is_found(tmp_path, text):
    found = imports(planted(tmp_path, base__a=text))
    assert upward(found, MINE) == [("base.a", "top")]
    assert circle(found) == ["base.a", "top", "left", "base.b", "base.a"]


def test_an_import_of_a_neighbour_is_found(tmp_path):
    assert upward(imports(planted(tmp_path, right__c="import tiny.left")), MINE) == [("right.c", "left")]


def test_a_circle_inside_a_package_is_found(tmp_path):
    found = imports(planted(tmp_path, base__a="def f():\n    from tiny.base import b"))
    assert upward(found, MINE) == []
    assert circle(found) == ["base.a", "base.b", "base.a"]


def test_a_module_without_a_line_is_found(tmp_path):
    found = imports(planted(tmp_path, stray="import tiny.base.a"))
    assert upward(found, MINE) == [("stray", "base.a")]
