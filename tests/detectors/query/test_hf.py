"""``hf:FOLDER``: checkpoints of transformers in, with their class names and preprocessing, and out again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import ciod
from ciod import detectors
from ciod.cli import app
from ciod.config import load as config
from ciod.core.distributed import World
from ciod.core.errors import CiodError
from ciod.data import names as known
from ciod.detectors.base import IMAGENET, Input
from ciod.detectors.files import weights
from ciod.detectors.query import configs, hf
from ciod.exporters import hf_folder
from ciod.extension import effort, measure
from ciod.extension import settings as extending
from ciod.listing import model_files
from tests import fixed
from tests.data.writers import sample_index, write_coco
from tests.detectors.common import SIZE, make, pictures
from tests.detectors.query.folders import FAMILIES, NETWORKS, edit, write
from tests.detectors.query.networks import trained

transformers = pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")
NAMED = ("cat", "dog", "bird")
BY_HAND = {"train": {"clip": 5.0, "weight_decay": 0.0}, "eval": {"nms_iou": 0.5}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    return {family: (root / family, write(root / family, family)) for family in NETWORKS}


@pytest.fixture
def folder(folders, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(folders["rt_detr"][0], tmp_path / "model")


def picture(seed: int = 0, height: int = 50, width: int = 80) -> Image.Image:
    g = np.random.default_rng(seed)
    coarse = Image.fromarray(g.integers(0, 256, (5, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def pipeline(folder: Path):
    return transformers.pipeline("object-detection", model=str(folder))


def same_as_pipeline(found: list[dict], detections, *, pixels: float = 1.0) -> None:
    """The pipeline rounds coordinates down."""
    assert len(found) > 3
    order = sorted(detections, key=lambda d: -d.score)[: len(found)]
    for theirs, ours in zip(sorted(found, key=lambda f: -f["score"]), order, strict=True):
        assert theirs["label"] == ours.name and theirs["score"] == pytest.approx(ours.score, abs=1e-4)
        box = [theirs["box"][k] for k in ("xmin", "ymin", "xmax", "ymax")]
        clipped = np.clip(box, 0, [80, 50, 80, 50])
        assert np.abs(clipped - np.array(ours.box)).max() <= pixels, (box, ours.box)


# In -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", NETWORKS)
def test_a_checkpoint_has_its_outputs_names_and_input(family, folders):
    folder, model = folders[family]
    detector = weights.load(f"hf:{folder}")
    assert detector.class_names == NAMED, "the row without a name is left out"
    assert detector.input == Input(SIZE, std=(255.0, 255.0, 255.0), fill=0.0, place="stretch")
    whole = weights.load(f"hf:{folder}", classes=["a", "b", "c", "d"])
    assert whole.class_names == ("a", "b", "c", "d"), "one name for every row"
    with torch.no_grad():
        answer, theirs = whole(pictures()).answer(), model(pixel_values=pictures() / 255)
        kept = detector(pictures()).answer()
    torch.testing.assert_close(answer.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    unit = replace(answer, boxes=answer.boxes / SIZE).boxes
    centre = torch.cat([(unit[..., :2] + unit[..., 2:]) / 2, unit[..., 2:] - unit[..., :2]], -1)
    torch.testing.assert_close(centre, theirs.pred_boxes, rtol=1e-4, atol=1e-4)
    assert kept.logits.shape == (*answer.logits.shape[:2], len(NAMED))


def test_a_picture_is_prepared_as_transformers_does(folders):
    """Stretched, so that every box of the pipeline is one of ciod's."""
    folder, _ = folders["rt_detr"]
    detector = weights.load(f"hf:{folder}", classes=["cat", "N/A", "dog", "bird"])
    same_as_pipeline(pipeline(folder)(picture(), threshold=0.3), every(detector, picture()))


def every(detector, image: Image.Image):
    """Every class of every query, as the pipeline gives them."""
    from ciod.core.types import in_original
    from ciod.data.augment import put

    spec = detector.input
    x, frame = put(np.array(image), spec.size, spec.fill, spec.place)
    with torch.no_grad():
        out = detector(x[None])
    found = detector.decode(out, score_threshold=0.0, max_detections=1000, multi_label=True)[0]
    return in_original(found, frame, image.height, image.width)


