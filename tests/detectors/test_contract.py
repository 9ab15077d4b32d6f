"""What every detector promises: outputs, growing, losses, teachers, model files, two processes, export."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ciod import detectors
from ciod.contract import detector as shared
from ciod.contract import report
from ciod.contract.material import Subject
from ciod.core.errors import CiodError
from ciod.core.types import Outputs
from ciod.detectors.base import Detector
from ciod.detectors.files import weights as files
from ciod.detectors.layers.class_layers import PRIOR
from tests import fixed
from tests.detectors.common import NAMES, SIZE, absent, bn_eval, make, marked, pictures, train_step
from tests.methods import divided

ALL = detectors.available()
TENSORS = ("logits", "boxes", "points", "strides", "objectness", "distribution", "anchors")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: runs where torch finds CUDA")
    ),
]


def parameters(name: str) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in make(name).parameters()) / 1e6


def lightest(family) -> str:
    names = list(family.variants)
    return names[0] if len(names) == 1 else min(names, key=parameters)


SMALL = [n for n in ALL if absent(n) or parameters(n) < (5 if n.startswith("fasterrcnn") else 25)]
LIGHT = [lightest(family) for family in detectors.families()]  # the smallest of each family
LIGHT += [n for n in ("yolox-nano",) if n not in LIGHT]


def queries(name: str) -> bool:
    return "query" in detectors.traits(name)


def grouped(detector: Detector) -> bool:
    return hasattr(detector, "groups")


def regions(name: str) -> bool:
    return "rois" in detectors.traits(name)


def positions(detector: Detector) -> int:
    """Number of positions in pictures of the tests: cells, or queries of all sets."""
    with torch.no_grad():
        return detector(pictures(1)).logits.shape[1]


def equal(a: Outputs, b: Outputs, *, but: tuple[str, ...] = ()) -> None:
    for field in TENSORS:
        x, y = getattr(a, field), getattr(b, field)
        assert field in but or (x is None and y is None) or torch.equal(x, y), field


def summed(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def lively(detector: Detector) -> Detector:
    """Statistics and biases of a trained network, so that features of pictures differ."""
    g = torch.Generator().manual_seed(7)
    for m in detector.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * 0.1)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) * 1.5 + 0.5)
    return detector


def matched(detector: Detector, counts=(3, 1), **more):
    """Outputs of random pictures, targets and their matches. The boxes are large: every assigner finds some."""
    outputs = detector(pictures(len(counts)))
    targets = fixed.boxes_at_random(1, list(counts), classes=detector.num_classes, size=SIZE)
    return outputs, targets, detector.match(outputs, targets)


# Outputs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(ALL))
def test_outputs_have_the_promised_shapes(name):
    """On the meta device: shapes without arithmetic, so that the largest is as cheap as the smallest."""
    with torch.device("meta"):
        detector = make(name)
        out = detector(torch.zeros(2, 3, SIZE, SIZE))
    positions = out.logits.shape[1]
    assert out.logits.shape == (2, positions, len(NAMES))
    assert out.boxes.shape == (2, positions, 4)
    cells = 0 if queries(name) or regions(name) else positions
    assert out.points.shape == (cells, 2) and out.strides.shape == (cells,) and sum(out.levels) == cells
    kind = "query" if queries(name) else "rois" if regions(name) else "dense"
    assert {kind, "features"} <= detectors.traits(name) == detector.traits
    assert (out.answers is None) == (kind != "query") and (out.frame is None) == (kind == "dense")
    assert out.answer().logits.shape[1] == (out.answers or positions) and positions % (out.answers or 1) == 0
    assert (out.objectness is not None) == bool({"objectness", "centerness"} & detector.traits)
    assert (out.distribution is not None) == ("box_distribution" in detector.traits)
    assert out.objectness is None or out.objectness.shape == (2, positions)
    if queries(name):  # the boxes before the first layer and those of the encoder have none
        assert out.distribution is None or out.distribution.shape == (2, positions - 2 * (out.answers or 0), 4, 33)
    else:
        assert out.distribution is None or out.distribution.shape == (2, positions, 4, 17)
    assert out.anchors is None or out.anchors.shape == (positions, 4)
    if kind != "rois":  # their levels are torchvision's, which differ from network to network
        sides = [f.shape[2] for f in out.features][:3]
        assert sides == [SIZE // 8, SIZE // 16, SIZE // 32][: len(sides)]
        assert len(sides) == 3 or name.startswith("rfdetr")
    if kind == "dense":
        per_cell = out.levels[0] // (SIZE // 8) ** 2
        assert [f.shape[2] * f.shape[3] * per_cell for f in out.features] == list(out.levels)
    for field in TENSORS:
        assert getattr(out, field) is None or getattr(out, field).dtype == torch.float32
    assert detector.settings["name"] == name and detector.input.size == SIZE


@pytest.mark.parametrize("name", marked(SMALL))
def test_train_and_eval_mode_differ_only_in_batch_norm(name):
    detector = make(name)
    with torch.no_grad():
        train, evaluated = bn_eval(detector.train())(pictures()), detector.eval()(pictures())
    if grouped(detector):  # further groups of queries are there in train mode alone
        torch.testing.assert_close(train.answer().logits, evaluated.answer().logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(train.answer().boxes, evaluated.answer().boxes, rtol=0, atol=1e-3)
    else:
        equal(train, evaluated)


@pytest.mark.parametrize("name", marked(LIGHT))
def test_bf16_gives_float32_outputs_and_losses(name):
    detector = make(name).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, targets, matches = matched(detector)
        losses = detector.loss(outputs, targets, matches)
    for field in TENSORS:
        assert getattr(outputs, field) is None or getattr(outputs, field).dtype == torch.float32, field
    plain = detector.loss(outputs, targets, detector.match(outputs, targets))
    for key, loss in losses.items():  # the loss itself is computed in float32: outside autocast it is the same
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(plain[key].item(), rel=1e-6), key


def test_unknown_name_has_a_suggestion():
    with pytest.raises(CiodError, match="no detector 'yolox-nan'; did you mean 'yolox-nano'"):
        detectors.build(NAMES, name="yolox-nan")
    assert len(set(ALL)) == len(ALL)


# Classes and growing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(ALL))
def test_class_layers_list_every_row_of_every_class(name):
    with torch.device("meta"):
        detector = make(name)
        detector.grow(["dog", "eel"])
        detector.grow(["fox"])
    state = detector.state_dict()
    rows = list(detector.class_layers())
    assert all(state[r.name].shape == r.tensor.shape for r in rows)
    layers = len(detector.class_modules())
    for kind in ("weight", "bias"):
        found = [(r.first, len(r.tensor)) for r in rows if r.name.endswith(kind)]
        assert found == [(0, 3), (3, 2), (5, 1)] * layers


@pytest.mark.parametrize("name", marked(SMALL))
def test_only_class_layers_know_classes(name):
    """A row moves the logits of its class alone; any other weight moves those of all classes or of none."""
    detector = lively(make(name, names=("ant",)))
    detector.grow(["bee", "cow"])
    mode = bn_eval(detector.train()) if grouped(detector) else detector.eval()  # in train mode all groups answer
    outputs = mode(pictures())
    logits = outputs.logits
    if regions(name):  # a class has boxes of its own, too
        logits = logits + outputs.class_deltas.sum(3)
    probe = torch.randn(logits.shape[:2], generator=torch.Generator().manual_seed(3))
    named = {n: p for n, p in detector.named_parameters() if p.requires_grad}
    grads = [
        torch.autograd.grad((logits[..., c] * probe).sum(), list(named.values()), retain_graph=True, allow_unused=True)
        for c in range(3)
    ]
    moved = {
        n: torch.stack([torch.zeros_like(p) if g is None else g for g in per_class]) != 0
        for (n, p), *per_class in zip(named.items(), *grads)
    }
    rows = list(detector.class_layers())
    for r in rows:
        for i in range(len(r.tensor)):
            by_class = moved[r.name][:, i].reshape(3, -1).any(1).tolist()
            assert by_class == [c == r.first + i for c in range(3)], f"{r.name} row {i}"
    listed = {r.name for r in rows}
    for n, m in moved.items():
        rows_of_one = m.reshape(3, len(m[0]) if m.dim() > 1 else 1, -1).any(2).sum(0) == 1
        assert n in listed or not rows_of_one.any(), f"{n} holds a class of its own, but class_layers leaves it out"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", marked(SMALL))
@pytest.mark.parametrize("start", [(), NAMES], ids=["from nothing", "from three"])
def test_growing_keeps_old_logits_bit_equal(name, start, device):
    if "first_stage" in detectors.traits(name) and not start:
        pytest.skip("without classes there is nothing to choose queries by, so the first ones change them")
    detector = lively(make(name, start)).eval().to(device)
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
            # of a region, the box is that of its best class, which may be a new one; each class keeps its own
            equal(after, before, but=("logits", "boxes") if regions(name) else ("logits",))
            if regions(name):
                assert torch.equal(after.class_deltas[:, :, :known], before.class_deltas)
                assert torch.equal(after.background, before.background)
                assert torch.equal(after.proposals, before.proposals)
            before = after


@pytest.mark.parametrize("name", marked(LIGHT))
def test_growing_stays_on_the_device(name):
    """Without a GPU: on the device that holds no numbers, a new row that is made on the CPU shows too."""
    detector = make(name, names=()).to("meta")
    for names in (NAMES, ["dog", "eel"]):
        detector.grow(names)
    out = detector(pictures().to("meta"))
    assert out.logits.shape[2] == detector.num_classes
    tensors = (*detector.parameters(), *detector.buffers(), out.logits, out.boxes)
    assert {t.device.type for t in tensors} == {"meta"}


@pytest.mark.parametrize("name", marked(LIGHT))
def test_new_classes_start_at_the_prior(name):
    detector = make(name, names=()).eval()
    detector.grow(NAMES)
    detector.grow(["dog", "eel"])
    with torch.no_grad():
        p = detector(pictures()).probability()
    if regions(name):  # the classes of a softmax share it: those that arrive together have 0.01 of background's
        none = 1 - p.sum(2)
        for new in (p[..., :3], p[..., 3:]):
            assert (new.sum(2) / (none + new.sum(2))).numpy() == pytest.approx(PRIOR, rel=1e-3)
        return
    assert p.mean((0, 1)).numpy() == pytest.approx(np.full(5, PRIOR), rel=0.3)
    assert p.min() > 0.002 and p.max() < 0.05  # never 0.5, where an unbiased row would start


@pytest.mark.parametrize("name", marked(LIGHT))
def test_a_detector_without_classes_works(name):
    detector = make(name, names=()).eval()
    out = detector(pictures())
    assert out.logits.shape == (2, positions(detector), 0)
    assert [len(d) for d in detector.decode(out)] == [0, 0]


@pytest.mark.parametrize("name", marked(LIGHT))
def test_growing_by_nothing_changes_nothing(name):
    detector = make(name)
    rows = len(list(detector.class_layers()))
    detector.grow([])
    assert detector.class_names == NAMES and len(list(detector.class_layers())) == rows


@pytest.mark.parametrize("names", [["bee"], ["dog", "dog"], ["dog", "cow"]])
def test_a_class_is_added_once(names):
    detector = make()
    with pytest.raises(CiodError, match=r"already knows '(bee|dog|cow)'; a class can be added once"):
        detector.grow(names)
    assert detector.class_names == NAMES  # nothing half done
    assert detector(pictures(1)).logits.shape[2] == 3


# Matching and losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(LIGHT))
def test_nothing_matches_an_image_without_boxes(name):
    detector = make(name)
    out = detector(pictures())
    matches = detector.match(out, fixed.no_boxes(2))
    assert not matches.valid.any() and not matches.positive.any()
    assert matches.ignored is None or not matches.ignored.any()
    assert matches.positive.shape == out.logits.shape[:2]
    assert matches.position.shape == matches.target.shape == matches.iou.shape == matches.valid.shape


@pytest.mark.parametrize("name", marked(LIGHT))
def test_matches_and_positives_are_the_same_positions(name):
    _, _, matches = matched(make(name), counts=(5, 2))
    for b in range(2):
        ok = matches.valid[b]
        positions = matches.position[b, ok]
        assert len(positions) > 0 and positions.tolist() == torch.nonzero(matches.positive[b]).squeeze(1).tolist()
        assert (matches.target[b, ok] < (5, 2)[b]).all()
        assert ((matches.iou[b, ok] >= 0) & (matches.iou[b, ok] <= 1)).all()
        assert matches.ignored is None or not (matches.ignored & matches.positive).any()


@pytest.mark.parametrize("name", marked(SMALL))
@pytest.mark.parametrize("counts", [[0, 0], [0, 2]], ids=["no boxes at all", "one image without boxes"])
def test_losses_and_gradients_are_finite_without_boxes(name, counts):
    detector = make(name)
    targets = fixed.boxes_at_random(0, counts, classes=3, size=SIZE)
    outputs = detector(pictures())
    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    assert {"cls", "box"} <= set(losses)
    for loss in losses.values():
        assert loss.shape == () and loss.dtype == torch.float32 and loss.isfinite()
    if not any(counts):
        assert all(loss.item() == 0 for key, loss in losses.items() if key not in ("cls", "obj"))
        assert summed(losses).item() < outputs.logits.shape[1] * 2 * 0.1  # divided by 1, not by an epsilon
    summed(losses).backward()
    for name, p in detector.named_parameters():  # every parameter takes part, or DDP would wait for it
        assert p.grad is not None and p.grad.isfinite().all(), name


@pytest.mark.parametrize("name", marked(LIGHT))
def test_a_match_that_is_not_counted_gives_no_gradient_to_classes_and_boxes(name):
    detector = make(name)
    outputs, targets, matches = matched(detector)
    outputs = replace(outputs, logits=outputs.logits.detach().requires_grad_(), boxes=outputs.boxes.detach())
    counted = torch.zeros_like(matches.valid)
    counted[0] = matches.valid[0]
    detector.loss(outputs, targets, matches, counted=counted)["cls"].backward()
    gradient = outputs.logits.grad
    assert gradient is not None
    assert (gradient[1, matches.positive[1]] == 0).all() and (gradient[0, matches.positive[0]] != 0).any()
    none = detector.loss(outputs, targets, matches, counted=torch.zeros_like(counted))
    whole = detector.loss(outputs, targets, matches)
    assert none["box"] == 0 and whole["box"] > 0
    if "obj" in whole:
        assert none["obj"] == whole["obj"]


@pytest.mark.parametrize("name", marked([n for n in LIGHT if not regions(n)]))
def test_masked_channels_get_exactly_no_gradient(name):
    detector = make(name, names=("ant", "bee"))
    detector.grow(["cow", "dog"])
    outputs, targets, matches = matched(detector)
    channels = torch.tensor([False, True, False, True])
    summed(detector.loss(outputs, targets, matches, channels=channels)).backward()
    seen = 0
    for rows in detector.class_layers():
        assert rows.tensor.grad is not None
        for i, gradient in enumerate(rows.tensor.grad):
            if channels[rows.first + i]:
                seen += bool(gradient.any())
            else:
                assert not gradient.any(), f"{rows.name} row {i}"
    assert seen


@pytest.mark.parametrize("name", marked(LIGHT))
def test_incomplete_labels_give_exactly_zero_gradient(name):
    """An unlabelled image; a class that is not labelled; positions of doubtful boxes (``losses.supervise``)."""
    detector = make(name)
    outputs, targets, _ = matched(detector, counts=(3, 0))
    outputs = replace(outputs, logits=outputs.logits.detach().requires_grad_())

    def gradient(**open_) -> Tensor:
        t = replace(targets, **open_)
        losses = detector.loss(outputs, t, detector.match(outputs, t))
        found = torch.autograd.grad(losses["cls"], outputs.logits)[0]
        assert all(v.isfinite() for v in losses.values())
        return found

    assert (gradient(background=torch.tensor([True, False]))[1] == 0).all()
    if regions(name):  # a class that is not labelled is part of background: see tests/detectors/test_rcnn.py
        doubtful = gradient(doubtful=torch.ones_like(targets.valid))
        assert (doubtful[0, detector.match(outputs, targets).positive[0]] == 0).all()
        return
    unlabelled = gradient(known=torch.tensor([[True, False, True], [True] * 3]))
    drawn = detector.match(outputs, targets).positive[0]  # what is drawn there is of no other class
    assert (
        (unlabelled[0, ~drawn, 1] == 0).all()
        and (unlabelled[0, drawn, 1] != 0).all()
        and (unlabelled[0, :, 2] != 0).any()
    )
    doubtful = gradient(doubtful=torch.ones_like(targets.valid))
    assert (doubtful[0, detector.match(outputs, targets).positive[0]] == 0).all()


@pytest.mark.parametrize("name", marked(LIGHT))
def test_matching_and_losses_read_nothing_back(name):
    """On a GPU each of these operations would wait for the device."""
    detector = make(name)
    outputs, targets, _ = matched(detector)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        matches = detector.match(outputs, targets)
        for channels in (torch.tensor([True] * 3), matches.positive[..., None].expand_as(outputs.logits)):
            losses = detector.loss(outputs, targets, matches, channels=channels)
            summed(losses).backward(retain_graph=True)
    called = {e.key: e.count for e in profile.key_averages()}
    waits = {k: v for k, v in called.items() if any(w in k for w in ("item", "scalar_dense", "nonzero", "is_nonzero"))}
    assert not waits


@pytest.mark.parametrize("name", marked(LIGHT))
def test_the_order_of_images_does_not_matter(name):
    detector = make(name).eval()
    outputs, targets, matches = matched(detector, counts=(3, 0, 2))
    order = torch.tensor([2, 0, 1])
    turned = replace(targets, boxes=targets.boxes[order], labels=targets.labels[order], valid=targets.valid[order])
    out = detector(pictures(3)[order])
    other = detector.loss(out, turned, detector.match(out, turned))
    for key, loss in detector.loss(outputs, targets, matches).items():
        assert other[key].item() == pytest.approx(loss.item(), rel=1e-4), key


# Teachers and files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(LIGHT))
def test_a_teacher_is_apart_from_its_student(name):
    student = make(name).train()
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
    changes = ("running_mean",) if name != "rfdetr-pico" else ("class_embed.blocks.0.weight",)  # it has no statistics
    statistics = next(k for k in before if k.endswith(changes))
    assert not torch.equal(student.state_dict()[statistics], before[statistics])


@pytest.mark.parametrize("name", marked(LIGHT))
def test_a_teacher_starts_with_the_weights_of_the_student(name):
    student = make(name).eval()
    teacher = student.frozen()
    with torch.no_grad():
        if queries(name):  # a product of matrices may round otherwise where its weights lie elsewhere in memory
            torch.testing.assert_close(teacher(pictures()).logits, student(pictures()).logits, rtol=0, atol=1e-5)
        else:
            equal(teacher(pictures()), student(pictures()))


@pytest.mark.parametrize("name", marked(SMALL))
def test_a_model_file_gives_back_the_detector(name, tmp_path):
    detector = make(name)
    detector.grow(["dog", "eel"])
    if name in LIGHT:
        train_step(detector)
    detector.lineage = [{"classes": list(NAMES), "data": "somewhere"}, {"classes": ["dog", "eel"]}]
    path = tmp_path / "deep" / "model.safetensors"
    files.save_model(path, detector)
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]  # nothing left beside it
    loaded = files.load(path)
    assert not loaded.training and loaded.class_names == detector.class_names and loaded.lineage == detector.lineage
    assert loaded.settings == detector.settings and loaded.input == detector.input
    with torch.no_grad():
        equal(detector.eval()(pictures()), loaded(pictures()))
    meta = files.read_metadata(path)
    assert meta["class_names"] == [*NAMES, "dog", "eel"] and meta["blocks"] == [3, 2]
    loaded.grow(["fox"])  # a loaded model can be extended
    assert loaded.class_names[-1] == "fox"


@pytest.mark.parametrize("name", marked(LIGHT))
def test_a_trunk_goes_into_another_head(name, tmp_path):
    donor = lively(make(name, seed=1))
    files.save_model(tmp_path / "model.safetensors", donor)
    other = make(name, names=("x",), seed=2)
    files.load_trunk(other, tmp_path / "model.safetensors")
    with torch.no_grad():
        for a, b in zip(donor.eval()(pictures()).features, other.eval()(pictures()).features):
            assert torch.equal(a, b)


# Beyond one process and beyond Python ---------------------------------------------------------------------------------


class Flat(nn.Module):
    """Outputs as tensors, for exporters."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.detector(images)
        return out.scores(), out.boxes


