"""Model files: damaged, strange, foreign; and trunks taken from them."""

from __future__ import annotations

import json
import os
import re
import struct

import pytest
import torch

from ciod.core.errors import CiodError
from ciod.data.names import COCO
from ciod.detectors.base import Detector
from ciod.detectors.files import foreign, model_file
from ciod.detectors.files import weights as files
from tests.detectors.common import NAMES, make, pictures


@pytest.fixture
def model(tmp_path):
    files.save_model(tmp_path / "model.safetensors", make())
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_model_is_named_as_such(model, share):
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CiodError, match=r"is not a readable model file .* It may be truncated"):
        files.load(model)


def test_a_strange_safetensors_file(model, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "strange.safetensors")
    with pytest.raises(CiodError, match="not a ciod model: it has no class names"):
        files.load(tmp_path / "strange.safetensors")


def test_metadata_of_another_architecture(model):
    """The header says tiny, the tensors are nano's."""
    content = model.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["ciod"])
    meta["detector"]["name"] = "yolox-tiny"
    for number, match in ((1, "does not fit the detector its metadata describes"), (2, "is damaged: its content")):
        header["__metadata__"]["ciod"] = json.dumps({**meta, "format": number})  # 1 had no checksum
        changed = json.dumps(header).encode()
        model.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
        with pytest.raises(CiodError, match=match):
            files.load(model)


def test_a_model_file_that_changes_while_it_is_read_is_refused(model, monkeypatch):
    """Its header was read; then another process writes over it."""
    real = model_file.read_metadata

    def then_torn(path):
        meta = real(path)
        path.write_bytes(path.read_bytes()[:-1000])
        return meta

    monkeypatch.setattr(model_file, "read_metadata", then_torn)
    with pytest.raises(CiodError, match=r"model\.safetensors is not a readable model file .* It may be truncated"):
        files.load(model)


def test_no_such_model_file(model):
    with pytest.raises(CiodError, match=r"no model file .*did you mean '.*model\.safetensors'"):
        files.load(model.with_name("modell.safetensors"))


def test_a_folder_instead_of_its_model(model, tmp_path):
    with pytest.raises(
        CiodError, match=r"run is a folder, not a model file; its model is .*task-2/model\.safetensors\.$"
    ):
        run = tmp_path / "run"
        for task in ("task-1", "task-2"):
            (run / task).mkdir(parents=True)
            (run / task / "model.safetensors").write_bytes(b"")
        files.load(run)
    with pytest.raises(CiodError, match=r"empty is a folder, not a model file\.$"):
        (tmp_path / "empty").mkdir()
        files.load(tmp_path / "empty")


def test_a_saved_state_instead_of_a_model(tmp_path):
    torch.save({"format": 2, "identity": {}, "task": 1}, tmp_path / "state.pt")
    with pytest.raises(CiodError, match=r"is the saved state of a run, not a model; give a model\.safetensors of its"):
        files.load(tmp_path / "state.pt")
    torch.save({"a": 1}, tmp_path / "a.pt")
    with pytest.raises(CiodError, match=r"Its tensors are called, for example, nothing: there are none\."):
        files.load(tmp_path / "a.pt")