@pytest.mark.parametrize(
    ("processor", "wanted"),
    [
        ({"do_normalize": True}, Input(SIZE, **IMAGENET, fill=0.0, place="stretch")),
        ({"do_rescale": False}, Input(SIZE, fill=0.0, place="stretch")),
        (
            {
                "size": {"max_height": SIZE, "max_width": SIZE},
                "do_pad": True,
                "pad_size": {"height": SIZE, "width": SIZE},
            },
            Input(SIZE, std=(255.0, 255.0, 255.0), fill=0.0, place="corner"),
        ),
    ],
    ids=["imagenet", "0..255", "border"],
)
def test_ways_to_prepare_pictures(processor, wanted, tmp_path):
    how = {"size": {"height": SIZE, "width": SIZE}, **processor}
    theirs = transformers.RTDetrImageProcessor(**how)
    theirs.save_pretrained(tmp_path)
    found = hf.input_of(json.loads((tmp_path / "preprocessor_config.json").read_text()), "a file")
    assert found == wanted
    again = hf_folder.pictures(found)
    if found.std != (1.0, 1.0, 1.0):
        assert hf.input_of(again, "a file") == found, "and back"
    from ciod.data.augment import put

    pixels, _ = put(np.array(picture()), found.size, found.fill, found.place)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (found.mean, found.std))
    given = theirs(images=[picture()], return_tensors="pt")["pixel_values"][0]
    assert ((pixels - mean) / std - given).abs().max() < 1.5 / min(found.std), "one grey value of rounding at most"


def test_class_names(folder):
    edit(folder / "config.json", id2label={str(i): f"LABEL_{i}" for i in range(4)})
    with pytest.raises(CiodError, match="has 4 classes but no class names; give them: names=a,b,c"):
        weights.load(f"hf:{folder}")
    with pytest.raises(CiodError, match="has 4 classes, but 2 names were given"):
        weights.load(f"hf:{folder}", classes=["a", "b"])
    assert weights.load(f"hf:{folder}", classes=list("abcd")).class_names == tuple("abcd")
    assert weights.donor(Path(f"hf:{folder}")).class_names[0] == "\0" + "0", "which no class is called"
    edit(folder / "config.json", id2label={"0": "a", "1": "b", "2": "a", "3": "c"})
    with pytest.raises(CiodError, match="two classes that are called 'a'; give names=a,b,c"):
        weights.load(f"hf:{folder}")
    edit(folder / "config.json", id2label={"0": "a", "7": "b"})
    with pytest.raises(CiodError, match="id2label is not a list of classes numbered from 0"):
        weights.load(f"hf:{folder}")
    described = hf.Described(folder, {}, tuple(f"LABEL_{i}" for i in range(80)), Input())
    assert described.names()[1] == known.COCO


# Refused --------------------------------------------------------------------------------------------------------------


def broken(folder: Path, what: str) -> None:
    changes = {
        "family": {"model_type": "detr"},
        "two stages": {"model_type": "deformable_detr", "two_stage": True},
        "backbone": {"backbone_config": None, "backbone": "resnet50", "use_timm_backbone": True},
        "softmax": {"use_focal_loss": False},
        "huge": {"d_model": 1 << 40},
        "long": {"feat_strides": [8] * 1000},
        "text": {"activation_function": "a" * 1000},
        "odd": {"decoder_layers": {"a": {1: 2}}},
        "heads": {"decoder_attention_heads": 5},
        "wider": {"encoder_ffn_dim": 256},
        "deeper": {"decoder_layers": 3},
    }
    edit(folder / "config.json", **changes[what])


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("family", "is a 'detr'; ciod reads rt_detr, rt_detr_v2, d_fine, deimv2, deformable_detr, lw_detr, rf_detr"),
        ("backbone", "its backbone is 'resnet50'; ciod reads rt_detr_resnet, hgnet_v2"),
        ("two stages", "Deformable DETR with two_stage=true, whose encoder proposes the queries, cannot be read"),
        ("softmax", r"learnt initial queries and softmax scores \(use_focal_loss=false\) cannot be read"),
        ("huge", "d_model=1099511627776 in its configuration is not a value that a network can have"),
        ("long", "feat_strides with 1000 entries in its configuration is not a value"),
        ("text", "activation_function with 1000 characters in its configuration is not a value"),
        ("heads", "cannot be built by transformers"),
        ("wider", "cannot be built by transformers|does not fit its config.json"),
        ("deeper", "does not fit its config.json: .* tensors are not in it, such as"),
    ],
)
def test_a_configuration_without_a_detector_is_refused(what, match, folder):
    broken(folder, what)
    with pytest.raises(CiodError, match=match):
        weights.load(f"hf:{folder}")


