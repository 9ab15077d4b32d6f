"""Detectors in a file of the user's own: found, trained, saved, and loaded only where the user names the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ciod
from ciod import detectors, listing
from ciod.comparison import identity, schedule, worker
from ciod.config import commands
from ciod.config import load as config
from ciod.core.errors import CiodError, ConfigError
from ciod.core.user_code import UserCodeError
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors import own
from ciod.detectors.files import weights
from ciod.exporters import hub
from ciod.extension.run import extend
from ciod.extension.settings import load as extension_settings
from ciod.runs import fingerprints
from ciod.runs import run as engine
from ciod.training.progress import Reporter

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-detector.md"
OWN = """\
from ciod.detectors.yolox import YOLOX


class Mine(YOLOX):
    \"\"\"A YOLOX.\"\"\"

"""


@pytest.fixture(autouse=True)
def nothing_is_permitted(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(own, "named", {})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the page's file, a data set, and a trained run."""
    root = tmp_path_factory.mktemp("own")
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert code
    (root / "plain.py").write_text(code[1], encoding="utf-8")
    write_shapes(root / "data", train=6, val=3, size=64)
    words = ["split=6+4", "size=64", "epochs=1", "batch=6", "device=cpu", "method=pseudo_label"]
    settings = config.load(
        None, [*words, f"data={root / 'data'}", f"detector={root / 'plain.py'}:Plain", f"out={root / 'run'}"]
    )
    engine.train(settings, command="a test", reporter=Reporter(quiet=True))
    return root


def write(folder: Path, body: str = "    pass\n", head: str = OWN, name: str = "mine.py") -> str:
    (folder / name).write_text(head + body)
    return f"{folder / name}:Mine"


def saved(folder: Path, name: str, size: int = 64) -> Path:
    path = folder / "model.safetensors"
    weights.save_model(path, detectors.build(("ant", "bee"), name=name, size=size))
    own.named.clear()
    return path


def test_a_run_says_where_its_detector_came_from(place):
    model = place / "run" / "task-2" / "model.safetensors"
    meta = weights.read_metadata(model)
    name, digest = "plain.py:Plain:plain-pico", own.digest(str(place / "plain.py"))
    assert meta["detector"] == {"name": name, "size": 64, "file_sha256": digest}
    assert str(place) not in json.dumps(meta["detector"]), "no folder of this machine"
    identity_of_run = torch.load(next((place / "run" / "last").glob("*.pt")), weights_only=True)["identity"]
    assert list(identity_of_run["code"]["detector"]) == ["plain.py"]
    (line, *_) = listing.look_up(str(model), [], {}).lines
    assert "plain.py:Plain:plain-pico" in line, "the list needs no code"


def test_a_finished_run_is_repeated_and_other_code_is_refused(place, tmp_path):
    name = f"{tmp_path / 'plain.py'}:Plain"
    text = (place / "plain.py").read_text(encoding="utf-8")
    (tmp_path / "plain.py").write_text(text)
    before = fingerprints.of_code("finetune", name)
    key = identity.source("finetune", name)
    (tmp_path / "plain.py").write_text(text + "\n")
    assert fingerprints.code_differences(before, fingerprints.of_code("finetune", name)) == ["plain.py changed"]
    del before["detector"]  # of an older version
    assert fingerprints.code_differences(before, fingerprints.of_code("finetune", "yolox-pico")) == []
    assert identity.source("finetune", name) != key and identity.source(None, name) != identity.source(None)


def test_a_model_alone_runs_no_code(place):
    model = place / "run" / "task-2" / "model.safetensors"
    with pytest.raises(CiodError, match=r"holds a detector of plain\.py:Plain\. That is code, .*detector=PATH"):
        ciod.load(model)
    loaded = ciod.load(model, detector=f"{place / 'plain.py'}:Plain")
    assert loaded.num_classes == 10 and type(loaded).__name__ == "Plain"
    assert type(ciod.load(model)) is type(loaded), "the user named it in this process"


def test_evaluated_predicted_and_exported(place, tmp_path):
    model, name = place / "run" / "task-2" / "model.safetensors", f"{place / 'plain.py'}:Plain"
    with pytest.raises(CiodError, match="That is code"):
        ciod.evaluate(model, place / "data")
    assert ciod.evaluate(model, place / "data", detector=name, device="cpu").images == 3
    picture = next((place / "data").rglob("*.png"), None) or next((place / "data").rglob("*.jpg"))
    assert list(ciod.predict(model, [picture], detector=name, device="cpu")) == [picture]
    pytest.importorskip("onnx", reason="onnx is absent: pip install 'ciod[onnx]'")
    assert ciod.export(model, tmp_path / "m.onnx", detector=name).path.exists()


