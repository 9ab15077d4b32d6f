"""The command line: one sentence and exit code 2 for every mistake, and what each command prints and writes."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ciod
from ciod import cli, detectors
from ciod.core.errors import CiodError, ConfigError
from ciod.data.images import read_image, save_image
from ciod.data.shapes.scenes import write_shapes
from ciod.listing import topics
from ciod.report.scored import _notes
from tests.data.writers import sample_index, write_coco
from tests.detectors.test_weights import official


@pytest.fixture
def run(monkeypatch, capfd):
    """Calls the entry point in this process: exit code, what was printed, what was complained."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ciod", *words])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    """Classes cat, dog, fork & knife."""
    folder = tmp_path_factory.mktemp("pets")
    for split in ("train", "val"):
        write_coco(sample_index(folder / "source"), folder / "data", split)
    return folder / "data"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from ciod.detectors.files.weights import save_model

    torch.manual_seed(0)
    detector = detectors.build(("cat", "dog", "owl"), name="yolox-pico", size=64)
    detector.lineage = [{"classes": ["cat", "dog", "owl"], "data": "a farm", "images": 7, "method": {"name": "joint"}}]
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, detector)
    return path


# Mistakes -------------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("train data=PETS epoch=3", "epoch: there is no such setting; did you mean 'epochs'"),
    ("train data=PETS split=[[cat],[dgo]]", "the data has no class 'dgo'; did you mean 'dog'"),
    ("train data=/no/such/folder", "data: there is no folder /no/such/folder"),
    ("train", "no data set is given; write data=FOLDER"),
    ("train absent.yaml data=PETS", "There is no settings file absent.yaml"),
    ("train data=PETS method=ilyollox", "did you mean 'ilyolox'"),
    ("train data=PETS detector=yolox-nan", "did you mean 'yolox-nano'"),
    ("eval MODEL", "data= is needed"),
    ("eval MODEL data=PETS sise=64", "sise: there is no such setting; did you mean 'size'"),
    ("eval MODEL data=PETS size=100", "size: should be a multiple of 32 (got 100); try 96"),
    ("eval MODEL data=/no/such/folder", "data: there is no folder /no/such/folder."),
    ("eval absent.safetensors data=PETS", "There is no model file absent.safetensors"),
    ("eval MODEL data=PETS device=gpu", "'gpu' is not a device"),
    ("predict MODEL", "name at least one picture, video or folder"),
    ("predict MODEL absent.jpg", "There is no file or folder absent.jpg"),
    ("predict MODEL PETS scor=0.1", "scor: there is no such setting; did you mean 'score'"),
    ("predict MODEL PETS classes=cat,dgo", "classes: the model has no class 'dgo'; did you mean 'dog'"),
    ("predict MODEL PETS score=high", "score: should be a valid number (got 'high')"),
    ("predict MODEL PETS batch=0", "batch: should be greater than or equal to 1 (got 0)"),
    ("predict MODEL PETS size=big", "size: should be a valid integer (got 'big')"),
    ("predict MODEL PETS/images out=PETS/images", "drawn pictures would overwrite it"),
    ("eval MODEL data=PETS max_detections=0", "max_detections: should be greater than or equal to 1 (got 0)"),
    ("eval MODEL data=PETS size=32000", "size: should be less than or equal to 16384 (got 32000)"),
    ("eval MODEL data=PETS json=.", ". cannot be written: it is a folder. Give the name of a file."),
    ("train data=PETS protocol=true", "protocol: should be settings of the scenario (got True)"),
    ("train data=PETS split=1x9999999", "split: '1x9999999' is not a split; write 40+40"),
    (
        "compare data=PETS split=2+1 methods=finetune seeds=1001",
        "seeds: 1001 must say how many seeds (1 to 1,000), or list",
    ),
    ("compare data=PETS split=2+1 methods=finetune out=", "out: should be a path; write out=PATH, or leave it out."),
    ("eval MODEL data=PETS max_detections=2.5", "max_detections: should be a valid integer (got 2.5)"),
    ("eval MODEL data=PETS classes=[cat,owl]", "the model has no class 'owl'"),
    ("eval MODEL PETS data=PETS", "eval takes one model"),
    ("eval MODEL data=PETS metric=voc08", "metric: 'voc08' is not allowed; did you mean 'voc07'?"),
    ("eval MODEL data=PETS classes=[]", "classes: should not be empty (got [])"),
    ("export MODEL", "onnx= is needed"),
    ("export MODEL onnx=a.onnx nms=perhaps", "nms: should be true or false (got 'perhaps')"),
    ("export MODEL onnx=a.pt", "a.pt must end in .onnx"),
    ("export MODEL a.onnx onnx=a.onnx", "export takes one model"),
    ("export MODEL there mmdet=there", "export takes one model; 'there' is neither a setting nor needed."),
    ("export absent.safetensors onnx=a.onnx", "There is no model file absent.safetensors"),
    (
        "compare shapes-6+4 voc-15+5 methods=finetune",
        "compare takes one scenario, not 2 (shapes-6+4, voc-15+5); write key=value",
    ),
    ("list detector", "list: there is no 'detector'; did you mean 'detectors'"),
    ("list data", "list data: name a folder"),
    ("list data /no/such/folder", "/no/such/folder does not exist"),
    ("list PETS", "is a folder; if it holds a data set: ciod list data /"),
    ("list absent.safetensors", "There is no model file absent.safetensors."),
    ("report /no/such/folder", "/no/such/folder"),
    ("demo seeds=1", "seeds: there is no such setting; did you mean 'seed'"),
    ("demo shapes", "demo needs no data; 'shapes' is neither a setting nor needed."),
    ("demo seed=first", "seed: should be a valid integer (got 'first')"),
    ("extend MODEL cards data=PETS out=cards", "extend takes one model; 'cards' is neither a setting nor needed."),
    ("extend MODEL model=MODEL data=PETS out=cards", "extend takes one model: the first word, without model=."),
    ("list shapes-6+4 splitt=3+7", "splitt: there is no such setting; did you mean 'split'"),
    ("demo seed=[", "seed: '[' cannot be read; quote it or check its brackets."),
    ("compare shapes-6+4 methods=finetune seeds=[", "seeds: '[' cannot be read; quote it or check its brackets."),
    ("list shapes-6+4 =3", "'=3' is not a setting; write key=value, for example epochs=30."),
    ("list shapes-6+4 epochs=[", "epochs: '[' cannot be read; quote it or check its brackets."),
    ("list shapes-6+4 split=[", "split: '[' is not a split; write 40+40"),
    ("data voc there", "data takes one name, coco or voc; 'there' is not needed. Write out=DIR for the folder."),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=[w for w, _ in MISTAKES])
