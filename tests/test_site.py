"""The pages that the documentation site makes itself: the README as its home page, and the page of settings."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from ciod.comparison import settings as comparison
from ciod.config import catalogue, commands, load
from ciod.config.marks import NO_RESULT, marked
from ciod.config.settings import Run
from ciod.extension import settings as extension

ROOT = Path(__file__).resolve().parents[1]
TABLES = (
    load.TABLE, comparison.TABLE, extension.TABLE, commands.EVAL, commands.PREDICT, commands.EXPORT,
    *commands.EXPORTS.values(), commands.CHECK, commands.DEMO, commands.DOWNLOAD, commands.PUSH,
)  # fmt: skip


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> ModuleType:
    return script("site_pages")


@pytest.fixture(scope="module")
def settings() -> ModuleType:
    return script("settings_page")


@pytest.mark.parametrize(
    ("text", "folder", "page", "expected"),
    [
        ("[a](docs/extend.md#cost)", "", "index.md", "[a](extend.md#cost)"),
        ("![p](docs/images/demo.jpg)", "", "index.md", "![p](images/demo.jpg)"),
        ("[c](CONTRIBUTING.md)", "", "index.md", "[c](contributing.md)"),
        ("[r](../results/cards6.md)", "docs/methods", "methods/erd.md", "[r](../results/cards6.md)"),
        ("[s](../SECURITY.md)", "docs", "security.md", "[s](security-policy.md)"),
        ("[w](https://example.org/a.md)", "", "index.md", "[w](https://example.org/a.md)"),
        ("[here](#the-figure)", "docs/methods", "methods/ilyolox.md", "[here](#the-figure)"),
    ],
)
def test_links_lead_to_the_same_page_on_the_site(site, text, folder, page, expected):
    assert site.rewritten(text, folder, page) == expected


def test_every_page_of_the_root_exists(site):
    assert [source for source in site.PAGES if not (ROOT / source).is_file()] == []


def test_the_page_of_settings_is_that_of_the_code(settings):
    assert settings.PAGE.read_text(encoding="utf-8") == settings.page(), "run python scripts/settings_page.py"
    assert settings.WORDS.read_text(encoding="utf-8") == settings.words(), "run python scripts/settings_page.py"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.model.__name__)
def test_every_setting_has_a_type_and_a_note(table):
    rows = list(catalogue.settings(table.model))
    assert [s.key for s in rows if not s.kind or "<class" in s.kind or "typing" in s.kind] == []
    assert [s.key for s in rows if not s.note] == []
    assert [s.key for s in rows if table.annotation(s.key) is None] == []


def test_the_page_says_which_results_a_setting_changes(settings):
    page = settings.page()
    assert "| `train.batch` (`batch`) | integer ≥ 1 | by effort | all | Images per step" in page
    assert "| `train.workers` (`workers`) | integer ≥ 0 | — | none |" in page
    assert "| `train.teacher` (`teacher`) | exact, folded, bf16, fp16 | `folded` | later tasks |" in page
    assert "| `memory.share` | number > 0, < 1 | `0.5` | later tasks |" in page, "the mark of a section is that of each"
    marks = {s.key: s.changes for s in catalogue.settings(Run)}
    assert {k for k, v in marks.items() if v == "none"} == marked(Run, NO_RESULT)
    assert marks["protocol.split"] == "all" and "| `split` | " in page and "protocol.split" not in page


def test_every_row_of_a_table_has_as_many_cells_as_its_head(settings):
    """A `|` inside a default or a note would move the cells."""
    for line in settings.page().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 6, line
