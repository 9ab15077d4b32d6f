"""The pages that the documentation site makes itself: the README as its home page, and the table of settings."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from ciod import listing

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_every_setting_has_a_row_in_the_table_of_the_site():
    page = listing.settings_markdown()
    rows = re.findall(r"^\| `([a-z_.]+)` \|", page, re.M)
    assert {"data", "seed", "split", "train.epochs", "detector.name"} <= set(rows)
    assert len(rows) == len(list(listing._setting_rows()))
    assert "``" not in page and not any(row.startswith("protocol.") for row in rows)
    assert "| `train.batch` | `16` | Images" in page


def test_every_table_row_of_the_site_has_three_cells():
    """A `|` inside a default or a note would move the cells."""
    for line in listing.settings_markdown().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4, line