def test_a_mistake_gives_one_message_and_exit_code_2(run, pets, model, words, sentence):
    places = {"PETS": str(pets), "MODEL": str(model)}
    code, out, err = run(*(re.sub("PETS|MODEL", lambda m: places[m[0]], w) for w in words.split()))
    assert code == 2, (out, err)
    assert sentence in err and err.startswith("ciod: ") and err.count("\n") == 1
    assert "Traceback" not in out + err


def test_a_word_after_the_settings_file(run):
    code, _, err = run("train", "absent.yaml", "epochs")
    assert code == 2 and "'epochs' is not a setting; write key=value, for example epochs=30." in err


def test_mistakes_in_calls_from_python(pets, model):
    with pytest.raises(ConfigError, match=r"metric: there is no 'voc08'; did you mean 'voc07'"):
        ciod.evaluate(model, pets, metric="voc08")
    with pytest.raises(CiodError, match=r"size: 100 is not a multiple of 32; try 96\."):
        ciod.evaluate(model, pets, size=100)
    with pytest.raises(ConfigError, match=r"against: 2\.5 is not a name\."):
        ciod.compare(data=pets, split="2+1", methods="finetune", against=2.5)


def test_unreadable_words_are_reported_with_the_other_problems(run, pets, model):
    code, _, err = run("extend", str(model), "seed=[", f"data={pets}", "effort=x", "out=a")
    assert code == 2 and err.count("\n") == 3
    for sentence in ("2 problems", "seed: '[' cannot be read", "effort: 'x' is not allowed"):
        assert sentence in err
    code, _, err = run("compare", f"data={pets}", "split=2+1", "methods=finetune", "seeds=[", "jobs=0")
    assert code == 2 and "2 problems" in err and "seeds: '[' cannot be read" in err and "jobs: 0 must be" in err


