"""The benchmark against MMDetection runs from its command line, at a size that measures nothing."""

from __future__ import annotations

import json

import torch

from benchmarks import vs_mmdet


def test_it_runs(tmp_path, monkeypatch, capsys):
    file = tmp_path / "figures.json"
    words = ["--detector", "yolox-pico", "--size", "64", "--batch", "2", "--classes", "3", "--rounds", "1"]
    threads = ["--threads", str(torch.get_num_threads())]
    monkeypatch.setattr("sys.argv", ["vs_mmdet", *words, *threads, "--json", str(file)])
    vs_mmdet.main()
    assert set(json.loads(file.read_text(encoding="utf-8"))["sides"]) == set(vs_mmdet.SIDES)
    printed = capsys.readouterr().out
    assert all(side in printed for side in vs_mmdet.SIDES)
