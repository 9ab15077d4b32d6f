"""The pages on prediction and deployment are right: their code runs unchanged."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ciod
from ciod import cli
from ciod.detectors.files.weights import save_model
from tests.inference.networks import settled

DOCS = Path(__file__).resolve().parents[2] / "docs"


def block(page: str, language: str, n: int = 0) -> str:
    return re.findall(rf"^```{language}\n(.+?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)[n]


def commands(page: str) -> list[list[str]]:
    lines = re.findall(r"^ciod (.+)$", (DOCS / page).read_text(encoding="utf-8"), re.M)
    return [line.split("#")[0].split() for line in lines]


def run(words: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ciod", *words])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code


def test_deploy_runs_without_torch_and_finds_what_the_model_finds(weights, datasets, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    monkeypatch.chdir(tmp_path)
    model = ciod.load(weights / "yolox_nano_coco.pth")
    save_model(tmp_path / "model.safetensors", model)
    photo = sorted((datasets / "tiny" / "images").glob("*.jpg"))[0]
    shutil.copy(photo, tmp_path / "photo.jpg")
    (words,) = commands("deploy.md")
    run(words, monkeypatch)
    guard = "import sys\nfor name in ('torch', 'torchvision', 'ciod'):\n    sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", guard + block("deploy.md", "python")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = [re.fullmatch(r"(.+) (\d[\d.]*) \[(.+)\]", line) for line in done.stdout.splitlines()]
    wanted = model.predict("photo.jpg").to_list()
    assert wanted and len(lines) == len(wanted)
    for line, detection in zip(lines, wanted, strict=True):
        assert line and line[1] == detection["class"]
        assert float(line[2]) == pytest.approx(detection["score"], abs=0.02)  # Pillow resizes a little otherwise
        assert [int(v) for v in line[3].split(",")] == pytest.approx(detection["box"], abs=4)


def test_predict(datasets, tmp_path, monkeypatch, capsys):
    pytest.importorskip("av", reason="PyAV is absent: pip install 'ciod[video]'")
    import numpy as np

    from ciod.inference.video import VideoWriter

    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model.safetensors", settled())
    photos = sorted((datasets / "tiny" / "images").glob("*.jpg"))[:2]
    (tmp_path / "photos").mkdir()
    for photo, names in zip(photos, (("photo.jpg", "photos/a.jpg"), ("other.jpg", "photos/b.jpg"))):
        for name in names:
            shutil.copy(photo, tmp_path / name)
    writer = VideoWriter(tmp_path / "clip.mp4", 25)
    writer.write(0, np.zeros((64, 64, 3), np.uint8))
    writer.close()
    first, second, *_ = commands("predict.md")  # the others need the Hub
    run(first, monkeypatch)
    left = sorted(p.name for p in (tmp_path / "predictions").iterdir())
    assert left == ["a.jpg", "b.jpg", "clip.jsonl", "clip.mp4", "predictions.json"]
    classes = '["cat", "dog"]'
    assert classes in block("predict.md", "python")
    exec(block("predict.md", "python"), {})
    shutil.copytree(datasets / "tiny", tmp_path / "coco")
    run(second, monkeypatch)
    assert (tmp_path / "results.json").is_file()
