"""The report: whole, self-contained, escaped, and there even when pieces of the run are not."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciod.core.errors import CiodError
from ciod.report.comparison import write_comparison
from ciod.report.page import read_results, read_run, write_report

from . import fake

_VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what is shown and what is linked."""

    def __init__(self, path: Path):
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.html = path.read_text("utf-8")
        self.feed(self.html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in _VOID:
            self.stack.append(tag)
        self.links += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "li"):
            while self.stack[-1] != tag:
                self.stack.pop()
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text += data


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)


def test_report_has_everything_in_order(tmp_path: Path) -> None:
    fake.write_run(tmp_path, fake.results((6, 4), nulls=("class 2",), warnings=("The teacher found nothing.",)))
    picture(tmp_path / "task-2" / "examples" / "a.jpg")
    out = write_report(tmp_path)
    page = Page(out)
    assert out == tmp_path / "report.html"
    order = [
        "shapes-6+4 · ilyolox",
        "After learning 4 new classes",
        "The teacher found nothing.",
        "After each task",
        "Protocol",
        "AP of each class",
        "Old, new and all classes",
        "What happened to each old class",
        "Losses",
        "Predictions on test images",
        "How to repeat this",
        "ciod train scenario=shapes-6+4 method=ilyolox 'name=a & b'",
        "2 cores, no GPU",
    ]
    places = [page.text.index(t) for t in order]
    assert places == sorted(places)
    assert "Task 2 trained on 312 images with 900 boxes; 44 boxes of old classes and 5 boxes of future" in page.text
    assert "90.0\u00a0%" in page.text and "unfinished" not in page.text.lower()
    assert sum(link.startswith("data:image/jpeg;base64,") for link in page.links) == 1


def test_additional_images_of_a_task_are_listed(tmp_path: Path) -> None:
    found = fake.results((4, 2))
    assert "Beside them" not in Page(write_report(fake.write_run(tmp_path / "plain", found))).text
    found["tasks"][1] |= {"memory_images": 1, "pool_images": 4952}
    text = Page(write_report(fake.write_run(tmp_path / "both", found))).text
    assert text.count("It also saw 1 image of earlier tasks and 4,952 pictures of a pool, without labels.") == 1
    many = fake.results((1, 1, 1, 1, 1))
    many["tasks"][4]["memory_images"] = 50
    assert "The last task also saw 50 images" in Page(write_report(fake.write_run(tmp_path / "many", many))).text


def test_self_contained(tmp_path: Path) -> None:
    fake.write_run(tmp_path, fake.results((4, 2)))
    picture(tmp_path / "task-2" / "examples" / "a.png")
    page = Page(write_report(tmp_path))
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"@import|url\((?!#)", page.html)


def test_everything_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"'&"
    found = fake.results((2, 2), names=[bad, "b", f"{bad}2", "d"], method=bad, warnings=(bad,))
    found["scenario"] |= {"name": bad, "data": bad, "protocol": [bad], "order": [bad]}
    found["method"]["settings"] = {bad: bad}
    fake.write_run(tmp_path / "run", found)
    (tmp_path / "run" / "run.yaml").write_text(
        f"command: |\n  {bad}\nmachine: '<img src=x>'\nversions: {{'<b>': '<i>'}}\nextra: |\n  {bad}\n"
    )
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "task": 1, "step": 99, "losses": {"<script>": 1}}\n')
    picture(tmp_path / "run" / "task-2" / "examples" / '"><script>.png')
    page = Page(write_report(tmp_path / "run"))
    assert "script" not in page.tags and not page.tags & {"i"}
    assert "<script" not in page.html and "<img src=x" not in page.html and "<i>" not in page.html
    assert page.text.count(bad) > 5
    compared = Page(write_comparison({bad: tmp_path / "run", "b": tmp_path / "run"}, tmp_path / "c.html"))
    assert "script" not in compared.tags and bad in compared.text


@pytest.mark.parametrize("missing", ["run.yaml", "results.json", "metrics.jsonl"])
def test_missing_pieces(tmp_path: Path, missing: str) -> None:
    fake.write_run(tmp_path, fake.results((6, 4)))
    (tmp_path / missing).unlink()
    page = Page(write_report(tmp_path))
    assert ("unfinished" in page.text.lower()) == (missing == "results.json")
    assert ("no run.yaml" in page.text) == (missing == "run.yaml")


@pytest.mark.parametrize("left", ["run.yaml", "results.json", "metrics.jsonl"])
def test_one_piece_is_enough(tmp_path: Path, left: str) -> None:
    fake.write_run(tmp_path, fake.results((6, 4)))
    for path in tmp_path.iterdir():
        if path.name != left:
            path.unlink()
    Page(write_report(tmp_path))


def test_sparse_results(tmp_path: Path) -> None:
    fake.write_run(
        tmp_path,
        {"format": 1, "tasks": [{"new_classes": ["a"]}, {"new_classes": ["b"], "old_classes": ["a"], "old": None}]},
    )
    page = Page(write_report(tmp_path))
    assert "not known" in page.text


