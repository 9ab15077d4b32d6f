"""A run under VOC's metric: every place that reports it says which AP it is."""

from __future__ import annotations

import json

from rich.console import Console

from ciod.config import load as config
from ciod.data.shapes.scenes import write_shapes
from ciod.report.summary import summary_table, verdict
from ciod.runs.run import train


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
