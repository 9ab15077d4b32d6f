"""Settings: the error for every kind of mistake says what to do, and one message lists several mistakes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from ciod.config import load as config
from ciod.config.load import load
from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.data.shapes.scenes import CLASSES
from tests.data.writers import sample_index, write_coco


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Classes cat, dog, fork & knife."""
    folder = tmp_path_factory.mktemp("pets")
    index = sample_index(folder / "source")
    write_coco(index, folder / "data", "train")
    write_coco(index, folder / "data", "val")
    return folder / "data"


# One mistake, one sentence --------------------------------------------------------------------------------------------

MISTAKES = [
    (["epoch=3"], "epoch: there is no such setting; did you mean 'epochs'"),
    (["train.epoch=3"], r"train\.epoch: there is no such setting; did you mean 'epochs'"),
    (["tain.epochs=3"], r"tain\.epochs: there is no such setting; did you mean"),
    (["zzzzzz=3"], "zzzzzz: there is no such setting; allowed: "),
    (
        ["method=ilyolox", "method.center_scor=0.2"],
        r"method\.center_scor: there is no such setting; did you mean 'method\.center_score'",
    ),
    (["augment.flipp=1"], r"augment\.flipp: there is no such setting; did you mean 'flip'"),
    (["epochs=many"], r"train\.epochs: should be a valid integer.*got 'many'"),
    (["epochs=0"], r"train\.epochs: should be greater than or equal to 1 \(got 0\)"),
    (["epochs=[3, 0]"], r"train\.epochs.*greater than or equal to 1 \(got 0\)"),
    (["batch=2.5"], r"train\.batch: should be a valid integer"),
    (["lr=-1"], r"train\.lr: should be greater than 0 \(got -1\)"),
    (["lr=fast"], r"train\.lr: should be a valid number.*got 'fast'"),
    (["ema=1"], r"train\.ema: should be less than 1"),
    (["size=100"], r"detector\.size: should be a multiple of 32 \(got 100\)"),
    (["seed=-1"], "seed: should be greater than or equal to 0"),
    (["flip=2"], r"augment\.flip: should be less than or equal to 1"),
    (["optimizer=adam"], r"train\.optimizer: 'adam' is not allowed; did you mean 'adamw'"),
    (["schedule=exponential"], r"train\.schedule: 'exponential' is not allowed; allowed: cosine, step"),
    (["images=any_new"], r"protocol\.images: 'any_new' is not allowed; did you mean 'any-new'"),
    (["method=ilyolox", "method.select=csr"], r"method\.select: 'csr' is not allowed; did you mean 'crs'"),
    (
        ["method=ilyolox", "method.center_score=1.5"],
        r"method\.center_score: should be less than or equal to 1 \(got 1\.5\)",
    ),
    (["method=ilyollox"], "method: there is no method 'ilyollox'; did you mean 'ilyolox'"),
    (["method=absent.py:Mine"], r"method: there is no file absent\.py"),
    (["detector=yolox_nano"], r"detector\.name: no detector 'yolox_nano'; did you mean 'yolox-nano'"),
    (["scenario=shapes-6-4"], "scenario: there is no 'shapes-6-4'; did you mean 'shapes-6\\+4'"),
    (["split=3++3"], r"split: '3\+\+3' is not a split; write 40\+40"),
    (["split=2+0"], r"split: '2\+0' is not a split"),
    (["split=2+2"], r"split: 2\+2 needs 4 classes, but the data has 3 \(cat, dog, fork & knife\)"),
    (["split=[[cat], [dgo]]"], "split: the data has no class 'dgo'; did you mean 'dog'"),
    (["split=[[cat], [dog, cat]]"], "split: cat is in two tasks; a class can be new only once"),
    (["split=1+1", "order=[cat, cat]"], "order: cat is listed twice; list each class once"),
    (["order=[dog, kat]"], "order: the data has no class 'kat'; did you mean 'cat'"),
    (["order=alphabetic"], "order: 'alphabetic' is not an order; allowed: alphabetical, dataset"),
    (["weights=absent.pth"], r"detector\.weights: there is no file absent\.pth"),
    (["upper_bound=absent"], r"upper_bound: absent is not a finished run; it has no results\.json"),
    ([f"data={'a' * 5000}"], r"data: there is no folder aaa"),
    ([f"weights={'a' * 5000}"], r"detector\.weights: there is no file aaa"),
    (["first=absent"], r"first: absent has no finished first task"),
    (["resume=maybe"], "resume: 'maybe' is not allowed; allowed: auto, never"),
    (["epochs"], "'epochs' is not a setting; write key=value"),
    (["=3"], "'=3' is not a setting"),
    (["split=[[cat], [dog"], r"split: '\[\[cat\], \[dog' is not a split; write 40\+40"),
    (["epochs=[3"], r"train\.epochs: '\[3' cannot be read; quote it or check its brackets\."),
]