def test_extended(place, tmp_path):
    given = {"model": str(place / "run" / "task-1" / "model.safetensors"), "data": str(place / "data")}
    given |= {"epochs": 1, "batch": 6, "device": "cpu", "size": 64}
    asked = {**given, "out": str(tmp_path / "out"), "detector": f"{place / 'plain.py'}:Plain"}
    out = extend(extension_settings(asked), reporter=Reporter(quiet=True))
    meta = weights.read_metadata(out / "model.safetensors")
    assert meta["detector"]["name"] == "plain.py:Plain:plain-pico" and len(meta["class_names"]) > 6
    own.named.clear()
    with pytest.raises(CiodError, match="That is code"):
        extend(extension_settings({**given, "out": str(tmp_path / "other")}), reporter=Reporter(quiet=True))


def test_compared(place, tmp_path, monkeypatch):
    """As one process a run, each of which finds the file again; a file below the folder of the command."""
    trained = []

    def in_this_process(cells, **_):
        for cell in cells:
            if not worker.finished(cell.folder, cell.key):
                own.named.clear()
                worker.work(json.loads(json.dumps(cell.job())))
                trained.append(cell.name)
        return {}

    monkeypatch.setattr(schedule, "run", in_this_process)
    monkeypatch.setattr("ciod.report.page.write_report", lambda out: None)  # of each run: tested elsewhere
    monkeypatch.setattr("ciod.report.examples.write_examples", lambda *_: None)
    monkeypatch.chdir(place)
    given = {"data": "data", "split": "6+4", "size": 64, "epochs": 1, "batch": 6, "device": "cpu"}
    words = {"detector": "plain.py:Plain", "upper": "none", "out": tmp_path / "out", **given}
    ciod.compare(methods=["finetune", "lwf"], **words)
    assert trained == ["first-seed0", "finetune-seed0", "lwf-seed0"]
    assert "plain.py:Plain" in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"freeze_branch needs a detector with branches, which plain\.py:Plain does not"
    ):
        ciod.compare(methods=["finetune", "freeze_branch"], **words)


def test_variants_and_what_a_class_inherits(tmp_path):
    name = write(tmp_path)
    assert own.names(name)[0] == f"{name}:yolox-pico" and own.names(f"{name}:yolox-s") == [f"{name}:yolox-s"]
    small, larger = (detectors.build((), name=n, size=64) for n in (name, f"{name}:yolox-nano"))
    assert small.settings["name"] == "mine.py:Mine:yolox-pico" and larger.settings["name"] == "mine.py:Mine:yolox-nano"
    assert detectors.traits(name) == small.traits and detectors.lacking(name) is None
    assert detectors.default_backbone(f"{name}:yolox-s") is None and detectors.find(name) is type(small)
    sheet = listing.look_up("detectors", [name], {})
    assert sheet.lines == ["A YOLOX."] and [row[0] for row in sheet.rows] == own.names(name)
    assert [row[0] for row in listing.look_up("detectors", ["yolox-nano"], {}).rows] == ["yolox-nano"]
    with pytest.raises(CiodError, match=r"there is no variant 'yolox-nan'; did you mean 'yolox-nano'"):
        detectors.find(f"{name}:yolox-nan")
    bare = write(tmp_path, "    variants = {}\n    def __init__(self, class_names, *, name, size=None, "
                 "backbone_weights=None):\n        super().__init__(class_names, name='yolox-pico', size=size)\n",
                 name="bare.py")  # fmt: skip
    assert detectors.build((), name=bare, size=64).settings["name"] == "bare.py:Mine"
    with pytest.raises(CiodError, match=r"bare\.py:Mine:x: Mine has no variants; write .*bare\.py:Mine\."):
        detectors.find(f"{bare}:x")


def test_the_file_may_lie_elsewhere_and_a_changed_one_is_warned_of(tmp_path):
    path = saved(tmp_path, write(tmp_path))
    (tmp_path / "there").mkdir()
    moved = write(tmp_path / "there", name="renamed.py")
    assert ciod.load(path, detector=moved).settings["name"] == "renamed.py:Mine:yolox-pico"
    with pytest.warns(UserWarning, match=r"mine\.py has changed since .*model\.safetensors was saved"):
        ciod.load(path, detector=write(tmp_path, "    pass  # other\n"))
    other = write(tmp_path, "    pass\n\n\nclass Other(Mine):\n    pass\n").replace(":Mine", ":Other")
    with pytest.raises(CiodError, match=r"holds a detector of mine\.py:Mine, not of .*mine\.py:Other"):
        ciod.load(path, detector=other)


def test_a_detector_that_is_not_needed_is_refused(tmp_path):
    weights.save_model(tmp_path / "m.safetensors", detectors.build(("ant",), name="yolox-pico", size=64))
    with pytest.raises(CiodError, match=r"is a yolox-pico, for which no file is needed; leave detector= out"):
        ciod.load(tmp_path / "m.safetensors", detector=write(tmp_path))
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(CiodError, match=r"m\.onnx holds its network itself; leave detector= out"):
        ciod.load(tmp_path / "m.onnx", detector=write(tmp_path))
    with pytest.raises(ConfigError, match="detector: yolox-pico is not a file; a model says itself which"):
        ciod.load(tmp_path / "m.safetensors", detector="yolox-pico")
    for table, words in ((commands.EVAL, ["data=."]), (commands.PREDICT, []), (commands.EXPORT, ["onnx=a.onnx"])):
        with pytest.raises(ConfigError, match=r"detector: there is no file no\.py"):
            commands.read(table, [*words, "detector=no.py:Mine"])


