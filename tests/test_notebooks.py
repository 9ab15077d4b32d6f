"""The notebooks of examples/ run from start to end, and every result that should be shown is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CELL = r"<td[^>]*>([\d.]+)</td>"


def kinds(cell) -> set[str]:
    """What a cell shows: text/html, image/svg+xml, image/png."""
    return {kind for out in cell.outputs for kind in out.get("data", {})}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Every notebook after it ran, in one kernel: importing PyTorch takes longer than they do."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    books = {path.stem: nbformat.read(path, as_version=4) for path in sorted(EXAMPLES.glob("*.ipynb"))}
    for book in books.values():
        nbformat.validate(book)
    place = str(tmp_path_factory.mktemp("notebooks"))
    every = nbformat.v4.new_notebook(cells=[cell for book in books.values() for cell in book.cells])
    nbclient.NotebookClient(every, resources={"metadata": {"path": place}}, timeout=600).execute()
    return {name: [c for c in book.cells if c.cell_type == "code"] for name, book in books.items()}


def test_training_shows_its_run_plots_and_pictures(executed):
    _, matrix, losses, picture, curves = executed["train"]
    html = executed["train"][0].outputs[-1]["data"]["text/html"]
    assert "after task" in html and html.count("<svg") == 3 and "data:image/jpeg" in html
    assert all("image/svg+xml" in kinds(c) for c in (matrix, losses, curves)) and "image/png" in kinds(picture)


def test_extending_shows_the_classes_learnt(executed):
    cells = executed["extend"]
    html = cells[1].outputs[-1]["data"]["text/html"]
    assert "suggested threshold" in html and "Old outputs bit-identical" in html
    assert "image/svg+xml" in kinds(cells[2]) and "image/png" in kinds(cells[3])


def test_comparing_shows_table_and_curves(executed):
    cells = executed["compare"]
    html = cells[0].outputs[-1]["data"]["text/html"]
    assert "pseudo_label" in html and "retention" in html and "<svg" in html
    assert all("image/svg+xml" in kinds(c) for c in cells[1:])
    rows = {
        row[0]: [float(v) for v in row[1:]] for row in re.findall(r">(finetune|pseudo_label)</td>" + 3 * CELL, html)
    }
    forgets, keeps = rows["finetune"], rows["pseudo_label"]  # AP50 of old and new classes, and AP, in %
    assert min(forgets[1], keeps[1]) > 10 and keeps[0] > forgets[0] + 10, "there is something to see"