@pytest.mark.parametrize(("words", "match"), MISTAKES, ids=[w[0] for w, _ in MISTAKES])
def test_a_mistake_gives_one_message(words, match, data):
    with pytest.raises(ConfigError, match=match) as caught:
        load(None, [f"data={data}", *words])
    assert len(caught.value.problems) == 1, caught.value.problems
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_no_data_at_all():
    with pytest.raises(ConfigError, match=r"no data set is given; write data=FOLDER .*or scenario=NAME"):
        load(None, ["split=3+3"])


def test_a_missing_folder_names_its_neighbour(data):
    with pytest.raises(ConfigError, match=r"data: there is no folder .*daat; did you mean '.*data'\?"):
        load(None, [f"data={data.parent / 'daat'}"])
    with pytest.raises(ConfigError, match="data: there is no folder /no/such/place"):
        load(None, ["data=/no/such/place"])


def test_a_folder_that_is_not_a_data_set(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ConfigError, match=r"data: .* is not a data set that ciod knows.*Found: notes\.txt"):
        load(None, [f"data={tmp_path}"])


def mine(folder: Path, line: str) -> str:
    """The word for a method from a file, with a line of its class."""
    file = folder / "mine.py"
    file.write_text(f"from ciod.methods.base.method import Method\n\nclass Mine(Method):\n    {line}\n")
    return f"method={file}:Mine"


def test_a_method_that_needs_what_the_detector_lacks(tmp_path, data):
    words = [f"data={data}", mine(tmp_path, "needs = frozenset({'box_distribution', 'dense'})")]
    with pytest.raises(ConfigError, match="needs a detector with box_distribution, which yolox-nano does not have"):
        load(None, words)


def test_settings_of_a_method_from_a_file(tmp_path, data):
    words = [f"data={data}", mine(tmp_path, "share: float = 0.5")]
    assert load(None, [*words, "method.share=0.25"]).method["share"] == 0.25
    with pytest.raises(ConfigError, match=r"method\.shar: there is no such setting; did you mean 'method\.share'"):
        load(None, [*words, "method.shar=1"])


def test_a_method_from_a_file_that_needs_a_setting(tmp_path, data):
    words = [f"data={data}", mine(tmp_path, "share: float")]
    assert load(None, [*words, "method.share=0.25"]).method["share"] == 0.25
    with pytest.raises(ConfigError, match=r"^method\.share"):
        load(None, words)


def test_contradictions_of_a_method_are_found_before_training(data):
    with pytest.raises(ConfigError, match=r"method\.cls_weight and method\.box_weight are both 0"):
        load(None, [f"data={data}", "method=ilyolox", "method.cls_weight=0", "method.box_weight=0"])


def test_a_contradiction_is_reported_with_a_wrong_setting(data):
    words = ["method=ilyolox", "method.cls_weight=0", "method.box_weight=0", "method.nms_ou=0.5", "method.score=2"]
    with pytest.raises(ConfigError) as e:
        load(None, [f"data={data}", *words])
    for expected in ("did you mean 'method.nms_iou'", "method.score:", "cls_weight and method.box_weight are both 0"):
        assert expected in str(e.value)
    assert len(e.value.problems) == 3


def test_everything_in_one_message(data):
    words = ["epoch=3", "lr=-1", "detector=yolox-nan", "method=ilyollox", "split=[[cat], [dgo]]", "weights=absent.pth"]
    with pytest.raises(ConfigError) as caught:
        load(None, [f"data={data}", *words])
    text = str(caught.value)
    assert text.startswith("6 problems:\n  1. ") and len(caught.value.problems) == 6
    for part in ("'epochs'", "train.lr", "'yolox-nano'", "'ilyolox'", "'dog'", "absent.pth"):
        assert part in text, part


