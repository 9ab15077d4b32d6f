"""Wrong uses of ciod extend: one sentence that says what is wrong and what to do, and exit code 2."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from ciod import cli, detectors
from ciod.core.errors import CiodError
from ciod.detectors.files import weights
from ciod.detectors.gfl import GFL
from ciod.extension import data
from tests.data.writers import sample_index, write_coco, write_voc, write_yolo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    weights.save_model(path, detectors.build(("cat", "cow"), name="yolox-pico", size=64))
    return path


@pytest.fixture
def folder(tmp_path):
    return write_coco(sample_index(tmp_path / "raw", images=4, names=("dog", "eel")), tmp_path / "folder")


def refusal(monkeypatch, capsys, *words) -> str:
    """What the command says, with exit code 2 and no traceback."""
    monkeypatch.setattr(sys, "argv", ["ciod", "extend", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("ciod: ") and "Traceback" not in message
    return message


def edit(folder, change) -> None:
    path = folder / "train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_labels_but_no_images(model, tmp_path, monkeypatch, capsys, write):
    root = write(sample_index(tmp_path / "raw", images=3, names=("dog", "eel")), tmp_path / "folder")
    for picture in [*root.rglob("*.png")]:
        picture.unlink()
    message = refusal(monkeypatch, capsys, model, f"data={root}", f"out={tmp_path / 'out'}")
    assert "no usable image" in message or "no image" in message or "not one picture" in message


def test_no_images_at_all(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    message = refusal(monkeypatch, capsys, model, f"data={tmp_path / 'empty'}", f"out={tmp_path / 'out'}")
    assert "is not a data set that ciod knows" in message and "Found: nothing" in message


def test_images_but_no_boxes(model, folder, monkeypatch, capsys):
    edit(folder, lambda content: content.update(annotations=[]))
    message = refusal(monkeypatch, capsys, model, f"data={folder}", f"out={folder.parent / 'out'}")
    assert "not one box" in message or "no box" in message


def test_a_checkpoint_of_another_architecture(folder, tmp_path, monkeypatch, capsys):
    torch.save({"model": {"layer1.weight": torch.zeros(3, 3)}}, tmp_path / "resnet.pth")
    message = refusal(monkeypatch, capsys, tmp_path / "resnet.pth", f"data={folder}", f"out={tmp_path / 'out'}")
    assert "is not a checkpoint of a detector that ciod has" in message


def test_class_names_missing(folder, tmp_path, monkeypatch, capsys):
    model = detectors.build(("a", "b"), name="yolox-pico", size=64)
    torch.save({"model": model.state_dict()}, tmp_path / "nameless.pth")
    message = refusal(monkeypatch, capsys, tmp_path / "nameless.pth", f"data={folder}", f"out={tmp_path / 'out'}")
    assert "has 2 classes but no class names; give them" in message


def test_a_data_set_of_keypoints_without_boxes(model, folder, monkeypatch, capsys):
    def change(content):
        for a in content["annotations"]:
            del a["bbox"]
            a["keypoints"] = [[1, 1, 5, 1, 5, 5]]

    edit(folder, change)
    message = refusal(monkeypatch, capsys, model, f"data={folder}", f"out={folder.parent / 'out'}")
    assert "segmentations or keypoints" in message and "box" in message


def test_two_classes_of_one_name(model, folder, monkeypatch, capsys):
    edit(folder, lambda content: content["categories"][1].update(name="dog"))
    message = refusal(monkeypatch, capsys, model, f"data={folder}", f"out={folder.parent / 'out'}")
    assert "two classes have the name 'dog'" in message


def test_a_disk_with_too_little_space(model, folder, monkeypatch, capsys):
    monkeypatch.setattr(data, "free_of", lambda path: 1e6)
    message = refusal(monkeypatch, capsys, model, f"data={folder}", f"out={folder.parent / 'out'}")
    assert "there is 1 MB of room" in message and not (folder.parent / "out").exists()


def test_every_setting_that_is_wrong_at_once(model, monkeypatch, capsys):
    message = refusal(
        monkeypatch, capsys, model, "data=/nowhere", "efort=quick", "method=finetun", "size=100", "min_retention=98"
    )
    for part in (
        "efort: there is no such setting; did you mean 'effort'?",
        "there is no method 'finetun'; did you mean 'finetune'?",
        "size: should be a multiple of 32",
        "min_retention: should be less than or equal to 1",
        "data: there is no folder /nowhere",
        "out= is needed",
    ):
        assert part in message, part


def test_an_interim_model_is_trained_by_ciod_train_alone(folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "m.safetensors"
    weights.save_model(path, detectors.build(("cat",), name="fasterrcnn-pico", size=64))
    message = refusal(monkeypatch, capsys, path, f"data={folder}", f"out={tmp_path / 'out'}", "method=bpf")
    assert (
        "method: bpf learns from an interim model of the new classes, which only ciod train trains; give the" in message
    )


def test_a_method_that_the_detector_cannot_be_taught_by(folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "m.safetensors"
    weights.save_model(path, detectors.build(("cat",), name="gfl-pico", size=64))
    monkeypatch.setattr(GFL, "traits", GFL.traits - {"branches"})
    message = refusal(monkeypatch, capsys, path, f"data={folder}", f"out={tmp_path / 'out'}", "method=freeze_branch")
    assert "method: freeze_branch needs a detector with branches, which gfl-pico does not have." in message


def test_a_method_that_trains_more_than_branches(folder, tmp_path, monkeypatch, capsys):
    path, detector = tmp_path / "m.safetensors", detectors.build(("cat",), name="gfl-pico", size=64)
    detector.add_branch(["dog"])
    weights.save_model(path, detector)
    message = refusal(monkeypatch, capsys, path, f"data={folder}", f"out={tmp_path / 'out'}", "method=pseudo_label")
    assert "method: pseudo_label trains the whole model, and of a gfl-pico that was extended only further" in message
    assert "use method=freeze_branch." in message


def test_old_data_without_an_old_class(model, folder, tmp_path, monkeypatch, capsys):
    write_coco(sample_index(tmp_path / "other", names=("dog", "eel")), tmp_path / "old", "val")
    words = [f"data={folder}", f"old_data={tmp_path / 'old'}", f"out={tmp_path / 'out'}", "epochs=1"]
    message = refusal(monkeypatch, capsys, model, *words)
    assert "val.json has no box of an old class; it names dog, eel, the model cat, cow." in message


def test_joint_training_is_refused(model, folder, monkeypatch, capsys):
    message = refusal(monkeypatch, capsys, model, f"data={folder}", "out=x", "method=joint")
    assert "joint training needs the old images" in message


def test_a_folder_without_an_image():
    from tests.fixed import index_of

    with pytest.raises(CiodError, match=r"a test has no image\."):
        data._usable(index_of([], ("a",), 0))
