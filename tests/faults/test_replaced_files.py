"""Every JSON, YAML, XML, text, state and model file that ciod reads, replaced by something else.

Each command finishes or stops with an error message, and a command that refuses has changed no file.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ciod import cli, detectors
from ciod.comparison import schedule
from ciod.data.shapes.scenes import CLASSES, write_shapes
from ciod.detectors.files import weights
from tests.comparison.conftest import in_this_process
from tests.data.writers import sample_index, write_coco, write_voc, write_yolo

TINY = "split=1+1 detector=yolox-pico size=64 epochs=1 batch=4 method=finetune device=cpu"
TRAIN = f"train {TINY} data=scenes out=run"
COMPARE = "compare data=scenes split=1+1 detector=yolox-pico size=64 epochs=1 batch=4 device=cpu methods=finetune"
COMPARE += " upper=none out=compared"
EXTEND = "extend model.safetensors data=coco out=extended epochs=1 batch=4 device=cpu"
ON = "split=1+1 epochs=1"  # of a command that continues from another run's first task


@dataclass(frozen=True)
class Case:
    """A file, what is copied for it, and the commands that read it."""

    file: str
    commands: tuple[str, ...]
    folders: tuple[str, ...] = ()  # beside the file's own

    @property
    def names(self) -> set[str]:
        return {self.file.split("/")[0], *self.folders}


DATA = ("list data {}", "eval model.safetensors data={} device=cpu")
CASES = [
    Case("coco/train.json", (*(w.format("coco") for w in DATA), EXTEND), ("model.safetensors",)),
    Case("coco/val.json", (DATA[1].format("coco"), "predict model.safetensors data=coco out=found device=cpu"),
         ("model.safetensors",)),
    Case("voc/Annotations/000001.xml", (DATA[0].format("voc"), f"train {TINY} data=voc --dry-run")),
    Case("voc/ImageSets/Main/train.txt", (DATA[0].format("voc"), f"train {TINY} data=voc --dry-run")),
    Case("yolo/data.yaml", (DATA[0].format("yolo"), f"train {TINY} data=yolo --dry-run")),
    Case("yolo/labels/train/000001.txt", (DATA[0].format("yolo"), f"train {TINY} data=yolo --dry-run")),
    Case("scenes/train.json", (f"train {TINY} data=scenes out=new --dry-run", f"{COMPARE} --dry-run")),
    Case("settings.yaml", ("train settings.yaml --dry-run", "compare settings.yaml methods=finetune --dry-run"),
         ("scenes",)),
    Case("scenario.yaml", ("list scenario.yaml", "train scenario=scenario.yaml data=scenes --dry-run"), ("scenes",)),
    Case("names.txt", ("eval bare.pth data=coco names=names.txt device=cpu", "export bare.pth mmdet=m names=names.txt"),
         ("bare.pth", "coco")),
    Case("model.safetensors", (
        "list model.safetensors", DATA[1].format("coco"), "predict model.safetensors coco/images out=found device=cpu",
        "export model.safetensors mmdet=m", "export model.safetensors onnx=m.onnx", EXTEND,
        f"train {TINY} data=scenes weights=model.safetensors out=new --dry-run"), ("coco", "scenes")),
    Case("bare.pth", ("list bare.pth", "predict bare.pth coco/images out=found device=cpu",
                      f"train {TINY} data=scenes weights=bare.pth out=new"), ("coco", "scenes")),
    Case("run/results.json", ("report run", TRAIN, f"train {TINY} data=scenes first=run out=new",
                              f"train {TINY} data=scenes upper_bound=run out=new2"), ("scenes",)),
    Case("run/run.yaml", ("report run", TRAIN, f"train {TINY} data=scenes first=run out=new"), ("scenes",)),
    Case("run/metrics.jsonl", ("report run", TRAIN), ("scenes",)),
    Case("run/last/state.pt", (TRAIN,), ("scenes",)),
    Case("run/last/previous.pt", (TRAIN,), ("scenes",)),
    Case("run/last/data.json", (TRAIN,), ("scenes",)),
    Case("run/task-1/model.safetensors", (TRAIN, f"train {TINY} data=scenes first=run out=new"), ("scenes",)),
    Case("compared/compare.json", (COMPARE,), ("scenes",)),
    Case("compared/finetune-seed0/results.json", (COMPARE,), ("scenes",)),
    Case("extended/results.json", ("report extended", EXTEND), ("coco", "model.safetensors")),
    Case("extended/last/state.pt", (EXTEND,), ("coco", "model.safetensors")),
    Case("extended/last/data.json", (EXTEND,), ("coco", "model.safetensors")),
    Case("extended/model.safetensors", (EXTEND, "list extended/model.safetensors"), ("coco", "model.safetensors")),
]  # fmt: skip
OTHERS = dict(zip([c.file for c in CASES], [c.file for c in (*CASES[1:], CASES[0])], strict=True))


def run(words: str) -> int:
    """Exit code of a command in this process."""
    sys.argv = ["ciod", *words.split()]
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    """One of everything: data sets, models, a run, a comparison, an extension."""
    folder = tmp_path_factory.mktemp("replaced")
    write_shapes(folder / "scenes", train=6, val=2, size=64)
    index = sample_index(folder / "raw", images=4, names=("dog", "eel"))
    for split in ("train", "val"):
        write_coco(index, folder / "coco", split)
    write_voc(index, folder / "voc")
    write_yolo(index, folder / "yolo")
    torch.manual_seed(0)
    detector = detectors.build(("cat", "dog"), name="yolox-pico", size=64).eval()
    weights.save_model(folder / "model.safetensors", detector)
    torch.save({"model": detectors.build(("cat", "dog"), name="yolox-nano", size=64).state_dict()}, folder / "bare.pth")
    (folder / "names.txt").write_text("cat\ndog\n")
    (folder / "settings.yaml").write_text("data: scenes\nprotocol: {split: 1+1}\ndetector: {name: yolox-pico}\n")
    (folder / "scenario.yaml").write_text(f"name: two\ngroups: [[{CLASSES[0]}], [{CLASSES[1]}]]\n")
    before = sys.argv
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(schedule, "run", in_this_process)
        assert [run(w) for w in (TRAIN, COMPARE, EXTEND)] == [0, 0, 0]
        yield folder
    sys.argv = before


def content(folder: Path) -> dict[str, str]:
    """Checksum per file."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def replaced(root: Path, file: str, how: str) -> bytes:
    old = (root / file).read_bytes()
    other = (root / OTHERS[file]).read_bytes()
    return {"empty": b"", "a list": b"[1, 2, 3]", "half": old[: len(old) // 2], "another kind": other}[how]


@pytest.mark.parametrize("how", ["empty", "a list", "half", "another kind"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.file)
def test_a_replaced_file_gives_a_message(root, tmp_path, monkeypatch, capfd, case, how):
    for name in case.names:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    (tmp_path / case.file).write_bytes(replaced(root, case.file, how))
    monkeypatch.chdir(tmp_path)
    for words in case.commands:
        there = content(tmp_path)
        code = run(words)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err, words
        assert code in ((0, 1, 2) if words.startswith("compare") else (0, 2)), f"{words}: {code}"
        now = content(tmp_path)
        if code == 2:
            assert "\nciod: " in f"\n{err}", f"{words}: {err}"
            assert {k: now.get(k) for k in there} == there, f"{words} refused, and changed a file"
        kept = [k for k in there if k.split("/")[0] not in ("run", "compared", "extended")]
        assert all(now.get(k) == there[k] for k in kept), f"{words} changed a file of the user"