class Canary:
    """Unpickling this makes a folder: code that a checkpoint must never be able to run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path, protocol):
    canary = tmp_path / "canary"
    torch.save({"model": {}, "extra": Canary(canary)}, tmp_path / "evil.pth", pickle_protocol=protocol)
    asks = r" It asks for \w+\.mkdir\." if protocol == 2 else ""  # PyTorch does not read so far in the other
    with pytest.raises(CiodError, match=rf"loading it could run code; it is refused\. Save .*\)\.{asks}$"):
        files.load(tmp_path / "evil.pth")
    assert not canary.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert canary.exists()  # the payload works: the refusal was not luck


@pytest.mark.parametrize("content", [b"hi\n", b"", b"\x89PNG\r\n\x1a\n", b"{}", b"import torch\n"])
def test_a_file_of_another_kind(tmp_path, content):
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(CiodError, match=r"notes\.txt is not a readable PyTorch file"):
        files.load(tmp_path / "notes.txt")


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    import pickle

    canary = tmp_path / "canary"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(CiodError, match=r"refused|not a readable PyTorch file"):
        files.load(tmp_path / "evil.pth")
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 damaged"])
def test_a_truncated_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "damaged.pth").write_bytes(content)
    with pytest.raises(CiodError, match=r"damaged\.pth"):
        files.load(tmp_path / "damaged.pth")


def test_a_checkpoint_of_something_else(tmp_path):
    torch.save({"state_dict": {"layer.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(CiodError, match=r"not a checkpoint of a detector that ciod has .*layer\.weight"):
        files.load(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CiodError, match="contains a list, not a state dict"):
        files.load(tmp_path / "list.pth")


def official(detector: Detector) -> dict[str, torch.Tensor]:
    """A state dict under Megvii's key names, made by turning the rules round. Enough for nano."""
    parts = [
        ("backbone.stem.", "backbone.backbone.stem."),
        ("neck.reduce.0.", "backbone.lateral_conv0."),
        ("neck.reduce.1.", "backbone.reduce_conv1."),
        ("neck.top_down.0.", "backbone.C3_p4."),
        ("neck.top_down.1.", "backbone.C3_p3."),
        ("neck.downsample.0.", "backbone.bu_conv2."),
        ("neck.downsample.1.", "backbone.bu_conv1."),
        ("neck.bottom_up.0.", "backbone.C3_n3."),
        ("neck.bottom_up.1.", "backbone.C3_n4."),
        ("neck.out.", "head.stems."),
        ("head.cls_tower.", "head.cls_convs."),
        ("head.reg_tower.", "head.reg_convs."),
        ("head.reg.", "head.reg_preds."),
        ("head.obj.", "head.obj_preds."),
    ] + [(f"backbone.stage{i}.", f"backbone.backbone.dark{i + 1}.") for i in range(1, 5)]
    out = {}
    for key, value in detector.state_dict().items():
        new = next((to + key.removeprefix(ours) for ours, to in parts if key.startswith(ours)), key)
        if new.startswith("head.cls."):
            new = new.replace("head.cls.", "head.cls_preds.").replace(".blocks.0.", ".")
        new = new.replace(".depth.", ".dconv.").replace(".point.", ".pconv.").replace(".blocks.", ".m.")
        for ours, theirs in ((".main.", ".conv1."), (".short.", ".conv2."), (".final.", ".conv3.")):
            new = new.replace(ours, theirs)
        out[new] = value
    return out


@pytest.mark.parametrize("name", ["yolox-nano", "yolox-tiny", "yolox-s"])
def test_official_key_names(name, tmp_path):
    detector = make(name).eval()
    torch.save({"model": official(detector)}, tmp_path / "official.pth")
    loaded = files.load(tmp_path / "official.pth", classes=NAMES)
    assert loaded.settings["name"] == name and loaded.class_names == NAMES
    assert loaded.lineage == [{"from": "official.pth", "classes": list(NAMES)}]
    for key, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_class_names_of_a_checkpoint(tmp_path):
    path = tmp_path / "official.pth"
    torch.save({"model": official(make())}, path)
    with pytest.raises(CiodError, match="has 3 classes but no class names; give them: names=a,b,c"):
        files.load(path)
    with pytest.raises(CiodError, match="has 3 classes, and names= gives 2"):
        files.load(path, classes=["a", "b"])
    torch.save({"state_dict": official(make()), "meta": {"dataset_meta": {"classes": list(NAMES)}}}, path)
    assert files.load(path).class_names == NAMES


def test_a_file_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "official.pth"
    torch.save(official(make()), path)
    read = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **given: read.append(file) or real(file, **given))
    assert files.donor(path).num_classes == len(NAMES) and read == [path]
    files.load_trunk(make(seed=9), path)
    assert read == [path, path]


def test_trunk_of_another_model(tmp_path, model):
    other = make(names=("x", "y"), seed=9)
    head = {k: v.clone() for k, v in other.state_dict().items() if k.startswith("head.")}
    taken = files.load_trunk(other, model)
    donor = files.load(model).state_dict()
    assert taken.total == sum(not k.startswith("head.") and "num_batches" not in k for k in donor)
    for key, value in other.state_dict().items():
        assert torch.equal(value, head[key] if key.startswith("head.") else donor[key]), key
    assert other.class_names == ("x", "y")

    torch.save(official(make(names=("p",))), tmp_path / "nameless.pth")  # its head is not used: no names needed
    assert files.load_trunk(other, tmp_path / "nameless.pth") == taken
    with pytest.raises(CiodError, match=r"is a yolox-nano, but detector\.name is yolox-tiny"):
        files.load_trunk(make("yolox-tiny"), model)


# Trunks and names of other families -----------------------------------------------------------------------------------


def test_one_trunk_for_several_heads(tmp_path):
    """Backbone and neck where both fit, the backbone alone under another neck."""
    donor = make("yolox-nano", seed=1)
    files.save_model(tmp_path / "model.safetensors", donor)
    counts = {}
    for name in ("gfl-nano", "retinanet-nano", "fcos-nano"):
        other = make(name, seed=2)
        neck = {k: v.clone() for k, v in other.neck.state_dict().items()}
        counts[name] = files.load_trunk(other, tmp_path / "model.safetensors").total
        for key, value in donor.backbone.state_dict().items():
            assert torch.equal(other.backbone.state_dict()[key], value), key
        expected = donor.neck.state_dict() if name == "gfl-nano" else neck
        assert all(torch.equal(v, expected[k]) for k, v in other.neck.state_dict().items())
    backbone, neck = (sum("num_batches" not in k for k in m.state_dict()) for m in donor.trunk())
    assert counts == {"gfl-nano": backbone + neck, "retinanet-nano": backbone, "fcos-nano": backbone}
    with pytest.raises(CiodError, match=r"is a yolox-nano, but detector\.name is gfl-pico: their backbones differ"):
        files.load_trunk(make("gfl-pico"), tmp_path / "model.safetensors")


