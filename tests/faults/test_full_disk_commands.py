"""predict, export, extend and compare on a disk that becomes full, as ``test_disk`` has it for train."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ciod import detectors
from ciod.comparison import schedule
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.files import weights
from tests.comparison.conftest import in_this_process
from tests.data.writers import sample_index, write_coco
from tests.faults import disk
from tests.faults.test_replaced_files import run

COMMANDS = {  # words, and parts of the names of the files whose writing is tried
    "predict": ("predict model.safetensors coco/images data=coco out={out} coco={out}/found.json device=cpu score=0",
                ("predictions.json", ".jpg", "found.json", ".unfinished")),
    "export": ("export model.safetensors onnx={out}/m.onnx size=64", ("m.onnx",)),
    "export to MMDetection": ("export model.safetensors mmdet={out}", ("detector",)),
    "extend": ("extend model.safetensors data=coco out={out} epochs=1 batch=4 device=cpu",
               ("state.pt", "model.safetensors", "results.json")),
    "compare": ("compare data=scenes split=1+1 detector=yolox-pico size=64 epochs=1 batch=4 device=cpu "
                "methods=finetune upper=none out={out}", ("compare.json", "compare.html", "model.safetensors")),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("full").resolve()
    write_shapes(folder / "scenes", train=6, val=2, size=64)
    index = sample_index(folder / "raw", images=4, names=("dog", "eel"))
    for split in ("train", "val"):
        write_coco(index, folder / "coco", split)
    torch.manual_seed(0)
    detector = detectors.build(("cat", "dog"), name="yolox-nano", size=64).eval()
    weights.save_model(folder / "model.safetensors", detector)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(schedule, "run", in_this_process)
        yield folder


def assert_same(a: Path, b: Path) -> None:
    """Two results of one command: the same files, with the same models and detections."""
    files = [{p.relative_to(x) for p in x.rglob("*") if p.is_file()} for x in (a, b)]
    assert files[0] == files[1]
    for name in files[0]:
        if name.name in ("model.safetensors", "tradeoff.safetensors"):
            x, y = load_file(a / name), load_file(b / name)
            assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), name
        elif name.suffix == ".onnx":
            assert (a / name).read_bytes() == (b / name).read_bytes()
        elif name.name in ("predictions.json", "found.json"):
            assert json.loads((a / name).read_text()) == json.loads((b / name).read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_reported_and_the_command_can_be_repeated(root, tmp_path, command, capfd):
    words, parts = COMMANDS[command]
    tmp_path = tmp_path.resolve()
    whole = tmp_path / "whole"
    with disk.Disk(whole).watching() as traced:
        assert run(words.format(out=whole)) == 0, capfd.readouterr().err
    for i, part in enumerate(parts):
        own = [k for k, point in enumerate(traced.points) if part in point.file]
        assert own, f"{command} writes no {part}: {sorted({p.file for p in traced.points})}"
        full = disk.Disk(tmp_path / "again", own[i * len(own) // len(parts)])
        capfd.readouterr()
        with full.watching():
            code = run(words.format(out=full.folder))
        printed = capfd.readouterr().err
        assert code == 2 and disk.SENTENCE.search(printed), f"{part}: {printed}"
        out = Path(full.folder)
        assert not [p.name for p in out.rglob("*") if disk._BESIDE.fullmatch(p.name)], f"{part}: files left over"
        now = disk.saved(out)
        for name, digest in full.saved.items():
            assert digest in (now.get(name), now.get("last/previous.pt")), f"{part}: {name} is not what it was"
        assert run(words.format(out=out)) == 0, f"{part}: {capfd.readouterr().err}"
        assert_same(whole, out)
        shutil.rmtree(out)