def test_a_message_can_be_caught_as_ciods():
    with pytest.raises(CiodError):
        load(None, ["epoch=1"])


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("lr=1e-3", 1e-3),
        ("lr=1E-3", 1e-3),
        ("lr=-.5e2", -50.0),
        ("lr=0.001", 0.001),
        ("epochs=[3, 4]", [3, 4]),
        ("split=3+3", "3+3"),
        ("split=40+40", "40+40"),
        ("split=15+1x5", "15+1x5"),
        ("split=[[cat, dog], [bird]]", [["cat", "dog"], ["bird"]]),
        ("method.only_old=false", False),
        ("clip=null", None),
        ("clip=", None),
        ("out=runs/a=b", "runs/a=b"),
        ("detector=e2e", "e2e"),
        ("protocol.name=3e", "3e"),
    ],
)
def test_values(word, value):
    flat, problems = config.gather(None, [word])
    assert problems == [] and next(iter(flat.values())) == value and type(next(iter(flat.values()))) is type(value)


def test_shorthands_mean_the_right_section(data):
    words = ["epochs=3", "batch=4", "lr=1e-2", "size=64", "flip=0", "split=2+1", "images=only-new", "order=dataset",
             "detector=yolox-tiny", "method=pseudo_label", "method.score=0.5", "holdout=0.2"]  # fmt: skip
    run = load(None, [f"data={data}", *words])
    assert (run.train.epochs, run.train.batch, run.train.lr) == (3, 4, 0.01)
    assert (run.detector.name, run.detector.size) == ("yolox-tiny", 64)
    assert run.augment.flip == 0 and run.eval.holdout == 0.2
    assert (run.protocol.split, run.protocol.images, run.protocol.order) == ("2+1", "only-new", "dataset")
    assert run.method == {"name": "pseudo_label", "score": 0.5}
    assert run.eval.batch != 4  # ``batch`` is training's


def test_an_out_that_no_file_can_be_called(data):
    with pytest.raises(ConfigError, match=r"^out: no file can be called 'a\\x00b'\.$"):
        load(None, {"data": str(data), "out": "a\0b"})


def test_off_is_a_word(tmp_path, data):
    (tmp_path / "run.yaml").write_text(f"data: {data}\ntrain:\n  amp: off\n")
    for run in (load(None, [f"data={data}", "amp=off"]), load(tmp_path / "run.yaml")):
        assert run.train.amp == "off"
    with pytest.raises(ConfigError, match=r"train\.amp: 'on' is not allowed; allowed: off, bf16, fp16"):
        load(None, [f"data={data}", "amp=on"])


def test_every_shorthand_leads_somewhere():
    fields = set(config.Run.model_fields)
    assert all(full.split(".")[0] in fields for full in config.shorthands().values())


def test_file_and_overrides(tmp_path, data):
    """Overrides win; sections may be nested, dotted or short in either."""
    content = {"data": str(data), "split": "2+1", "train": {"epochs": 9, "batch": 8}, "train.lr": 0.5, "seed": 3,
               "method": {"name": "ilyolox", "nms_iou": 0.65}, "detector": "yolox-tiny"}  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    run = load(tmp_path / "run.yaml", ["epochs=2", "method.nms_iou=0.7"])
    assert (run.train.epochs, run.train.batch, run.train.lr, run.seed) == (2, 8, 0.5, 3)
    assert run.method == {"name": "ilyolox", "nms_iou": 0.7} and run.detector.name == "yolox-tiny"
    run = load(tmp_path / "run.yaml", {"train": {"epochs": 4}, "detector.name": "yolox-nano"})
    assert (run.train.epochs, run.train.batch, run.detector.name) == (4, 8, "yolox-nano")


def test_scenario_and_overrides(tmp_path, data):
    (tmp_path / "mine.yaml").write_text("split: 2+1\norder: dataset\nimages: only-new\n")
    run = load(None, [f"data={data}", f"scenario={tmp_path / 'mine.yaml'}", "order=seed:3"])
    assert (run.protocol.split, run.protocol.images, run.protocol.order) == ("2+1", "only-new", "seed:3")
    assert run.protocol.name == "mine"


def test_mistakes_in_a_scenario_file(tmp_path, data):
    (tmp_path / "mine.yaml").write_text("split: 2+1\nimagse: only-new\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml\.imagse: there is no such setting; did you mean 'images'"):
        load(None, [f"data={data}", f"scenario={tmp_path / 'mine.yaml'}"])
    (tmp_path / "mine.yaml").write_text("split: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not YAML"):
        load(None, [f"data={data}", f"scenario={tmp_path / 'mine.yaml'}"])
    with pytest.raises(ConfigError, match=r"scenario: there is no '.*absent\.yaml'"):
        load(None, [f"data={data}", f"scenario={tmp_path / 'absent.yaml'}"])


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "There is no settings file"), ("a: [", "is not YAML"), ("- a\n- b\n", "must hold settings .*not a list")],
)
def test_settings_files_that_are_none(tmp_path, data, content, match):
    if content is not None:
        (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ConfigError, match=match):
        load(tmp_path / "run.yaml", [f"data={data}"])