@pytest.mark.parametrize(
    ("size", "more"),
    [
        ({"height": 64, "width": 96}, {}),
        ({"shortest_edge": 800, "longest_edge": 1333}, {}),
        ({"height": 50, "width": 50}, {}),
    ],
)
def test_pictures_of_another_shape_are_refused(size, more, folder):
    edit(folder / "preprocessor_config.json", size=size, **more)
    with pytest.raises(CiodError, match="is not a square with sides of a multiple of 32 pixels, stretched"):
        weights.load(f"hf:{folder}")


def test_numbers_of_the_preprocessing_are_checked(folder):
    edit(folder / "preprocessor_config.json", do_normalize=True, image_std=["a", 1, 1])
    with pytest.raises(CiodError, match="image_mean, image_std and rescale_factor must be numbers"):
        weights.load(f"hf:{folder}")
    edit(folder / "preprocessor_config.json", image_std=[1, 1, 0])
    with pytest.raises(CiodError, match="image_mean and image_std must have three numbers, the latter above 0"):
        weights.load(f"hf:{folder}")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CiodError, match=r"has no preprocessor_config.json, which says how pictures are given"):
        weights.load(f"hf:{folder}")


def test_only_safetensors_are_read(folder):
    state = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}  # else it is the file
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CiodError, match=r"model.safetensors is not a readable model file"):
        weights.load(f"hf:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CiodError, match=r"has no model\.safetensors"):
        weights.load(f"hf:{folder}")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CiodError, match=r"has its weights in pytorch_model.bin, and loading that could run code"):
        weights.load(f"hf:{folder}")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CiodError, match="has its weights in several files"):
        weights.load(f"hf:{folder}")
    edit(folder / "config.json", auto_map={"AutoModel": "code.Model"}, quantization_config={"quant_method": "x"})
    (folder / "code.py").write_text("raise SystemExit('ran')")
    save_file(state, folder / "model.safetensors")
    assert weights.load(f"hf:{folder}").class_names == NAMED, "nothing in the folder is run"


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    import huggingface_hub

    def fetch(name, allow_patterns):
        assert "model.safetensors" not in allow_patterns or name, "only JSON for a look"
        raise OSError("offline mode is enabled.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CiodError, match=r"hf:a/b: there is no folder a/b, and it cannot be fetched from .*offline mode"
    ):
        detectors.build((), name="hf:a/b")
    with pytest.raises(CiodError, match="hf:nowhere: there is no folder nowhere"):
        weights.load("hf:nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CiodError, match=r"file is a file; name the folder that holds its config.json"):
        weights.load("hf:file")


def test_a_name_of_the_hub_is_fetched(folders, monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, "model.safetensors" in allow_patterns))
        return str(folders["rt_detr"][0])

    def fetch_one(name, file, **_):
        assert (name, file) == ("someone/rtdetr", "config.json")
        return str(folders["rt_detr"][0] / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_one)
    monkeypatch.chdir(tmp_path)
    assert "first_stage" in detectors.traits("hf:someone/rtdetr") and asked == [("someone/rtdetr", False)]
    assert weights.load("hf:someone/rtdetr").class_names == NAMED
    assert asked[-1] == ("someone/rtdetr", True)


