"""``split=``: a known class becomes several, as a user does it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ciod import detectors
from ciod.core.errors import CiodError, ConfigError
from ciod.core.types import Detections
from ciod.detectors.files import weights
from ciod.extension import names, run, settings, splitting
from ciod.extension.confusion import without
from tests.data.writers import sample_index, write_coco

MODEL = ("ant", "animal", "book")


def test_names_of_parent_and_kinds():
    plan = names.match(MODEL, ("cat", "animal", "book", "dog"), split={"animal": ["dog", "cat"]})
    assert (plan.parent, plan.new, plan.taught, plan.ignored) == ("animal", ("cat", "dog"), (), ("book",))
    assert plan.learnt == ("cat", "dog")
    sentences = plan.sentences()
    assert "animal becomes cat, dog; what is clearly none of them stays animal alone" in sentences
    assert "not used, as only kinds of animal are taught: boxes of book" in sentences


@pytest.mark.parametrize(
    ("folder", "split", "message"),
    [
        (("cat",), {"animals": ["cat"]}, "split: the model has no class 'animals'; did you mean 'animal'?"),
        (("cat",), {"animal": []}, "split: 'animal' becomes nothing; list the classes of the folder"),
        (("cat",), {"animal": ["cat", "book"]}, "split: 'book' is a class of the model already; a kind of 'animal' is"),
        (("cat",), {"animal": ["cat", "dgo"]}, "split: the folder has no class 'dgo'"),
        (
            ("cat", "tree"),
            {"animal": ["cat"]},
            r"also has tree, which the model does not know.*rename='\{tree: animal\}'",
        ),
        (("cat",), {"animal": ["cat"], "ant": ["dog"]}, "split: one class at a time; give animal, ant each a command"),
    ],
)
def test_what_cannot_become_several(folder, split, message):
    with pytest.raises(ConfigError, match=message):
        names.match(MODEL, folder, split=split)


def test_split_beside_other_settings(tmp_path):
    write_coco(sample_index(tmp_path / "raw", images=2, names=("cat",)), tmp_path / "data")
    given = {"model": "m", "data": str(tmp_path / "data"), "out": str(tmp_path / "o"), "split": {"animal": ["cat"]}}
    with pytest.raises(ConfigError, match="by a branch that only names; leave method=finetune out"):
        settings.load({**given, "method": "finetune"})
    with pytest.raises(ConfigError, match="split: known= corrects labels of an ordinary extension"):
        settings.load({**given, "known": str(tmp_path / "data")})


def test_how_many_get_the_right_name(tmp_path):
    truth = sample_index(tmp_path, images=12, names=("cat", "dog"))
    plan = names.match(("animal",), ("cat", "dog"), split={"animal": ["cat", "dog"]})
    truth = truth.relabel(plan.all)
    objects = len(truth.labels)
    found = []
    for i in range(len(truth)):
        at = truth.of_image(i)
        boxes, labels = truth.boxes[at], truth.labels[at]
        wrong = np.where(labels == 1, 2, 1)
        found.append(
            Detections(
                np.concatenate([boxes, boxes, boxes]),
                np.concatenate([np.full(len(boxes), v) for v in (0.5, 0.4, 0.2)]),
                np.concatenate([np.zeros(len(boxes)), *((labels, wrong) if i < 5 else (wrong, labels))]),
                plan.all,
            )
        )
    row = splitting.measure(found, truth, plan)
    right = sum(len(truth.labels[truth.of_image(i)]) for i in range(5))
    assert (row["objects"], row["found"], row["named"]) == (objects, objects, right) and 0 < right < objects
    assert splitting.sentences(row)[0].startswith(f"animal finds {objects} of {objects} objects, as before; {right} of")
    assert (
        splitting.measure(found, truth, names.match(("animal",), ("cat",))) is None and splitting.sentences(None) == []
    )
    nothing = [d.keep(d.labels > 0) for d in found]  # the parent finds none, so nothing can be named
    assert splitting.measure(nothing, truth, plan)["found"] == 0


def test_the_parent_is_not_confused_with_its_kinds():
    rows = [{"class": "cat", "objects": 3, "found": 0, "taken": {"animal": 3, "ant": 1}, "beside": {}}]
    assert without(rows, "animal")[0]["taken"] == {"ant": 1} and without(rows, None) == rows


def extend(tmp_path, **more):
    """A model with the class animal, extended by two kinds."""
    torch.manual_seed(0)
    detector = detectors.build(("animal",), name=more.pop("name", "yolox-pico"), size=64)
    weights.save_model(tmp_path / "model.safetensors", detector)
    write_coco(sample_index(tmp_path / "raw", images=6, names=("cat", "dog")), tmp_path / "data")
    given = {"model": str(tmp_path / "model.safetensors"), "data": str(tmp_path / "data"), "out": str(tmp_path / "out")}
    given |= {"split": {"animal": ["cat", "dog"]}, "epochs": 1, "batch": 2, "device": "cpu", "workers": 0, **more}
    return detector.eval(), run.extend(settings.load(given))


def test_a_class_becomes_several(tmp_path):
    before, out = extend(tmp_path)
    after = weights.open_detector(out / "model.safetensors").eval()
    assert after.parents == {"cat": "animal", "dog": "animal"}
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        a, b = before(images), after(images)
    assert torch.equal(b.logits[:, : a.logits.shape[1], :1], a.logits)
    results = json.loads((out / "results.json").read_text())
    assert results["extension"]["split"]["parent"] == "animal" and results["method"]["name"] == "split_class"
    assert "animal becomes cat, dog" in (out / "report.html").read_text()
    assert results["extension"]["unchanged"]["identical"] == results["extension"]["unchanged"]["images"]


def test_a_detector_without_kinds_says_so(tmp_path):
    with pytest.raises(CiodError, match="split: a class of a gfl-pico cannot become several; that needs a YOLOX"):
        extend(tmp_path, name="gfl-pico")
