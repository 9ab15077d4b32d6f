"""A package imports only from packages below it, and no modules import each other in a circle."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ciod
from ciod.runs import fingerprints
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


def test_one_step_crosses_at_most_nine_files_and_each_exists():
    section = PAGE.read_text(encoding="utf-8").partition("## How one training step runs")[2].partition("\n## ")[0]
    files = set(re.findall(r"`ciod/([\w/]+\.py)`", section))
    assert 5 <= len(files) <= 9
    assert [f for f in files if not (ROOT / f).is_file()] == []


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