@pytest.mark.parametrize(
    ("name", "card", "why"),
    [
        ("roboflow/rf-detr-xlarge", None, "RF-DETR XL and 2XL are under PML-1.0"),
        ("roboflow/rfdetr-2xl", None, "RF-DETR XL and 2XL are under PML-1.0"),
        ("", "license: other\nlicense_name: pml-1.0", "its licence is PML-1.0"),
        ("", "license: cc-by-nc-4.0", "its licence forbids commercial use"),
        ("", "license: openrail", "its licence restricts what it may be used for"),
    ],
)
def test_weights_that_are_not_free_are_refused_by_name(name, card, why, folder):
    if card:
        (folder / "README.md").write_text(f"---\n{card}\ntags: []\n---\n# A model\n")
    with pytest.raises(CiodError, match=f"is refused: {why}.*weights under free licences only"):
        weights.load(f"hf:{name or folder}")


def test_a_free_licence_is_accepted(folder):
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nThis is not non-commercial.\n")
    assert weights.load(f"hf:{folder}").class_names == NAMED


def test_a_model_file_leads_to_no_folder(folders, tmp_path):
    folder, _ = folders["rt_detr"]
    detector = weights.load(f"hf:{folder}")
    settings = dict(detector.settings)
    for name in (f"hf:{folder}", "hf:someone/model", "hf:rt_detr"):
        detector.settings = {"name": name, "size": SIZE, **({"config": "{}"} if "rt_detr" not in name else {})}
        weights.save_model(tmp_path / "m.safetensors", detector)
        with pytest.raises(CiodError, match="a checkpoint that lies outside the model, and no model file may lead to"):
            weights.load(tmp_path / "m.safetensors")
    for wrong, match in (
        ({"config": "{"}, "the configuration in its settings is not JSON"),
        ({"config": json.dumps({"model_type": "rt_detr", "backbone": "x"})}, "its backbone is 'x'"),
        ({"mean": [1.0]}, "mean, std and place in its settings do not describe an input"),
    ):
        detector.settings = {**settings, **wrong}
        weights.save_model(tmp_path / "m.safetensors", detector)
        with pytest.raises(CiodError, match=match):
            weights.load(tmp_path / "m.safetensors")


# Used and out again ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_coco(sample_index(root / "raw", images=6, names=("eel", "fox")), root / "folder")
    return root / "folder"


def kept_from_loss(model: Path, own: Path, foreign: Path) -> None:
    """An export replaces an earlier one of ciod, another folder when asked to, and never the model itself."""
    hf_folder.export(model, own)
    copied = Path(shutil.copytree(foreign, own.parent / "copied"))
    with pytest.raises(CiodError, match="already exists and was not written by 'ciod export'"):
        hf_folder.export(model, copied)
    with pytest.raises(CiodError, match="is the model itself; choose another folder"):
        hf_folder.export(f"hf:{copied}", copied, overwrite=True)
    assert hf_folder.export(model, copied, overwrite=True).content() == {"folder": str(copied), "notes": []}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_extended_and_loaded_by_transformers_again(family, folders, data, tmp_path, capsys):
    folder, _ = folders[family]
    quick = {"epochs": 1, "batch": 2, "device": "cpu"}
    results = ciod.extend(f"hf:{folder}", data, tmp_path / "run", **quick)
    output = " ".join(capsys.readouterr().out.split())
    assert "method: pseudo_label (chosen by auto, so that export hf= can write the model back; method=freeze_" in output
    assert results["extension"]["names"]["new"] == ["eel", "fox"]
    chosen = results["extension"]["plan"]["more"]
    assert chosen["train.clip"] == 0.1 and chosen["train.weight_decay"] == 1e-4, "as ciod train does"
    done = CliRunner().invoke(app, ["export", str(tmp_path / "run" / "model.safetensors"), f"hf={tmp_path / 'out'}"])
    assert done.exit_code == 0, done.output
    if family == next(iter(FAMILIES)):
        kept_from_loss(tmp_path / "run" / "model.safetensors", tmp_path / "out", folder)
    detector = weights.load(tmp_path / "run" / "model.safetensors")
    assert detector.class_names == (*NAMED, "eel", "fox") and detector.input.place == "stretch"
    found = pipeline(tmp_path / "out")
    assert list(found.model.config.id2label.values()) == [*NAMED, "eel", "fox"]
    same_as_pipeline(found(picture(), threshold=0.2), every(detector, picture()))
    again = weights.load(f"hf:{tmp_path / 'out'}")
    with torch.no_grad():
        torch.testing.assert_close(again(pictures()).logits, detector(pictures()).logits, rtol=1e-4, atol=1e-4)