def test_the_path_of_a_data_set_may_be_any_bytes(run, pets, tmp_path):
    """Paths that are not UTF-8: data may be there; models cannot be written there, which gives an error at once."""
    strange = tmp_path / os.fsdecode(b"pets-\xff")
    shutil.copytree(pets, strange)
    words = ["split=2+1", "detector=yolox-pico", "size=64", "epochs=1", "batch=2", "method=finetune", "device=cpu"]
    code, _, err = run("train", f"data={strange}", *words, f"out={strange}-run")
    assert code == 2 and "out: should be a path of UTF-8 text, which model files need" in err
    code, _, err = run("compare", f"data={strange}", *words[:-2], "methods=finetune", f"cache={strange}-c", "--dry-run")
    assert code == 2 and "cache: should be a path of UTF-8 text" in err
    code, _, err = run("train", f"data={strange}", *words, f"out={tmp_path / 'run'}")
    assert code == 0, err
    code, _, err = run("report", str(tmp_path / "run"))
    assert code == 0, err


@pytest.mark.parametrize("long", ["a" * 5000, "a" * 300], ids=["path", "name"])
@pytest.mark.parametrize(
    "words",
    [
        "eval MODEL data=LONG",
        "eval LONG data=PETS",
        "extend MODEL data=LONG",
        "extend LONG data=PETS",
        "extend MODEL data=PETS pool=LONG",
        "extend MODEL data=PETS old_data=LONG",
        "extend MODEL data=PETS new=[dog] out=LONG",
        "predict MODEL LONG",
        "export LONG onnx=a.onnx",
        "export MODEL onnx=LONG.onnx",
        "report LONG",
        "list LONG.safetensors",
        "compare LONG.yaml",
        "train LONG.yaml",
        "train data=LONG",
        "train data=PETS method=LONG.py:A",
        "train data=PETS scenario=LONG",
        "train data=PETS detector=mmdet:LONG",
        "train data=PETS pool=LONG",
        "train data=PETS weights=LONG",
        "train data=PETS first=LONG",
        "train data=PETS split=1+2 detector=yolox-pico size=64 epochs=1 out=LONG",
    ],
)
def test_a_path_longer_than_any_disk_allows_gives_a_message(run, pets, model, words, long, tmp_path, monkeypatch):
    """``Path.exists`` raises for such a path; see ``ciod.core.files.exists``."""
    monkeypatch.chdir(tmp_path)
    places = {"PETS": str(pets), "MODEL": str(model), "LONG": long}
    code, out, err = run(*(re.sub("PETS|MODEL|LONG", lambda m: places[m[0]], w) for w in words.split()))
    assert code == 2 and err.startswith("ciod: ") and "Traceback" not in out + err, (out, err)


def test_several_mistakes_in_one_message(run, pets):
    code, _, err = run("train", f"data={pets}", "epoch=3", "lr=-1", "detector=yolox-nan", "split=2+2")
    assert code == 2 and err.startswith("ciod: 4 problems:\n  1. ")
    assert "Traceback" not in err and len(err.strip().splitlines()) == 5


def test_an_unknown_command(run):
    code, out, err = run("trian")
    assert code == 2 and "trian" in out + err and "Traceback" not in out + err


def test_an_interruption_says_how_to_resume(run, monkeypatch, pets):
    from ciod.runs import run as engine

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "train", interrupted)
    code, _, err = run("train", f"data={pets}")
    assert code == 130 and "run the same command again" in err