def test_unfinished(tmp_path: Path) -> None:
    fake.write_run(tmp_path, fake.results((6, 4), tasks=1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "ta')
    page = Page(write_report(tmp_path))
    assert "Unfinished, 1 of 2 tasks done." in page.text


@pytest.mark.parametrize("split", [(1,), (8,) * 10, (20, 5, 5, 5, 5), (1, 1)])
def test_shapes(tmp_path: Path, split: tuple[int, ...]) -> None:
    fake.write_run(tmp_path, fake.results(split))
    page = Page(write_report(tmp_path))
    assert len(page.html) < 900_000


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(CiodError, match="not a run folder"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(CiodError, match=r"results\.json is not JSON"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text('{"format": 2}')
    with pytest.raises(CiodError, match="format"):
        write_report(tmp_path)
    (tmp_path / "run.yaml").write_text("a: [")
    with pytest.raises(CiodError, match=r"run\.yaml is not YAML"):
        write_report(tmp_path)
    (tmp_path / "run.yaml").write_text("- a list")
    with pytest.raises(CiodError, match=r"run\.yaml is not a mapping of settings\."):
        read_run(tmp_path)
    with pytest.raises(CiodError, match="no runs"):
        write_comparison({}, tmp_path / "c.html")
    with pytest.raises(CiodError, match="cannot be compared"):
        write_comparison({"x": tmp_path / "nowhere"}, tmp_path / "c.html")


def test_comparison_page(tmp_path: Path) -> None:
    folders = {}
    for name, keep in (("finetune", 0.05), ("our way", 0.9)):
        folders[name] = fake.write_run(tmp_path / "runs" / name, fake.results((6, 4), keep=keep, method=name))
        picture(folders[name] / "task-2" / "examples" / "same.jpg")
        picture(folders[name] / "task-2" / "examples" / f"only {name}.jpg")
    folders["joint"] = fake.write_run(tmp_path / "runs" / "joint", fake.results((6, 4), joint=True))
    write_report(folders["our way"])
    page = Page(write_comparison(folders, tmp_path / "pages" / "compare.html"))
    links = [link for link in page.links if not link.startswith(("#", "data:image/jpeg"))]
    assert links == ["../runs/our%20way/report.html"], "relative, and only to pages that exist"
    assert page.html.count("data:image/jpeg") == 2
    assert "keeps only 5.0" in page.text and "old AP50 before" in page.text


def test_results_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format": 1, "tasks": 3}')
    with pytest.raises(CiodError, match=r"results\.json does not contain the results of a run: "):
        read_results(tmp_path)


def test_an_extension_without_old_pictures_reports_what_is_known(tmp_path):
    """The new classes first, then what is known of the old ones; no AP of old or of all classes, no table of dashes,
    and no word of tasks, teachers and students."""
    (tmp_path / "results.json").write_text(json.dumps(fake.extension()))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    text = page.replace("\u00a0", " ")
    assert "Old and new model agree on 93.8 % of the objects of the 2 old classes" in text
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles[:2] == ["What was learnt", "Old and new model: agreement"]
    name = fake.extension()["scenario"]["classes"][2]
    row = re.search(rf'<td class="left name">{name}</td>(.*?)</tr>', text)
    assert row and re.findall(r">([^<>]+)</td>", row[1]) == ["50.0", "50.0", "5 of 9", "0.125", "0.41"]
    assert "What happened to each old class" not in text and "agreement, not accuracy" in text
    visible = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.S).lower()
    assert not re.search(r"\b(tasks?|teacher|student)\b", visible)


def test_what_did_not_change_is_folded_away(tmp_path):
    found = fake.extension()
    for row in found["extension"]["retention"]["rows"]:
        row |= {"before": 4, "after": 4, "kept": 1.0}
    found["extension"]["unchanged"] = {"images": 8, "identical": 8, "boxes": 3, "listed": 3}
    (tmp_path / "results.json").write_text(json.dumps(found))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<details><summary>All 2 old classes: nothing changed</summary>" in page
    assert "Old outputs bit-identical, checked on 8 pictures." in page


def test_pages_have_colours_for_the_dark(tmp_path):
    """Every colour of the page is a variable, which the dark scheme sets too; figures turn their lightness over."""
    fake.write_run(tmp_path, fake.results((2, 1)))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"(--[\w-]+): (#\w+);", rule)) for rule in re.findall(r":root {(.*?)}", page)[:2])
    assert light.keys() == dark.keys() and not {k for k in light if light[k] == dark[k]}
    assert "figure svg { filter: invert(1) hue-rotate(180deg); }" in page
    style = re.sub(r":root {.*?}|@media print.*", "", page[page.index("<style>") : page.index("</style>")], flags=re.S)
    assert re.findall(r"(?:color|background|border[\w-]*): [^;]*#[0-9a-f]{3,6}", style) == [
        "border-left: 4px solid #d97706"  # the mark of warnings, which is seen on both
    ]
