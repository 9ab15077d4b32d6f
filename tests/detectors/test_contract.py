"""What every detector promises: outputs, growing, losses, teachers, decoding, model files."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.detectors import weights as files
from ciod.detectors.detector import PRIOR, Detector
from ciod.errors import CiodError
from ciod.types import Targets
from tests import fixed

SIZE = 64
POSITIONS = sum((SIZE // s) ** 2 for s in (8, 16, 32))
NAMES = ("ant", "bee", "cow")
LARGE = {"yolox-m", "yolox-l", "yolox-x", "yolox-r50", "yolox-r101"}
ALL = detectors.available()
SMALL = [n for n in ALL if n not in LARGE]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


def make(name: str = "yolox-nano", names=NAMES, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return detectors.build(names, name=name, size=SIZE)


def pictures(n: int = 2, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)


def some_boxes(classes: int = len(NAMES)) -> Targets:
    return fixed.boxes_at_random(1, [3, 1], classes=classes, size=SIZE)


def train_step(detector: Detector, targets: Targets | None = None, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(detector.parameters(), lr=lr)
    outputs = detector.train()(pictures())
    targets = some_boxes(detector.num_classes) if targets is None else targets
    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()


def bn_eval(detector: Detector) -> Detector:
    for m in detector.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    return detector


# Outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_outputs_have_the_promised_shapes(name):
    """On the meta device: shapes without arithmetic, so that the largest is as cheap as the smallest."""
    with torch.device("meta"):
        detector = make(name)
        out = detector(torch.zeros(2, 3, SIZE, SIZE))
    assert out.logits.shape == (2, POSITIONS, len(NAMES))
    assert out.boxes.shape == (2, POSITIONS, 4)
    assert out.points.shape == (POSITIONS, 2) and out.strides.shape == (POSITIONS,)
    assert {"dense", "features"} <= detectors.traits(name) == detector.traits
    assert (out.objectness is not None) == ("objectness" in detector.traits)
    assert (out.distribution is not None) == ("box_distribution" in detector.traits)
    if out.objectness is not None:
        assert out.objectness.shape == (2, POSITIONS)
    assert [f.shape[2] for f in out.features] == [SIZE // 8, SIZE // 16, SIZE // 32]
    for tensor in (out.logits, out.boxes, out.points, out.strides, out.objectness):
        assert tensor is None or tensor.dtype == torch.float32


@pytest.mark.parametrize("name", ALL)
def test_class_layers_list_every_row_of_every_class(name):
    with torch.device("meta"):
        detector = make(name)
        detector.grow(["dog", "eel"])
        detector.grow(["fox"])
    layers = list(detector.class_layers())
    weights = [r for r in layers if r.tensor.dim() > 1]
    biases = [r for r in layers if r.tensor.dim() == 1]
    assert sum(len(r.tensor) for r in weights) == sum(len(r.tensor) for r in biases) == 3 * detector.num_classes
    state = detector.state_dict()
    assert all(state[r.name].shape == r.tensor.shape for r in layers)
    per_level = [(r.first, len(r.tensor)) for r in biases]
    assert per_level == [(0, 3), (3, 2), (5, 1)] * 3


def test_official_sizes():
    """Parameters with 80 classes, in millions, as the YOLOX paper has them."""
    sizes = {"yolox-nano": 0.91, "yolox-tiny": 5.06, "yolox-s": 9.0, "yolox-m": 25.3, "yolox-l": 54.2, "yolox-x": 99.1}
    for name, millions in sizes.items():
        with torch.device("meta"):
            n = sum(p.numel() for p in make(name, [str(i) for i in range(80)]).parameters())
        assert n / 1e6 == pytest.approx(millions, rel=0.01), name


def test_the_papers_resnets():
    """ilyolox.md §2: 71.0 M with ResNet-50, 15.9 M with ResNet-18; 8400 positions at 640."""
    for name, millions in {"yolox-r18": 15.9, "yolox-r50": 71.0}.items():
        with torch.device("meta"):
            detector = detectors.build([str(i) for i in range(80)], name=name)
            n = sum(p.numel() for p in detector.parameters())
            assert detector(torch.zeros(1, 3, 640, 640)).logits.shape == (1, 8400, 80)
        assert n / 1e6 == pytest.approx(millions, rel=0.01), name


@pytest.mark.parametrize("name", SMALL)
def test_train_and_eval_mode_differ_only_in_batch_norm(name):
    detector = make(name)
    with torch.no_grad():
        a = bn_eval(detector.train())(pictures())
        b = detector.eval()(pictures())
    for field in ("logits", "boxes", "objectness", "points", "strides"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field


def test_positions_run_level_by_level_row_by_row():
    out = make()(pictures(1))
    assert out.points[:3].tolist() == [[4, 4], [12, 4], [20, 4]]
    assert out.points[8].tolist() == [4, 12]
    assert out.points[64].tolist() == [8, 8] and out.points[-1].tolist() == [48, 48]
    assert out.strides.unique_consecutive().tolist() == [8, 16, 32]


def test_an_untrained_giant_size_stays_finite():
    from ciod.detectors.yolox import assemble

    maps = [
        [torch.full((1, c, SIZE // s, SIZE // s), v) for s in (8, 16, 32)] for c, v in ((2, 0.0), (4, 1e4), (1, 0.0))
    ]
    assert assemble(*maps).boxes.isfinite().all()


def test_bf16_forward_gives_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        out = make().eval()(pictures(1))
    assert {out.logits.dtype, out.boxes.dtype, out.objectness.dtype} == {torch.float32}


def test_unknown_name_has_a_suggestion():
    with pytest.raises(CiodError, match="no detector 'yolox-nan'; did you mean 'yolox-nano'"):
        detectors.build(NAMES, name="yolox-nan")


# Growing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("start", [(), NAMES], ids=["from nothing", "from three"])
def test_growing_keeps_old_logits_bit_equal(name, start, device):
    detector = make(name, start).eval().to(device)
    for m in detector.modules():  # statistics of a trained network, so that features are not all alike
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    x = pictures().to(device)
    with torch.no_grad():
        before = detector(x)
        for names in (["dog"], ["eel", "fox", "gnu", "hen", "ibis"], ["jay", "koi"]):
            known = detector.num_classes
            detector.grow(names)
            assert detector.num_classes == known + len(names) and detector.class_names[known:] == tuple(names)
            after = detector(x)
            assert after.logits.shape[2] == known + len(names)
            assert torch.equal(after.logits[..., :known], before.logits)
            assert torch.equal(after.boxes, before.boxes)
            assert torch.equal(after.objectness, before.objectness)
            before = after


def test_new_classes_start_at_the_prior():
    detector = make(names=()).eval()
    detector.grow(NAMES)
    detector.grow(["dog", "eel"])
    with torch.no_grad():
        p = detector(pictures()).logits.sigmoid()
    assert p.mean((0, 1)).numpy() == pytest.approx(np.full(5, PRIOR), rel=0.3)
    assert p.min() > 0.002 and p.max() < 0.05  # never 0.5, where an unbiased row would start


def test_a_detector_without_classes_works():
    detector = make(names=()).eval()
    out = detector(pictures())
    assert out.logits.shape == (2, POSITIONS, 0)
    assert [len(d) for d in detector.decode(out)] == [0, 0]


def test_growing_by_nothing_changes_nothing():
    detector = make()
    detector.grow([])
    assert detector.class_names == NAMES and len(list(detector.class_layers())) == 6


@pytest.mark.parametrize("names", [["bee"], ["dog", "dog"], ["dog", "cow"]])
def test_a_class_is_added_once(names):
    detector = make()
    with pytest.raises(CiodError, match=r"already knows '(bee|dog|cow)'; a class can be added once"):
        detector.grow(names)
    assert detector.class_names == NAMES  # nothing half done
    assert detector(pictures(1)).logits.shape[2] == 3


# Matching and losses --------------------------------------------------------------------------------------------------


def test_nothing_matches_an_image_without_boxes():
    detector = make()
    matches = detector.match(detector(pictures()), fixed.no_boxes(2))
    assert not matches.valid.any() and not matches.positive.any()
    assert matches.positive.shape == (2, POSITIONS)
    assert matches.position.shape == matches.target.shape == matches.iou.shape == matches.valid.shape


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("counts", [[0, 0], [0, 2]], ids=["no boxes at all", "one image without boxes"])
def test_losses_and_gradients_are_finite_without_boxes(name, counts):
    detector = make(name)
    targets = fixed.boxes_at_random(0, counts, classes=3, size=SIZE)
    outputs = detector(pictures())
    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    assert set(losses) == {"cls", "box", "obj"}
    for loss in losses.values():
        assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()
    if not any(counts):
        assert losses["cls"].item() == 0 and losses["box"].item() == 0
        assert losses["obj"].item() < POSITIONS * 2 * 0.1  # divided by 1, not by an epsilon
    torch.stack(list(losses.values())).sum().backward()
    for name, p in detector.named_parameters():  # every parameter takes part, or DDP would wait for it
        assert p.grad is not None and p.grad.isfinite().all(), name


def test_every_position_of_a_match_is_positive_and_every_positive_a_match():
    outputs = fixed.random_outputs(3, 4)
    targets = fixed.boxes_at_random(3, [5, 2], classes=4)
    matches = make().match(outputs, targets)
    for b in range(2):
        ok = matches.valid[b]
        positions = matches.position[b, ok]
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert positions.tolist() == torch.nonzero(matches.positive[b]).squeeze(1).tolist()
        assert (matches.target[b, ok] < (5, 2)[b]).all()
        assert ((matches.iou[b, ok] >= 0) & (matches.iou[b, ok] <= 1)).all()


def test_counted_takes_matches_out_of_class_and_box_loss_only():
    detector = make()
    outputs = fixed.random_outputs(5, 3)
    targets = fixed.boxes_at_random(5, [4, 3], classes=3)
    matches = detector.match(outputs, targets)
    whole = detector.loss(outputs, targets, matches)
    none = detector.loss(outputs, targets, matches, counted=torch.zeros_like(matches.valid))
    assert none["cls"] == none["box"] == 0 and none["obj"] == whole["obj"]
    first, rest = matches.target == 0, matches.target > 0
    n = (matches.valid & first).sum(), (matches.valid & rest).sum()
    parts = [detector.loss(outputs, targets, matches, counted=c) for c in (first, rest)]
    for key in ("cls", "box"):
        together = (parts[0][key] * n[0] + parts[1][key] * n[1]) / (n[0] + n[1])
        assert together.item() == pytest.approx(whole[key].item(), rel=1e-5)


def test_masked_channels_get_exactly_no_gradient():
    detector = make(names=("ant", "bee"))
    detector.grow(["cow", "dog"])
    outputs = detector(pictures())
    targets = some_boxes(4)
    channels = torch.tensor([False, True, False, True])
    losses = detector.loss(outputs, targets, detector.match(outputs, targets), channels=channels)
    torch.stack(list(losses.values())).sum().backward()
    seen = 0
    for rows in detector.class_layers():
        assert rows.tensor.grad is not None
        for i, gradient in enumerate(rows.tensor.grad):
            if channels[rows.first + i]:
                seen += bool(gradient.any())
            else:
                assert not gradient.any(), f"{rows.name} row {i}"
    assert seen


# Teachers -------------------------------------------------------------------------------------------------------------


def test_a_teacher_is_apart_from_its_student():
    student = make().train()
    teacher = student.frozen()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert student.training and all(p.requires_grad for p in student.parameters())
    own = {id(m) for m in student.modules()} | {t.data_ptr() for t in student.state_dict().values()}
    assert not own & ({id(m) for m in teacher.modules()} | {t.data_ptr() for t in teacher.state_dict().values()})
    assert not any("teacher" in k for k in student.state_dict())

    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    for _ in range(2):
        train_step(student)
    student.grow(["dog"])
    student.eval()
    student.train()
    assert teacher.class_names == NAMES and not any(m.training for m in teacher.modules())
    for k, v in teacher.state_dict().items():
        assert torch.equal(v, before[k]), k
    assert not torch.equal(student.state_dict()["backbone.stem.conv.bn.running_mean"],
                           before["backbone.stem.conv.bn.running_mean"])  # fmt: skip


def test_a_teacher_starts_as_what_the_student_was():
    student = make().eval()
    with torch.no_grad():
        assert torch.equal(student.frozen()(pictures()).logits, student(pictures()).logits)


# Decoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.05, 0.3])
@pytest.mark.parametrize("most", [3, 100])
def test_decode_keeps_to_its_limits(threshold, most):
    found = make().decode(fixed.random_outputs(2, 3), score_threshold=threshold, max_detections=most)
    assert len(found) == 2
    for d in found:
        assert 0 < len(d) <= most
        assert (d.scores > threshold).all() and (np.diff(d.scores) <= 0).all()
        assert d.labels.min() >= 0 and d.labels.max() < 3 and d.class_names == NAMES


def test_decode_takes_overlapping_boxes_of_a_class_once():
    logits = torch.tensor([[4.0, -9, -9], [3, -9, -9], [-9, 2, -9], [1, -9, -9]])
    boxes = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [0, 0, 20, 20], [40, 40, 60, 60]])
    found = make().decode(fixed.outputs(logits, boxes, torch.full((4,), 9.0)), score_threshold=0.01, nms_iou=0.65)[0]
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes.tolist() == boxes[[0, 2, 3]].tolist()
    assert found.scores == pytest.approx(torch.tensor([4.0, 2, 1]).sigmoid().numpy(), rel=1e-3)


def test_decode_of_some_classes_only():
    found = make().decode(fixed.random_outputs(2, 3), score_threshold=0.05, classes=torch.tensor([False, True, False]))
    assert {int(y) for d in found for y in d.labels} == {1}


def test_predict_gives_boxes_in_the_picture_and_leaves_the_mode_alone():
    detector = make().train()
    picture = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    found = detector.predict(picture, score_threshold=1e-6, max_detections=7)
    assert detector.training and 0 < len(found) <= 7
    assert found.boxes[:, 0::2].min() >= 0 and found.boxes[:, 0::2].max() <= 90
    assert found.boxes[:, 1::2].min() >= 0 and found.boxes[:, 1::2].max() <= 40
    assert set(found.to_list()[0]) == {"class", "score", "box"}


# Model files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_a_model_file_gives_back_the_detector(name, tmp_path):
    detector = make(name)
    detector.grow(["dog", "eel"])
    if name == "yolox-nano":
        train_step(detector)
    detector.lineage = [{"classes": list(NAMES), "data": "somewhere"}, {"classes": ["dog", "eel"]}]
    path = tmp_path / "deep" / "model.safetensors"
    files.save_model(path, detector)
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]  # nothing left beside it
    loaded = files.load(path)
    assert not loaded.training and loaded.class_names == detector.class_names and loaded.lineage == detector.lineage
    assert loaded.settings == detector.settings and loaded.input == detector.input
    with torch.no_grad():
        a, b = detector.eval()(pictures()), loaded(pictures())
    assert torch.equal(a.logits, b.logits) and torch.equal(a.boxes, b.boxes) and torch.equal(a.objectness, b.objectness)
    meta = files.read_metadata(path)
    assert meta["class_names"] == [*NAMES, "dog", "eel"] and meta["blocks"] == [3, 2]
    loaded.grow(["fox"])  # a loaded model can be extended
    assert loaded.class_names[-1] == "fox"


@pytest.fixture
def model(tmp_path):
    files.save_model(tmp_path / "model.safetensors", make())
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_model_is_said_to_be_one(model, share):
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
    header["__metadata__"]["ciod"] = json.dumps(meta)
    changed = json.dumps(header).encode()
    model.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    with pytest.raises(CiodError, match="does not fit the detector its metadata describes"):
        files.load(model)


def test_no_such_model_file(model):
    with pytest.raises(CiodError, match=r"no model file .*did you mean 'model\.safetensors'"):
        files.load(model.with_name("modell.safetensors"))


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
    with pytest.raises(CiodError, match="loading it could run code; it is refused"):
        files.load(tmp_path / "evil.pth")
    assert not canary.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert canary.exists()  # the payload works: the refusal was not luck


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    import pickle

    canary = tmp_path / "canary"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(CiodError, match=r"refused|not a readable PyTorch file"):
        files.load(tmp_path / "evil.pth")
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 torn"])
def test_a_torn_checkpoint(tmp_path, content):
    (tmp_path / "torn.pth").write_bytes(content)
    with pytest.raises(CiodError, match=r"torn\.pth"):
        files.load(tmp_path / "torn.pth")


def test_a_checkpoint_of_something_else(tmp_path):
    torch.save({"state_dict": {"layer.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(CiodError, match=r"not a checkpoint of a detector ciod knows .*layer\.weight"):
        files.load(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CiodError, match="holds a list, not a state dict"):
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
    with pytest.raises(CiodError, match="has 3 classes and does not name them; give their names with --classes a,b,c"):
        files.load(path)
    with pytest.raises(CiodError, match="has 3 classes, but 2 names were given"):
        files.load(path, classes=["a", "b"])
    torch.save({"state_dict": official(make()), "meta": {"dataset_meta": {"classes": list(NAMES)}}}, path)
    assert files.load(path).class_names == NAMES


def test_trunk_of_another_model(tmp_path, model):
    other = make(names=("x", "y"), seed=9)
    head = {k: v.clone() for k, v in other.state_dict().items() if k.startswith("head.")}
    taken = files.load_trunk(other, model)
    donor = files.load(model).state_dict()
    assert taken == sum(not k.startswith("head.") for k in donor)
    for key, value in other.state_dict().items():
        assert torch.equal(value, head[key] if key.startswith("head.") else donor[key]), key
    assert other.class_names == ("x", "y")

    torch.save(official(make(names=("p",))), tmp_path / "nameless.pth")  # its head is not used: no names needed
    assert files.load_trunk(other, tmp_path / "nameless.pth") == taken
    with pytest.raises(CiodError, match=r"is a yolox-nano, but detector\.name is yolox-tiny"):
        files.load_trunk(make("yolox-tiny"), model)


# ResNets --------------------------------------------------------------------------------------------------------------


def test_a_pretrained_resnet_freezes_stem_and_first_stage(tmp_path):
    import torchvision

    torch.manual_seed(0)
    donor = torchvision.models.resnet18()
    torch.save(donor.state_dict(), tmp_path / "r18.pth")
    detector = detectors.build(NAMES, name="yolox-r18", size=SIZE, backbone_weights=str(tmp_path / "r18.pth")).train()
    assert torch.equal(detector.backbone.stage4[1].conv2.weight, donor.layer4[1].conv2.weight)
    frozen = {n for n, p in detector.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(("backbone.stem.", "backbone.stage1.")) for n in frozen)
    assert not any(m.training for m in detector.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert any(m.training for m in detector.neck.modules() if isinstance(m, nn.BatchNorm2d))

    path = tmp_path / "model.safetensors"  # the file alone is enough: the ImageNet weights are not needed again
    (tmp_path / "r18.pth").unlink()
    files.save_model(path, detector)
    assert torch.equal(files.load(path).backbone.stage4[1].conv2.weight, donor.layer4[1].conv2.weight)


def test_backbone_weights_that_do_not_fit(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CiodError, match="is not a torchvision ResNet-18; it lacks"):
        detectors.build(NAMES, name="yolox-r18", backbone_weights=str(tmp_path / "x.pth"))
    with pytest.raises(CiodError, match=r"detector\.backbone_weights: there is no file"):
        detectors.build(NAMES, name="yolox-r18", backbone_weights=str(tmp_path / "absent.pth"))


def test_without_a_network_a_resnet_starts_at_random_and_says_so(monkeypatch):
    import torchvision

    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "get_model_weights", no_network)
    with pytest.warns(UserWarning, match="could not be downloaded .*starts from random weights"):
        detector = detectors.build(NAMES, name="yolox-r18", size=SIZE, backbone_weights="imagenet")
    assert all(p.requires_grad for p in detector.parameters())