def test_a_scenario_of_the_package_needs_nothing_else():
    run = load(None, ["scenario=shapes-6+4"])
    assert run.protocol.data == "shapes" and run.protocol.split == "6+4"


def test_every_scenario_of_the_package_reads():
    from ciod.data.scenarios import scenario

    for name in scenario.available():
        protocol = scenario.read_protocol(name)
        assert protocol.name == name and protocol.description, name


def test_joint_sets_the_switch(data):
    assert load(None, [f"data={data}", "method=joint", "split=2+1"]).protocol.joint
    assert not load(None, [f"data={data}", "split=2+1"]).protocol.joint
    assert load(None, [f"data={data}", "joint=true"]).protocol.joint


def test_the_resolved_settings_load_again(tmp_path, data):
    """run.yaml of a run folder is a settings file."""
    from ciod.runs.environment import write_settings

    words = ["split=2+1", "epochs=[1, 2]", "scale=[0.9, 1.1]", "method.nms_iou=0.65", f"out={tmp_path}"]
    run = load(None, [f"data={data}", *words])
    write_settings(tmp_path, run, "a command")
    content = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert content["command"] == "a command" and content["versions"]["torch"] and content["machine"]
    settings = {k: v for k, v in content.items() if k in config.Run.model_fields}
    assert config.Run.model_validate(settings) == run


def test_variables_in_paths(monkeypatch, data):
    monkeypatch.setenv("CIOD_TEST_PETS", str(data))
    assert config.data_folder("${CIOD_TEST_PETS}") == str(data)
    assert load(None, ["data=${CIOD_TEST_PETS}", "split=2+1"]).data == "${CIOD_TEST_PETS}"


def test_shapes_are_known_without_drawing_them():
    run = load(None, ["data=shapes", f"split=[[{CLASSES[0]}], [{CLASSES[9]}]]"])
    assert run.data == "shapes"
    with pytest.raises(ConfigError, match="the data has no class 'circel'; did you mean 'circle'"):
        load(None, ["data=shapes", "split=[[circel]]"])


def test_a_folder_with_the_name_of_the_built_in_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()  # holds no data
    assert load(None, ["data=shapes", "split=6+4"]).data == "shapes"
    shutil.copytree(data, "shapes", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match=r"data: shapes is the built-in .* Write data=\./shapes for the folder"):
        load(None, ["data=shapes", "split=6+4"])
    assert load(None, ["data=./shapes", "split=2+1"]).data == "./shapes"
    assert config.data_folder("./shapes") == os.path.join(".", "shapes")  # noqa: PTH118


@pytest.mark.parametrize(
    ("word", "options", "expected"),
    [
        ("epoch", ["epochs", "batch"], "did you mean 'epochs'?"),
        ("CAT", ["cat", "dog"], "did you mean 'cat'?"),
        ("zzz", ["cat", "dog"], "allowed: cat, dog"),
        ("zzz", [], "nothing is allowed here"),
        ("zzz", [str(i) for i in range(20)], "allowed: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"),
    ],
)
def test_did_you_mean(word, options, expected):
    assert did_you_mean(word, options) == expected


def test_a_method_that_no_detector_can_serve(monkeypatch):
    from ciod import detectors
    from ciod.config import checks

    monkeypatch.setattr(detectors, "traits", lambda _: frozenset())
    monkeypatch.setattr(detectors, "offering", lambda _: [])
    assert checks.method({"method": {"name": "ilyolox"}})[0].endswith("which yolox-nano does not have, nor any other.")


@pytest.mark.parametrize(
    ("detector", "method"),
    [("yolox-pico", "feature_replay"), ("gfl-pico", "feature_replay"), ("fasterrcnn-pico", "pseudo_label")],
)
def test_auto_is_a_method_that_fits_the_detector(detector, method):
    words = ["data=shapes", "split=6+4", "method=auto", f"detector={detector}"]
    assert load(None, words).method["name"] == method


def test_auto_with_an_unknown_detector_tells_of_the_detector():
    with pytest.raises(ConfigError, match="yolox-nan"):
        load(None, ["data=shapes", "split=6+4", "method=auto", "detector=yolox-nan"])