@pytest.mark.parametrize("name", [n for n in LIGHT if not queries(n) and not regions(n)])
def test_the_forward_is_exportable(name):
    """tests/exporters/test_query.py tests query detectors, tests/detectors/test_rcnn.py those with regions: with random
    weights, rounding would decide which queries and regions are chosen."""
    pytest.importorskip("onnx", reason="onnx is absent: pip install 'ciod[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    detector = lively(make(name))
    detector.grow(["dog"])
    model, x, file = Flat(detector).eval(), pictures().float(), io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(model, (x,), file, opset_version=17, dynamo=False, input_names=["images"])
        expected = model(x)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for found, wanted in zip(session.run(None, {"images": x.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)


def gradients(name: str, rank: int = 0, size: int = 1) -> dict[str, Tensor]:
    """The gradients of one step on this rank's share of four images with 3, 0, 1 and 2 boxes."""
    detector = bn_eval(make(name).train())
    mine = slice(4 * rank // size, 4 * (rank + 1) // size)
    targets = fixed.boxes_at_random(4, [3, 0, 1, 2], classes=3, size=SIZE)
    targets = replace(targets, boxes=targets.boxes[mine], labels=targets.labels[mine], valid=targets.valid[mine])
    student = nn.parallel.DistributedDataParallel(detector) if size > 1 else detector
    outputs = student(pictures(4)[mine])
    summed(detector.loss(outputs, targets, detector.match(outputs, targets))).backward()
    return {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name in LIGHT:
        if absent(name):
            continue
        found = gradients(name, rank, 2)
        if rank == 0:
            torch.save(found, f"{folder}/{name}.pt")
    for method, name in [] if absent("rtdetr-pico") else divided.CASES:
        found = divided.gradients(method, name, rank, 2)
        if rank == 0:
            torch.save(found, f"{folder}/{method} {name}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_two_processes_with_two_images_are_one_with_four(tmp_path):
    """Also of methods on query detectors and on Faster R-CNN, which draw samples and ask a teacher."""
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    for name in LIGHT:
        if not absent(name):
            assert_same(torch.load(tmp_path / f"{name}.pt"), gradients(name), name)
    for method, name in [] if absent("rtdetr-pico") else divided.CASES:
        assert_same(
            torch.load(tmp_path / f"{method} {name}.pt"), divided.gradients(method, name), f"{method} on {name}"
        )


def assert_same(together: dict[str, Tensor], alone: dict[str, Tensor], what: str) -> None:
    assert together.keys() == alone.keys(), what
    largest = max(g.abs().max() for g in alone.values())
    for n, g in alone.items():
        assert (together[n] - g).abs().max() <= 1e-5 * largest, f"{what}: {n}"


def test_classes_that_cannot_be_kept_or_renamed():
    detector = make("yolox-pico")
    with pytest.raises(CiodError, match=r"^The detector does not know 'moth'\.$"):
        detector.select([NAMES[0], "moth"])
    with pytest.raises(CiodError, match="does not know what to keep: no name"):
        detector.select([])
    with pytest.raises(CiodError, match=r"The detector does not know 'moth'\."):
        detector.rename({"moth": "bee"})
    with pytest.raises(CiodError, match="would have two classes with the same name"):
        detector.rename({NAMES[0]: NAMES[1]})


# What ciod check says of them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", marked(["yolox-pico", "rtdetrv2-pico"]))
def test_ciod_check_finds_nothing(name):
    """The checks that users get for a detector of their own, except the export, which the tests above have."""
    checks = {k: check for k, check in shared.CHECKS.items() if k != "onnx"}
    result = report.run(name, "detector", checks, Subject(name, SIZE), {})
    assert not result.broken, "\n".join(result.lines())