def test_what_a_detector_brings_along_can_be_set_by_hand(tmp_path):
    words = {"model": "m.safetensors", "data": "shapes", "out": "no-run"}
    detector, train, world = make("rtdetr-pico"), sample_index(tmp_path, images=4, names=("eel",)), World()
    for given, brought, nms_iou in (({}, {"train.clip": 1.0, "train.weight_decay": 1e-4}, 1.0), (BY_HAND, {}, 0.5)):
        settings = extending.Extend.model_validate({**words, **given})
        plan = effort.choose(settings, train, 1, detector, "pseudo_label", world)
        assert {k: v for k, v in plan.more.items() if k in ("train.clip", "train.weight_decay")} == brought
        assert ("clip 1, weight_decay 0.0001, as the detector brings it along" in plan.why) == bool(brought)
        assert measure.evaluation(settings, detector).nms_iou == nms_iou
    assert measure.evaluation(settings, make("yolox-pico")).nms_iou == 0.5
    assert plan.lr < 1e-3, "a query detector must keep what it knows"


def test_other_commands_take_a_checkpoint(folders, data, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    folder, _ = folders["rt_detr"]
    run = lambda *words: CliRunner().invoke(app, [str(w) for w in words])  # noqa: E731
    output = run("list", f"hf:{folder}").output
    assert f"rt_detr, pictures of {SIZE} pixels, stretched; 3 classes: cat, dog, bird" in " ".join(output.split())
    picture().save(tmp_path / "a.png")
    done = run("predict", f"hf:{folder}", tmp_path / "a.png", f"out={tmp_path / 'p'}", "score=0.01")
    assert done.exit_code == 0, done.output
    write_coco(sample_index(tmp_path / "raw", images=3, names=("cat", "dog")), tmp_path / "cats")
    done = run("eval", f"hf:{folder}", f"data={tmp_path / 'cats'}", "split=train")
    assert done.exit_code == 0 and "AP50" in done.output, done.output
    done = run("export", f"hf:{folder}", f"onnx={tmp_path / 'a.onnx'}", f"images={tmp_path / 'a.png'}")
    assert done.exit_code == 0, done.output
    from ciod.exporters.onnx_file import read_metadata

    meta = read_metadata(tmp_path / "a.onnx")
    assert meta["input"]["place"] == "stretch" and "letterbox" not in meta["input"]
    weights.save_model(tmp_path / "m.safetensors", weights.load(f"hf:{folder}"))
    assert "backbone_config" not in run("list", tmp_path / "m.safetensors").output


def test_training_starts_from_the_checkpoint(folders, tmp_path):
    """Its class rows are taken by name; classes that it does not know are new."""
    from ciod.runs.run import train

    folder, _ = folders["rt_detr"]
    write_coco(sample_index(tmp_path / "raw", images=6, names=("dog", "eel")), tmp_path / "data")
    words = [
        f"data={tmp_path / 'data'}",
        "split=1+1",
        f"detector=hf:{folder}",
        "method=finetune",
        "epochs=1",
        "batch=2",
    ]
    settings = config.load(None, [*words, f"out={tmp_path / 'run'}", "device=cpu", "lr=1e-9", "eval.holdout=0.3"])
    assert settings.train.clip == 0.1 and settings.eval.nms_iou == 1.0
    train(settings)
    made, was = weights.load(tmp_path / "run" / "task-1" / "model.safetensors"), weights.load(f"hf:{folder}")
    assert made.class_names == ("dog",) and made.settings["name"] == "hf:rt_detr"
    own = {r.name.rpartition(".blocks.")[0] + r.name[-4:]: r.tensor for r in was.class_layers()}
    for r in made.class_layers():
        theirs = own[r.name.rpartition(".blocks.")[0] + r.name[-4:]][1]
        assert torch.allclose(r.tensor[0], theirs, atol=1e-5)


def test_a_network_can_be_trained_from_nothing(folders):
    folder, _ = folders["rt_detr"]
    detector = detectors.build(("a",), name=f"hf:{folder}", backbone_weights="random", size=96)
    assert detector.input.size == 96 and not json.loads(detector.settings["config"])["freeze_backbone_batch_norms"]
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in detector.network.backbone.modules())
    with pytest.raises(CiodError, match=r"backbone_weights: hf:.* takes none; write weights=FILE"):
        detectors.build(("a",), name=f"hf:{folder}", backbone_weights="imagenet")


