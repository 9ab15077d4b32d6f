"""What a notebook shows of a run, and the plots of a report as figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import ciod
from ciod.core.errors import CiodError
from ciod.report import extended
from ciod.report.notebook import Compared, Run
from tests.report import fake


@pytest.fixture
def run(tmp_path) -> Run:
    folder = fake.write_run(tmp_path / "run", fake.results((2, 1)))
    (folder / "task-2" / "examples").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "task-2" / "examples" / "a.jpg")
    return Run(folder)


def test_a_run_is_its_results_and_shows_itself(run):
    assert run == json.loads((run.folder / "results.json").read_text()) and isinstance(run, dict)
    html = run._repr_html_()
    assert "after task" in html and html.count("<svg") == 3 and html.count("<img") == 1 and "<script" not in html


def test_an_extension_shows_the_new_classes_first(tmp_path):
    fake.write_run(tmp_path, fake.extension())
    html = Run(tmp_path)._repr_html_()
    assert html.index("suggested threshold") < html.index("<svg") and "0.41" in html
    assert extended.name_of({"class": "cat", "what": "known, AP50 before 40.0"}) == "cat (known, AP50 before 40.0)"


@pytest.mark.parametrize("name", ["ap_matrix", "task_curves", "class_change", "losses"])
def test_plots_of_a_run_are_figures(run, name):
    for given in (run, run.folder, str(run.folder)):
        figure = getattr(ciod.plot, name)(given)
        assert isinstance(figure, Figure)
    assert figure._repr_svg_().lstrip().startswith("<?xml")
    figure.savefig(run.folder / "a.pdf")


def test_plots_of_a_comparison(tmp_path):
    rows = []
    for name, keep in (("finetune", 0.1), ("ilyolox", 0.9)):
        fake.write_run(tmp_path / name, fake.results((2, 1), keep=keep, method=name))
        rows.append({"label": name, "folder": name, "status": "finished"})
    rows.append({"label": "erd", "folder": None, "status": "failed"})
    content = {"runs": rows, "against": "finetune", "margin": None, "differences": []}
    (tmp_path / "compare.json").write_text(json.dumps(content))
    compared = Compared(content, tmp_path)
    html = compared._repr_html_()
    assert "2 runs, 1 failed" in html and "<svg" in html and "ilyolox" in html
    for name in ("curves", "stability_plasticity", "class_tasks"):
        assert isinstance(getattr(ciod.plot, name)(compared), Figure)
        assert isinstance(getattr(ciod.plot, name)(tmp_path), Figure)
    with pytest.raises(CiodError, match=r"plot\.forest: there is nothing to draw"):
        ciod.plot.forest(compared)
    assert "No run is finished." in Compared({"runs": []}, tmp_path)._repr_html_()