def test_from_outside(tmp_path):
    """As a process of its own, where an uncaught error would show its traceback."""
    root = str(Path(ciod.__file__).parents[1])
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    words = [sys.executable, "-m", "ciod.cli", "train", "data=/no/such/folder", "epoch=3"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "2 problems" in done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was started


def test_help_does_not_load_torch(tmp_path):
    code = "\n".join(
        [
            "import sys",
            "sys.argv = ['ciod', '--help']",
            "from ciod import cli",
            "try:",
            "    cli.main()",
            "except SystemExit:",
            "    pass",
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules",
        ]
    )
    root = str(Path(ciod.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ciod demo" in done.stdout


@pytest.mark.parametrize("command", ["train", "eval", "predict", "export", "report", "demo", "list"])
def test_help_of_every_command(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and len(out) > 200


def test_list_of_a_run_folder_names_its_model(run, model):
    code, _, err = run("list", str(model.parent))
    assert code == 2 and f"is a folder, not a model file; its model is {model}." in err


def test_eval_shortens_a_long_list_of_classes():
    absent = tuple(f"c{i}" for i in range(80))
    scored = SimpleNamespace(unknown_to_model=(), absent_from_data=absent, problems=())
    assert _notes(scored, {}) == [f"not in the data, left out: {', '.join(absent[:12])}, … (80)"]


# eval -----------------------------------------------------------------------------------------------------------------

LINE = re.compile(r"^AP (\d\.\d{3})  AP50 (\d\.\d{3})  AP75 ", re.M)


def test_eval_matches_classes_by_name_and_says_what_it_leaves_out(run, model, pets, tmp_path):
    code, out, err = run("eval", str(model), f"data={pets}", f"json={tmp_path / 'ap.json'}", "device=cpu")
    assert code == 0, err
    assert "not in the model, left out: fork & knife" in out
    assert "not in the data, left out: owl" in out
    assert "4 images, 2 classes" in out and LINE.search(out)
    written = json.loads((tmp_path / "ap.json").read_text())
    assert set(written["per_class"]) == {"cat", "dog"} and "AP50" in written["overall"]


def test_eval_replaces_no_file_but_its_own(run, model, pets, tmp_path):
    target = tmp_path / "ap.json"
    words = ("eval", str(model), f"data={pets}", "device=cpu", f"json={target}")
    assert run(*words)[0] == run(*words)[0] == 0
    before = {"overall", "per_class"}
    assert set(json.loads(target.read_text())) == before
    for content in ('{"images": []}', "[]", "text"):
        target.write_text(content)
        code, _, err = run(*words)
        assert code == 2
        assert "ap.json exists and is not a result of 'ciod eval'; choose another name." in err
        assert target.read_text() == content


def test_list_describes_a_checkpoint(run, tmp_path):
    """One of another project: how ciod interprets it, and what can be done with it. 80 classes get COCO's names."""
    for classes, words in ((80, "they are taken to be COCO's 80"), (3, "3 classes without names")):
        made = detectors.build([str(i) for i in range(classes)], name="yolox-nano")
        path = tmp_path / f"{classes}.pth"
        torch.save({"model": official(made)}, path)
        code, out, err = run("list", str(path))
        assert code == 0, err
        assert "a checkpoint of yolox-nano" in out and words in out and f"ciod extend {path} data=FOLDER" in out


def test_list_of_files_that_cannot_be_read(run, tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    code, _, err = run("list", str(tmp_path / "empty.pth"))
    assert code == 2 and "is not a readable PyTorch file: it is empty" in err
    code, _, err = run("list", str(tmp_path / "empti.pth"))
    assert code == 2 and f"There is no model file {tmp_path / 'empti.pth'}; did you mean" in err


def test_a_pickled_model_is_never_run(run, pets, tmp_path, monkeypatch):
    """As the files of Ultralytics are: a whole model, with the code of its maker."""
    module = types.ModuleType("ultralytics.nn.tasks")
    model = type("DetectionModel", (), {"__module__": "ultralytics.nn.tasks", "__qualname__": "DetectionModel"})
    module.__dict__["DetectionModel"] = model
    for name in ("ultralytics", "ultralytics.nn"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", module)
    torch.save({"epoch": -1, "model": model()}, tmp_path / "best.pt")
    for command, more in (("list", []), ("extend", [f"data={pets}", f"out={tmp_path}/o"]), ("predict", ["a.jpg"])):
        code, _, err = run(command, str(tmp_path / "best.pt"), *more)
        assert code == 2 and "best.pt is a model of Ultralytics, pickled with the code of its maker" in err
        assert "Export it to ONNX with that tool" in err and "It asks for ultralytics.nn.tasks.DetectionModel" in err


def test_eval_scores_what_it_cannot_read_as_empty(run, model, pets, tmp_path):
    shutil.copytree(pets, tmp_path / "data")
    damaged = tmp_path / "data" / "images" / "000002.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    code, out, err = run("eval", str(model), f"data={tmp_path / 'data'}", "device=cpu")
    assert code == 0, err
    assert f"unreadable, scored as empty: {damaged}" in out and "4 images, 2 classes" in out


def test_eval_without_a_class_in_common(run, model, tmp_path):
    index = sample_index(tmp_path / "source", names=("left", "right"))
    write_coco(index, tmp_path / "data", "val")
    write_coco(index, tmp_path / "data", "train")
    code, _, err = run("eval", str(model), f"data={tmp_path / 'data'}")
    assert code == 2 and "knows none of the classes of" in err and "left, right" in err and "cat, dog, owl" in err


def test_eval_of_the_real_nano_on_photographs(run, weights, datasets):
    code, out, err = run("eval", str(weights / "yolox_nano_coco.pth"), f"data={datasets / 'tiny'}", "device=cpu")
    assert code == 0, err
    assert "12 images, 6 classes" in out
    found = LINE.search(out)
    assert found and float(found[1]) > 0.3 and float(found[2]) > 0.5  # a broken pipeline has some hundredths


@pytest.mark.slow
def test_ap_of_the_real_nano_is_the_independent_evaluators(run, weights, datasets):
    """AP 0.272, AP50 0.426 on the 328 test images of coco671 at 416 pixels."""
    model, data = weights / "yolox_nano_coco.pth", datasets / "coco671"
    code, out, err = run("eval", str(model), f"data={data}", "size=416")
    assert code == 0, err
    found = LINE.search(out)
    assert found, out
    assert float(found[1]) == pytest.approx(0.272, abs=0.002)
    assert float(found[2]) == pytest.approx(0.426, abs=0.003)


# predict --------------------------------------------------------------------------------------------------------------


def test_predict_writes_pictures_and_json(run, model, pets, tmp_path):
    save_image(tmp_path / "in" / "000001.png", np.zeros((30, 50, 3), np.uint8))  # the same name from another folder
    (tmp_path / "in" / "damaged.jpg").write_bytes(b"damaged")
    words = [str(pets / "images"), str(tmp_path / "in"), f"out={tmp_path / 'out'}", "score=0.0001", "device=cpu"]
    code, out, err = run("predict", str(model), *words)
    assert code == 0, err
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["000001.jpg", "000001_.jpg", "000002.jpg", "000003.jpg", "000004.jpg", "predictions.json"]
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(found) == 5 and all(set(entry) == {"image", "detections", "drawn"} for entry in found)
    detection = found[0]["detections"][0]
    assert set(detection) == {"class", "score", "box"} and detection["class"] in ("cat", "dog", "owl")
    x0, y0, x1, y1 = detection["box"]
    height, width = read_image(found[0]["image"]).shape[:2]
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert read_image(tmp_path / "out" / "000001.jpg").ndim == 3
    assert "5 files →" in out and "damaged.jpg: cannot be read, left out" in err


def test_predict_of_nothing_readable(run, model, tmp_path):
    files = [tmp_path / "damaged.jpg", tmp_path / "damaged.mp4"]
    for file in files:
        file.write_bytes(b"damaged")
    code, _, err = run("predict", str(model), *map(str, files), f"out={tmp_path / 'out'}")
    assert code == 2 and "None of the files could be read" in err
    assert not (tmp_path / "out").exists()


def test_predict_in_a_folder_without_pictures(run, model, tmp_path):
    code, _, err = run("predict", str(model), str(tmp_path))
    assert code == 2 and "There is no picture or video in" in err


# list -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["detectors", "methods", "scenarios", "settings"]),
        (["detectors"], ["yolox-nano", "0.9 M", "objectness"]),
        (["methods"], ["finetune", "joint", "pseudo_label", "ilyolox", "yolox", "✓"]),
        (["scenarios"], ["shapes-6+4", "6+4"]),
        (["settings"], ["train.epochs", "Epochs of each task", "detector.size", "augment.flip", "split"]),
        (["environment"], [f"ciod {ciod.__version__}", f"python {platform.python_version()}", "onnx ", "cores"]),
    ],
    ids=["nothing", "detectors", "methods", "scenarios", "settings", "environment"],
)
def test_list(run, words, expected):
    code, out, err = run("list", *words)
    assert code == 0, err
    for part in expected:
        assert part in out, part


def test_list_settings_documents_every_one():
    """The text below a setting is its documentation; names that need none are few."""
    names, _, notes = zip(*topics.settings().rows, strict=True)
    silent = {n for n, note in zip(names, notes) if not note}
    assert len(silent) <= len(names) / 2 and "epochs" not in silent


def test_list_data(run, pets):
    code, out, err = run("list", "data", str(pets))
    assert code == 0, err
    assert "cat" in out and "fork & knife" in out


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0 and out.split()[0] == "ciod" and ciod.__version__ in out


def test_list_model(run, model):
    code, out, err = run("list", str(model))
    assert code == 0, err
    assert "name=yolox-pico" in out and "3 classes" in out and "a farm" in out and "joint" in out


def test_list_scenario_counts_before_training(run, pets, tmp_path):
    (tmp_path / "mine.yaml").write_text("split: 2+1\n")
    code, out, err = run("list", str(tmp_path / "mine.yaml"), f"data={pets}")
    assert code == 0, err
    rows = [line.split() for line in out.splitlines() if line.strip().startswith(("1 ", "2 "))]
    # three of four images have every class once: task 2 hides cat and dog of each
    assert rows[0][-5:] == ["3", "6", "0", "3", "4"] and rows[1][-5:] == ["3", "3", "6", "0", "4"]
    assert "old and future objects are unlabelled" in out


def test_list_scenario_of_clusters(run, pets, tmp_path):
    """Three of four pictures have every class."""
    (tmp_path / "mine.yaml").write_text("split: [[cat], [dog]]\nimages: loco\n")
    code, out, err = run("list", str(tmp_path / "mine.yaml"), f"data={pets}")
    assert code == 0, err
    assert "cluster 1: cat\ncluster 2: dog\n" in out and "in no task" not in out
    assert "3 training images show classes of more than one cluster" in out


def test_list_scenario_names_what_its_order_has_and_no_task(run, pets, tmp_path):
    (tmp_path / "mine.yaml").write_text("split: 1+1\norder: [dog, cat, fork & knife]\n")
    code, out, err = run("list", str(tmp_path / "mine.yaml"), f"data={pets}")
    assert code == 0, err
    assert "in no task: fork & knife" in out


# train and report -----------------------------------------------------------------------------------------------------


def test_train_and_report(run, tmp_path):
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    words = [f"data={data}", "split=5+5", "method=finetune", "detector=yolox-pico", "size=64", "epochs=1", "batch=4",
             f"out={tmp_path / 'run'}", "device=cpu"]  # fmt: skip
    code, out, err = run("train", *words)
    assert code == 0, err
    assert " on yolox-pico\n" in out, "the method, which auto may have chosen"
    assert "task 1/2: arrow, circle" in out and "task 2/2" in out and "boxes of old classes hidden" in out
    assert "report:" in out and "after each task" in out
    (tmp_path / "run" / "report.html").unlink()
    code, _, err = run("report", str(tmp_path / "run"))
    assert code == 0, err
    assert (tmp_path / "run" / "report.html").is_file() and "after each task" in out
    code, out, _ = run("list", str(tmp_path / "run" / "task-2" / "model.safetensors"))
    assert code == 0 and "finetune" in out
    code, out, _ = run("train", *words)
    assert code == 0 and "is finished; nothing is left to train" in out


def test_train_from_a_file_with_overrides(run, tmp_path):
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    (tmp_path / "mine.yaml").write_text(
        f"data: {data}\nsplit: 10\nepochs: 50\ndetector: {{name: yolox-pico, size: 64}}\nmethod: finetune\n"
    )
    code, _, err = run("train", str(tmp_path / "mine.yaml"), "epochs=1", "batch=4", f"out={tmp_path / 'run'}")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["tasks"][0]["epochs"] == 1
