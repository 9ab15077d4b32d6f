"""A run under VOC's metric: every place that reports it says which AP it is."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from ciod.config import load as config
from ciod.data.shapes.scenes import write_shapes
from ciod.report.summary import summary_table, verdict
from ciod.runs import run as engine
from ciod.runs.run import train
from ciod.training.progress import Reporter


def test_results_and_report_name_the_metric(tmp_path):
    data = write_shapes(tmp_path / "shapes", train=12, val=6, size=64)
    words = [f"data={data}", "split=6+4", "metric=voc07", "method=finetune", "detector=yolox-pico", "size=64"]
    folder = train(config.load(None, [*words, "epochs=1", "batch=6", "device=cpu", f"out={tmp_path / 'run'}"]))
    results = json.loads((folder / "results.json").read_text())
    assert set(results["ap"]) == {"AP", "AP50", "VOC07"} and "forgetting" in results["continual"]["VOC07"]
    assert results["scenario"]["metric"] == "voc07" and "11-point" in " ".join(results["scenario"]["protocol"])
    assert results["scenario"]["max_detections"] == 100
    for row in results["tasks"]:
        assert "VOC07" in row["all"] and "VOC07" in row["new"]
    console = Console(width=200, record=True)
    console.print(summary_table(results))
    table = console.export_text()
    assert "old VOC07" in table and "all VOC07" in table and "AP50" not in table
    assert "VOC07" in verdict(results) and "AP50" not in verdict(results)
    page = (folder / "report.html").read_text()
    assert page.count("VOC07") > 5 and "11-point" in page
    assert not any("neg_category_ids" in line for line in results["warnings"])


class Stopped(Exception):
    pass


def stop(*_, **__):
    raise Stopped


def test_annotations_of_lvis_under_another_metric_are_warned_of(tmp_path, monkeypatch):
    data = write_shapes(tmp_path / "shapes", train=12, val=6, size=64)
    content = json.loads((data / "val.json").read_text())
    for image in content["images"]:
        image["neg_category_ids"] = []
    (data / "val.json").write_text(json.dumps(content))
    words = [f"data={data}", "split=6+4", "method=finetune", "detector=yolox-pico", "size=64", "device=cpu"]
    console = Console(width=400, record=True)
    monkeypatch.setattr(engine, "train_task", stop)
    with pytest.raises(Stopped):
        train(config.load(None, [*words, "epochs=1", f"out={tmp_path / 'run'}"]), reporter=Reporter(console=console))
    assert console.export_text().count("metric=coco counts detections of the unlabelled objects as false") == 1