def test_the_official_trunk_under_a_gfl_head(weights):
    yolox = files.load(weights / "yolox_nano_coco.pth")
    gfl = make("gfl-nano").eval()
    files.load_trunk(gfl, weights / "yolox_nano_coco.pth")
    with torch.no_grad():
        for a, b in zip(yolox(pictures()).features, gfl(pictures()).features, strict=True):
            assert torch.equal(a, b)


def mmdet_gfl(key: str) -> str:
    """Our name of a GFL tensor → MMDetection's."""
    for ours, theirs in [
        (r"^backbone\.stem\.0\.", "backbone.conv1."),
        (r"^backbone\.stem\.1\.", "backbone.bn1."),
        (r"^backbone\.stage(\d)\.", r"backbone.layer\1."),
        (r"^neck\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
        (r"^neck\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
        (r"^neck\.extra_blocks\.p6\.", "neck.fpn_convs.3.conv."),
        (r"^neck\.extra_blocks\.p7\.", "neck.fpn_convs.4.conv."),
        (r"^head\.(cls|reg)_tower\.", r"bbox_head.\1_convs."),
        (r"^head\.cls\.blocks\.0\.", "bbox_head.gfl_cls."),
        (r"^head\.reg\.", "bbox_head.gfl_reg."),
        (r"^head\.scales\.(\d)$", r"bbox_head.scales.\1.scale"),
    ]:
        key = re.sub(ours, theirs, key)
    return key


@pytest.mark.parametrize("name", ["gfl-r18", "gfl-r50", "gfl-r101"])
def test_mmdetections_gfl_is_recognised(name):
    with torch.device("meta"):
        own = make(name).state_dict()
    theirs = {mmdet_gfl(k): v for k, v in own.items()} | {"bbox_head.integral.project": torch.zeros(17)}
    assert not any(k.startswith("head.") or "stage" in k for k in theirs)
    renamed = foreign.rename(theirs)
    assert own.keys() == renamed.keys() - {"bbox_head.integral.project"}
    assert files.recognise(renamed) == name and foreign.count_classes(renamed) == len(NAMES)


WELL = {"format": 2, "class_names": ["a", "b"], "detector": {"name": "yolox-pico"}, "blocks": [2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": [1]}, "blocks have 1 classes, but class_names has 2"),
        ({"growth": [{"rows": 3}]}, "growth has 3 classes, but class_names has 2"),
        ({"class_names": ["a", "a"]}, "a class name appears twice"),
        ({"detector": {}}, "detector has no name"),
        ({"detector": {"name": "yolox-pico", "size": 9}}, r"detector\.size must be 32\.\.16384 pixels"),
        ({"format": 3}, "is not a valid ciod model: format: "),
    ],
)
def test_impossible_metadata_are_refused(change, message, tmp_path):
    with pytest.raises(CiodError, match=message):
        model_file._metadata(tmp_path / "m.safetensors", {"ciod": json.dumps({**WELL, **change})})


def test_metadata_that_are_not_json_or_too_long(tmp_path, monkeypatch):
    with pytest.raises(CiodError, match="its metadata are not JSON"):
        model_file._metadata(tmp_path / "m.safetensors", {"ciod": "{"})
    monkeypatch.setattr(model_file, "LONGEST", 1 << 20)
    with pytest.raises(CiodError, match="has 2 MB of metadata, and at most 1"):
        model_file._metadata(tmp_path / "m.safetensors", {"ciod": " " * (2 << 20)})


def test_names_of_coco_from_a_file_and_of_a_model_of_ciod(tmp_path):
    plain = tmp_path / "plain.pth"
    torch.save({"model": official(make(names=COCO))}, plain)
    (tmp_path / "names.txt").write_text("".join(f"c{i}\n" for i in range(80)))
    assert files.open_detector(plain, names=["coco"]).class_names == COCO
    assert files.open_detector(plain, names=[str(tmp_path / "names.txt")]).class_names[3] == "c3"
    own = tmp_path / "own.safetensors"
    files.save_model(own, make(names=("cat", "dog")))
    assert files.open_detector(own, names=["cat", "dog"]).class_names == ("cat", "dog")
    with pytest.raises(
        CiodError, match=r"^names: .*own\.safetensors has its own class names \(cat, dog\); leave names="
    ):
        files.open_detector(own, names=["dog", "cat"])