def test_it_is_not_pushed(tmp_path):
    with pytest.raises(CiodError, match=r"works only with the file of mine\.py:Mine:yolox-pico, which ciod does not"):
        hub.push(saved(tmp_path, write(tmp_path)), "user/model")


def test_a_model_may_name_no_place_of_code(tmp_path):
    path = saved(tmp_path, write(tmp_path))
    with safe_open(path, framework="pt") as f:
        meta = json.loads(f.metadata()["ciod"])
    meta["detector"]["name"] = "/tmp/mine.py:Mine"
    save_file({"x": torch.zeros(1)}, path, metadata={"ciod": json.dumps(meta)})
    with pytest.raises(CiodError, match=r"detector is '/tmp/mine\.py:Mine', a place of code, which no model file may"):
        weights.read_metadata(path)


INIT = "    def __init__(self, class_names, *, name, size=None, backbone_weights=None):\n        "
NEW = "from ciod.detectors.base import Detector\n\n\nclass Mine(Detector):\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            NEW + "    def forward(self, images):\n        pass\n",
            r"Mine of mine\.py lacks match, losses, trunk \(docs/",
        ),
        (OWN + "    traits = ['dense']\n", r"Mine of mine\.py: traits = \['dense'\]; write for example frozenset"),
        (OWN + "    traits = frozenset({'dens'})\n", r"there is no trait 'dens'; did you mean 'dense'"),
        (OWN + "    variants = {'a/b': 1}\n", r"variants = \{'a/b': 1\}; write names without"),
        (OWN + "    variants = ['a']\n", r"variants = \['a'\]; write names without"),
        (
            OWN + "    def __init__(self, names):\n        pass\n",
            r"Mine\.__init__ \(mine\.py, line 7\) must take \(",
        ),
        (OWN + INIT + "pass\n", r"does not call super\(\)\.__init__\(class_names, settings"),
        (OWN + INIT + "raise KeyError('x')\n", r"detector .*mine\.py:Mine: KeyError: 'x' in __init__ \(.*, line 8\)"),
        (
            OWN + INIT + "super().__init__(class_names, name=name, size=size)\n        self.settings['a'] = {}\n",
            r"gives super\(\)\.__init__ the setting 'a': \{\}, which a model file cannot hold",
        ),
        ("Mine = 3\n", r"has no Detector 'Mine' \(Mine is not a class\)"),
        ("class Mine:\n    pass\n", r"the class Mine does not derive from ciod\.Detector"),
        ("from ciod.detectors.yolox import YOLOX as Mine\n", r"only imports 'Mine' from ciod"),
        ("1 / 0\n", r"detector: .*mine\.py cannot be imported: ZeroDivisionError: division by zero \(line 1\)"),
    ],
)
def test_files_that_are_not_detectors(tmp_path, text, match):
    with pytest.raises(CiodError, match=match):
        detectors.build((), name=write(tmp_path, "", text), size=64)


@pytest.mark.parametrize(
    ("body", "word", "match"),
    [
        ("    pass\n", "mine.py:Min", r"has no Detector 'Min'; did you mean 'Mine'"),
        ("    pass\n", "mine.py", r"name the class in mine\.py, too: detector=mine\.py:Mine"),
        (
            "    run_defaults = {'train.lrr': 1}\n",
            "mine.py:Mine",
            r"run_defaults: train\.lrr: there is no",
        ),
        ("    run_defaults = {'lr': -1}\n", "mine.py:Mine", r"run_defaults: train\.lr: should be greater"),
    ],
)
def test_settings_that_name_it(tmp_path, monkeypatch, body, word, match):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, body)
    with pytest.raises(ConfigError, match=match):
        config.load(None, {"data": "shapes", "split": "6+4", "detector": word})


def test_defaults_of_the_run(tmp_path):
    name = write(tmp_path, "    run_defaults = {'lr': 0.5}\n    traits = frozenset({'features'})\n")
    given = {"data": "shapes", "split": "6+4", "detector": name, "method": "ilyolox"}
    with pytest.raises(ConfigError, match=r"method: ilyolox needs a detector with dense.*, which .*mine\.py:Mine does"):
        config.load(None, given)
    assert config.load(None, {**given, "method": "finetune"}).train.lr == 0.5


def test_its_errors_are_reported_as_the_users(place, tmp_path):
    name = write(tmp_path, "    def match(self, outputs, targets):\n        return targets.nothing\n")
    words = [f"data={place / 'data'}", "split=6+4", "size=64", "epochs=1", "batch=6", "device=cpu", f"detector={name}"]
    with pytest.raises(UserCodeError, match=r"detector .*mine\.py:Mine: AttributeError: .* in match \(.*, line 8\)"):
        engine.train(config.load(None, [*words, f"out={tmp_path / 'out'}"]), reporter=Reporter(quiet=True))