def test_layers_behind_the_one_that_answers_are_left_out(folders):
    raw = json.loads((folders["d_fine"][0] / "config.json").read_text())
    assert configs.plain({**raw, "eval_idx": 0}, "a test")["decoder_layers"] == 1
    assert configs.plain({**raw, "eval_idx": -1}, "a test")["decoder_layers"] == 2


def test_one_box_head_of_all_layers_stays_one(folders, tmp_path):
    detector = weights.load(f"hf:{folders['deimv2 lite'][0]}")
    detector.grow(["eel"])
    weights.save_model(tmp_path / "m.safetensors", detector)
    hf_folder.export(tmp_path / "m.safetensors", tmp_path / "out")
    again = weights.load(f"hf:{tmp_path / 'out'}")
    assert sum("bbox_embed" in n for n, _ in again.named_parameters()) == 6, "three layers, for all of the decoder"
    with torch.no_grad():
        torch.testing.assert_close(again(pictures()).logits, detector(pictures()).logits, rtol=1e-4, atol=1e-4)
    model = transformers.Deimv2ForObjectDetection.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        theirs = model(pixel_values=pictures() / 255).logits
        torch.testing.assert_close(again(pictures()).answer().logits, theirs, rtol=1e-4, atol=1e-4)
    targets = fixed.boxes_at_random(1, [2, 1], classes=4, size=SIZE)
    outputs = detector(pictures())
    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    assert set(losses) == {"cls", "box", "giou"}, "its authors train it without the losses of distributions"


def test_our_own_variants_go_out_too_but_not_the_one_with_another_trunk(tmp_path):
    detector = trained()
    done = hf_folder.export(detector, tmp_path / "out")
    assert "The pipeline of transformers scales boxes as if the picture filled the square" in done.notes[0]
    again = weights.load(f"hf:{tmp_path / 'out'}")
    with torch.no_grad():
        torch.testing.assert_close(again(pictures()).logits, detector(pictures()).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(
        CiodError, match="rtdetr-csp-pico cannot be exported to transformers, which has no such network"
    ):
        hf_folder.export(make("rtdetr-csp-pico"), tmp_path / "no")
    with pytest.raises(CiodError, match="The model has no classes yet; train it first"):
        hf_folder.export(make("rtdetr-pico", ()), tmp_path / "no")
    detector.input = replace(detector.input, place="letterbox")
    with pytest.raises(CiodError, match="has neither BGR nor a border in the middle or of a colour"):
        hf_folder.export(detector, tmp_path / "no")


def test_a_folder_without_class_names_is_listed(folder):
    edit(folder / "config.json", id2label={str(i): f"LABEL_{i}" for i in range(3)})
    border = {"size": {"max_height": SIZE, "max_width": SIZE}, "do_pad": True}
    edit(folder / "preprocessor_config.json", **border, pad_size={"height": SIZE, "width": SIZE})
    (line,) = model_files.of_hub(f"hf:{folder}").lines
    assert str(line).endswith(f"rt_detr, pictures of {SIZE} pixels, with a border; 3 classes, not named")
