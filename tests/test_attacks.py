"""Files made to hang ciod, to fill the memory, or to start a program, wherever a user may point at them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ciod import api, cli, detectors
from ciod.config import load as config
from ciod.core import reading
from ciod.core.errors import CiodError, ConfigError, DataError
from ciod.core.yaml_text import WRITTEN, NotYAML, parse
from ciod.data import formats, images
from ciod.data.images import save_image
from ciod.data.index import Problems
from ciod.data.scenarios import scenario
from ciod.detectors.base import Detector
from ciod.detectors.files import weights
from ciod.detectors.mmdet import config as mmdet
from ciod.inference import images as inference
from ciod.report import page
from tests.data.writers import sample_index, write_coco

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9_999_999, "height": 9_999_999}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    "categories": [{"id": 1, "name": "cat"}],
}
DEVICE = "/dev/null"  # any device: what reads one may read /dev/zero, which has no end
linux = pytest.mark.skipif(not os.path.exists(DEVICE), reason="there are no devices as files here")  # noqa: PTH110


def tiny() -> Detector:
    torch.manual_seed(0)
    return detectors.build(("cat",), name="yolox-pico", size=64).eval()


# Devices and pipes ----------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("suffix", ["", ".json", ".yaml"])
def test_a_device_is_not_a_data_set(tmp_path, suffix):
    (tmp_path / f"data{suffix}").symlink_to(DEVICE)
    with pytest.raises(DataError, match="is not a regular file but a device"):
        formats.recognise(tmp_path / f"data{suffix}")


def voc(folder: Path) -> None:
    for name in ("Annotations/a.xml", "JPEGImages/a.jpg", "ImageSets/Main/train.txt"):
        pipe(folder / name)


def yolo(folder: Path) -> None:
    for name in ("images/train/a.jpg", "labels/train/a.txt"):
        pipe(folder / name)
    (folder / "data.yaml").write_text("names: [cat]\ntrain: images/train\n")


def coco(folder: Path) -> None:
    pipe(folder / "images" / "a.jpg")
    (folder / "train.json").write_text(json.dumps(COCO))


def labelme(folder: Path) -> None:
    pipe(folder / "a.json")


def coco_itself(folder: Path) -> None:
    pipe(folder / "train.json")


def pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


@linux
@pytest.mark.parametrize("write", [voc, yolo, coco, labelme, coco_itself], ids=lambda w: w.__name__)
def test_pipes_in_a_data_set_are_not_waited_for(tmp_path, write):
    write(tmp_path)
    with pytest.raises(DataError):
        formats.read(tmp_path)


@linux
def test_pipes_as_pictures_videos_and_files_of_a_run(tmp_path):
    for name in ("a.jpg", "a.mp4", "results.json", "m.safetensors"):
        pipe(tmp_path / name)
    with pytest.raises(DataError, match="is not a regular file"):
        images.read_image(tmp_path / "a.jpg")
    passed = Problems()
    with pytest.raises(CiodError, match="There is no picture"):
        inference.files(tmp_path, problems=passed)
    assert passed.lines() == [f"1 × device, pipe or socket, skipped: {tmp_path / 'a.jpg'}"]
    with pytest.raises(CiodError, match=r"results\.json is not a regular file"):
        page.read_results(tmp_path)
    with pytest.raises(CiodError, match="There is no model file"):
        api.evaluate(tmp_path / "m.safetensors", tmp_path)
    with pytest.raises(CiodError, match="There is no settings file"):
        config.load(tmp_path / "a.mp4")


# Bombs ----------------------------------------------------------------------------------------------------------------


def test_yaml_of_very_many_keys_is_refused_early():
    with pytest.raises(NotYAML, match="more than 1,000 values"):
        parse("\n".join(f"a{i}:" for i in range(400_000)), most=1000)
    assert WRITTEN <= 100_000


@pytest.mark.parametrize("read", [config.load, lambda p: scenario.read_protocol(str(p))], ids=["settings", "scenario"])
def test_settings_of_very_many_keys(tmp_path, read, monkeypatch):
    assert reading.VALUES <= 20_000
    monkeypatch.setattr(reading, "VALUES", 1000)
    path = tmp_path / "s.yaml"
    path.write_text("\n".join(f"a{i}:" for i in range(30_000)))
    with pytest.raises(CiodError, match=r"s\.yaml is not YAML: it has more than 1,000 values"):
        read(path)
    path.write_text("#" * (2 << 20))
    with pytest.raises(CiodError, match=r"s\.yaml has 2 MB; at most 1 MB are read"):
        read(path)


def test_of_very_many_problems_some_are_shown():
    assert str(ConfigError(f"a{i}." for i in range(100))).endswith("  40. a39.\n  … and 60 more")


def test_an_unreadable_picture_is_scored_at_the_size_of_the_network(tmp_path):
    """Annotated as 9,999,999 × 9,999,999 pixels: 300 TB that must not be allocated."""
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    save_image(tmp_path / "b.jpg", np.zeros((8, 8, 3), np.uint8))
    content = {**COCO, "images": [*COCO["images"], {"id": 2, "file_name": "b.jpg", "width": 8, "height": 8}]}
    (tmp_path / "val.json").write_text(json.dumps(content))
    index = formats.read(tmp_path, "val", check="files")
    assert [list(s) for s in index.sizes] == [[9_999_999] * 2, [8, 8]]
    from ciod.config.load import Evaluation
    from ciod.evaluation.detect import evaluate

    table, found, broken = evaluate(tiny(), index, Evaluation(batch=2))
    assert len(found) == 2 and broken == [str(tmp_path / "a.jpg")] and table.overall["AP"] is not None


# Models that lead to other files --------------------------------------------------------------------------------------

HEAD = {"type": "RetinaHead", "num_classes": 1}


@pytest.fixture
def engine(monkeypatch):
    """As if MMDetection were installed; what a config file would do is done by reading it."""
    ran: list[str] = []
    monkeypatch.setattr(mmdet, "require", lambda: None)
    monkeypatch.setattr(mmdet, "read", lambda given: ran.append(given) or {"bbox_head": HEAD})
    return ran


def model_file(path: Path, **detector: Any) -> Path:
    meta = {"format": 1, "class_names": ["a"], "detector": detector, "blocks": [1], "lineage": []}
    save_file({"x": torch.zeros(1)}, path, metadata={"ciod": json.dumps(meta)})
    return path


COMMANDS = {
    "predict": "predict MODEL PICTURE out=OUT",
    "eval": "eval MODEL data=DATA",
    "export": "export MODEL onnx=OUT.onnx",
    "export to MMDetection": "export MODEL mmdet=OUT",
    "extend": "extend MODEL data=DATA out=OUT",
    "train": "train data=DATA weights=MODEL out=OUT split=1+1 detector=yolox-pico size=64",
    "compare": "compare data=DATA weights=MODEL out=OUT split=1+1 methods=finetune upper=none detector=yolox-pico",
    "list": "list MODEL",
}


NAMES = ("mmdet:evil.py", "evil.py:Evil", "hf:someone/evil")
PAIRS = [(c, n) for c in COMMANDS for n in NAMES if c != "compare" or n == NAMES[0]]  # compare starts processes


@pytest.mark.parametrize(("command", "name"), PAIRS)
def test_a_model_file_starts_no_other_file(tmp_path, engine, command, name, monkeypatch, capfd):
    write_coco(sample_index(tmp_path / "source", names=("cat", "dog")), tmp_path / "data", "train")
    write_coco(sample_index(tmp_path / "source", names=("cat", "dog")), tmp_path / "data", "val")
    (tmp_path / "evil.py").write_text("open('canary', 'w')")
    model_file(tmp_path / "m.safetensors", name=name, size=64)
    places = {"MODEL": "m.safetensors", "PICTURE": "source/000001.png", "OUT": "out", "DATA": "data"}
    words = [re.sub("MODEL|PICTURE|OUT|DATA", lambda m: places[m[0]], w) for w in COMMANDS[command].split()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ciod", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    output = "".join(capfd.readouterr())
    own = "That is code, which a model file does not contain and may not start"
    wanted = own if ".py:" in name else "outside the model"
    if command in ("list", "compare"):  # nothing is built, or by processes of its own
        assert "Traceback" not in output
    else:
        assert ended.value.code == 2 and wanted in output
    assert engine == [] and not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"teacher_config": "evil.py"}, "with 'teacher_config', which is refused"),
        ({"backbone": {"type": "ResNet", "pretrained": "evil"}}, r"names another file \(pretrained='evil'\)"),
        ({"backbone": {"init_cfg": {"type": "Pretrained", "checkpoint": "evil"}}}, "names another file"),
        ({"backbone": {"init_cfg": [[{"type": "Pretrained"}]]}}, r"\(type='Pretrained'\)"),
        ({"neck": {"type": "FPN", "x": [["http://evil/a"]]}}, r"\(x='http://evil/a'\)"),
        ({"neck": {"type": "FPN", "x": "evil.PTH"}}, r"\(x='evil\.PTH'\)"),
        ({"neck": {"type": "os.system"}}, "names a class 'os.system'"),
        ({"neck": {"custom_imports": ["evil"]}}, "asks for imports"),
    ],
)
def test_a_config_inside_a_model_leads_to_no_other_file(tmp_path, engine, more, match):
    text = json.dumps({"type": "RetinaNet", "bbox_head": HEAD, **more})
    path = model_file(tmp_path / "m.safetensors", name="mmdet:retinanet", config=text)
    with pytest.raises(CiodError, match=match):
        weights.load(path)
    assert engine == []


def test_a_config_inside_a_checkpoint_leads_to_no_other_file(tmp_path, engine):
    model = {"type": "RetinaNet", "bbox_head": HEAD, "neck": {"type": "FPN", "x": "../evil"}}
    content = {"meta": {"cfg": f"model = {model!r}"}, "state_dict": {"bbox_head.x": torch.zeros(1)}}
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CiodError, match=r"m\.pth holds a config .* that names another file \(x='\.\./evil'"):
        weights.load(tmp_path / "m.pth")
    assert engine == []


def test_a_config_that_is_nested_deeply_is_looked_through(engine):
    text = json.dumps({"bbox_head": HEAD, "neck": json.loads("[" * 800 + '{"path": "evil"}' + "]" * 800)})
    with pytest.raises(CiodError, match=r"names another file \(path='evil'\)"):
        mmdet.loads(text, "m")


def test_what_a_config_says_of_weights_is_left_out():
    model = {"type": "X", "backbone": {"depth": 50, "pretrained": "a", "init_cfg": {"type": "Pretrained"}}}
    assert mmdet.plain(model) == {"type": "X", "backbone": {"depth": 50}}
    kept = {"type": "RetinaNet", "bbox_head": {**HEAD, "loss": ["sum", 1.5, None]}, "neck": {"norm": {"type": "BN"}}}
    mmdet.check_apart(kept, "x")


# Pictures that start programs -----------------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(canary) (w) file closefile\n%%EOF\n"


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.eps"])
def test_postscript_is_not_opened_whatever_it_is_called(tmp_path, name, monkeypatch):
    from PIL import EpsImagePlugin

    def run(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    path = tmp_path / name
    path.write_bytes(POSTSCRIPT)
    assert Image.open(path).format == "EPS", "else the test shows nothing"
    for read in (images.read_image, images.image_size, tiny().predict):
        with pytest.raises(DataError, match="is not a picture in a format that ciod reads"):
            read(path)


def test_every_format_that_is_promised_is_opened(tmp_path):
    promised = {"JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000"}
    assert promised <= set(images._formats())
    for kind in sorted(promised):
        suffix = {"JPEG2000": ".jp2"}.get(kind, f".{kind.lower()}")
        save_image(tmp_path / f"a{suffix}", np.full((8, 8, 3), 200, np.uint8))
        assert images.read_image(tmp_path / f"a{suffix}").mean() > 190
