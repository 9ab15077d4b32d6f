"""The code of the README must run unchanged, on real photographs in every format."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ciod.cli import app
from ciod.config import load as config
from ciod.data import formats
from ciod.runs import run as engine
from tests.data.writers import write_coco, write_voc, write_yolo

README = Path(__file__).resolve().parents[1] / "README.md"
SMALL = ["detector=yolox-pico", "epochs=1", "size=64", "batch=8", "device=cpu"]


def commands(verb: str) -> list[list[str]]:
    """Words after ``ciod VERB`` of every such line in a code block."""
    lines = re.findall(rf"^\.venv/bin/ciod {verb} +(.+)$", README.read_text(encoding="utf-8"), re.M)
    return [line.split("#")[0].split() for line in lines]


@pytest.fixture(scope="module")
def photographs(datasets, tmp_path_factory) -> Path:
    """The tiny photographs as coco/, voc/ and yolo/, side by side."""
    root = tmp_path_factory.mktemp("readme")
    for folder, write in (("coco", write_coco), ("voc", write_voc), ("yolo", write_yolo)):
        for split in ("train", "val"):
            write(formats.read(datasets / "tiny", split), root / folder, split)
    return root


def test_a_train_example_for_each_format(photographs, monkeypatch):
    monkeypatch.chdir(photographs)
    examples = commands("train")
    assert {Path(w[0].removeprefix("data=")).parts[0] for w in examples} == {"coco", "voc", "yolo"}
    seen = []
    for words in examples:
        folder = engine.train(config.load(None, [*words, *SMALL]))
        results = json.loads((folder / "results.json").read_text())
        assert (folder / "report.html").stat().st_size > 10_000
        facts = ("new_classes", "old_classes", "train_images", "train_boxes", "hidden_boxes", "test_images")
        seen.append([{k: t[k] for k in facts} for t in results["tasks"]])
    assert len(seen[0]) == 2 and seen[0][1]["hidden_boxes"] == 18
    assert seen[0] == seen[1] == seen[2], "the format must not matter"
    shutil.rmtree(photographs / "runs")


def test_the_comparison_is_one_command(tmp_path, monkeypatch):
    """Unchanged, up to training: three methods and the bound, three seeds, a shared first task each."""
    from ciod.comparison import outcome, plan, schedule
    from ciod.runs import start

    made: list[plan.Plan] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "SHAPES", {"train": 12, "val": 6})
    monkeypatch.setattr(schedule, "run", lambda cells, **given: {"jobs": str(given["jobs"])})
    monkeypatch.setattr(outcome, "write", lambda p, failed: made.append(p) or {"runs": [], **failed})
    monkeypatch.setattr(outcome, "show", lambda *_: None)
    (words,) = commands("compare")
    done = CliRunner().invoke(app, ["compare", *words])
    assert done.exit_code == 0, done.output
    kinds = [c.kind for c in made[0].cells]
    assert {k: kinds.count(k) for k in kinds} == {"first": 3, "joint": 3, "run": 9}
    assert made[0].out == Path("runs/compare-shapes-6+4")


def test_make_targets_exist():
    made = re.findall(r"^make (\w+)", README.read_text(encoding="utf-8"), re.M)
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert set(made) == {"demo", "test", "wheel"}
    assert all(re.search(rf"^{name}:", makefile, re.M) for name in made)


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links and all((README.parent / link).exists() for link in links if "://" not in link)
