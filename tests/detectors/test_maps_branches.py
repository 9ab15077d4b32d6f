"""GFL, RetinaNet and FCOS with branches: old outputs to the bit, files, selection, training, export."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.config.settings import Train
from ciod.core.errors import CiodError
from ciod.core.types import Targets
from ciod.detectors import statistics
from ciod.detectors.files import weights
from ciod.detectors.layers.branch import OFF
from ciod.detectors.maps_branches import MapsBranches
from ciod.exporters.onnx_file import export
from ciod.methods.freeze_branch import FreezeBranch
from ciod.training import optim
from tests import fixed
from tests.data.writers import sample_index
from tests.detectors.common import confident, silent
from tests.inference.networks import pictures

SIZE, BRANCH = 64, 84
LIGHT = ["gfl-pico", "retinanet-nano", "fcos-nano"]
FIELDS = ("logits", "boxes", "points", "strides", "objectness")


def make(name: str, names=("ant", "bee", "cow"), size: int = SIZE) -> MapsBranches:
    """With features and scores that differ from place to place."""
    torch.manual_seed(0)
    detector = detectors.build(names, name=name, size=size).eval()
    assert isinstance(detector, MapsBranches)
    lively(detector)
    for m in detector.head.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
    for rows in detector.class_layers():
        nn.init.normal_(rows.tensor, std=0.2)
    return detector


def lively(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)


def branched(name: str, size: int = SIZE) -> MapsBranches:
    """Two branches, the first of which knows an old class too; scores as of trained ones."""
    detector = make(name, size=size)
    for names, taught in ((["dog", "eel"], ["bee"]), (["fox"], [])):
        lively(detector.add_branch(names, taught=taught).eval())
        detector.observe(pictures(8, seed=5))
    return confident(detector)


@torch.no_grad()
@pytest.mark.parametrize("name", [*LIGHT, "gfl-r18", "fcos-r18"])
def test_old_outputs_stay_bit_identical_through_two_branches(name):
    detector, x = make(name), pictures(2)
    before = detector(x)
    own, scores = before.logits.shape[1], before.scores()
    for new, taught in ((["dog", "eel"], ["bee"]), (["fox"], [])):
        known, positions = detector.num_classes, before.logits.shape[1]
        lively(detector.add_branch(new, taught=taught).eval())
        after = detector(x)
        assert torch.equal(after.logits[:, :positions, :known], before.logits)
        assert torch.equal(after.boxes[:, :positions], before.boxes)
        if before.objectness is not None:
            assert torch.equal(after.objectness[:, :positions], before.objectness)
        found = after.scores()[:, :own, :3]
        assert torch.allclose(found, scores, rtol=1e-6, atol=0), "a sigmoid is vectorised by shape"
        before = after
    assert before.parts == (own, BRANCH, BRANCH) and sum(before.levels) == sum(before.parts)
    assert detector.parts == [[0, 1, 2], [1, 3, 4], [5]]
    assert (before.logits[:, :own, 3:] == OFF).all() and (before.logits[:, own : own + BRANCH, [0, 2, 5]] == OFF).all()
    # Of a branch alone the scores are products, whatever those of the detector are.
    last = detector.newest(before)
    assert last.logits.shape[1] == BRANCH and not last.root
    assert torch.allclose(last.scores()[..., 5], last.logits[..., 5].sigmoid() * last.objectness.sigmoid())
    assert torch.allclose(before.scores()[:, -BRANCH:], last.scores())
    assert before.distribution is None and before.anchors is None and before.deltas is None


@torch.no_grad()
@pytest.mark.parametrize("name", LIGHT)
def test_files_selection_and_names(name, tmp_path):
    detector, x = branched(name), pictures(2)
    detector.branches[0].levels[1].standards[0].scale.fill_(0.5)
    full = silent(detector)(x)
    weights.save_model(tmp_path / "m.safetensors", detector)
    for other in (weights.load(tmp_path / "m.safetensors"), detector.frozen()):
        assert other.class_names == detector.class_names and other.growth == detector.growth
        found = other(x)
        assert all(torch.equal(getattr(found, k), getattr(full, k)) for k in FIELDS)
    detector.rename({"bee": "wasp"})
    assert detector.growth[1]["taught"] == ["wasp"]
    detector.select(["ant", "wasp", "eel"])  # the branch of fox goes, that of dog loses it
    assert detector.parts == [[0, 1], [1, 2]]
    found, kept = detector(x), full.logits.shape[1] - BRANCH
    assert torch.allclose(found.logits, full.logits[:, :kept, [0, 1, 4]], atol=1e-5)
    weights.save_model(tmp_path / "n.safetensors", detector)
    assert torch.equal(weights.load(tmp_path / "n.safetensors")(x).logits, found.logits)
    rows = [
        (r.first, len(r.tensor)) for r in detector.class_layers() if r.name.startswith("branches") and "bias" in r.name
    ]
    assert rows == [(1, 1), (2, 1)] * 4


@pytest.mark.parametrize("name", LIGHT)
def test_steps_train_the_newest_branch_alone(name, tmp_path):
    detector, method = make(name), FreezeBranch()
    index = sample_index(tmp_path, images=4, names=("ant", "cow", "dog"))
    detector.add_branch(["dog"])
    method.grow(detector, ["eel"], ["cow"])
    task = replace(fixed.task(detector.class_names[:4], ("eel",)), train=index.relabel(detector.class_names))
    method.attach(detector, detector, None)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    x = pictures(2)
    with torch.no_grad():
        old = detector.eval()(x)
    method.begin_task(task)
    scale = detector.branches[1].levels[0].standards[1].scale
    assert not torch.equal(scale, torch.ones_like(scale)), "the new branch reads standardised maps"
    assert torch.equal(detector.branches[0].levels[0].standards[1].scale, torch.ones_like(scale))
    optimizer = optim.optimizer(detector, Train(), 0.01)
    for m in detector.train().modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    batch = fixed.batch(fixed.boxes_at_random(1, [2, 1], classes=5), x)
    batch.targets.labels.fill_(4)
    first = {}
    for _ in range(4):
        losses = method.loss(batch)
        first = first or {k: float(v.detach()) for k, v in losses.items()}
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert losses.keys() == {"cls", "box", "obj", "refine"}
    assert sum(float(v.detach()) for v in losses.values()) < sum(first.values())
    changed = {k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("branches.1.") for k in changed)
    with torch.no_grad():
        new = detector.eval()(x)
    n = old.logits.shape[1] - BRANCH
    assert torch.equal(new.logits[:, :n], old.logits[:, :n]) and torch.equal(new.boxes[:, :n], old.boxes[:, :n])


@pytest.mark.parametrize("name", LIGHT)
def test_losses_of_all_positions_are_those_of_the_newest_branch(name):
    """In eval mode all parts are there; what is matched and summed is the newest branch."""
    detector, x = branched(name), pictures(2)
    targets = Targets.pad([torch.tensor([[8.0, 8, 40, 40], [4, 4, 30, 60]])] * 2, [torch.tensor([5, 0])] * 2)
    whole = detector(x)
    matches = detector.match(whole, targets)
    first = whole.logits.shape[1] - BRANCH
    assert matches.valid.any() and (matches.position[matches.valid] >= first).all()
    assert not matches.positive[:, :first].any() and (matches.target[matches.valid] == 0).all()
    alone = detector.newest(whole)
    expected = detector.loss(alone, targets, detector.match(alone, targets))
    found = detector.loss(whole, targets, matches)
    assert found.keys() == expected.keys() and all(torch.allclose(found[k], expected[k]) for k in found)
    every = torch.ones(2, whole.logits.shape[1], 6, dtype=torch.bool)
    assert torch.allclose(detector.loss(whole, targets, matches, channels=every)["cls"], expected["cls"])


def test_rows_beside_branches_are_refused():
    with pytest.raises(
        CiodError, match="gfl-pico has branches already, so classes can be added only on a further branch"
    ):
        branched("gfl-pico").grow(["yak"])


@torch.no_grad()
@pytest.mark.parametrize("name", LIGHT)
def test_an_arbiter_weighs_branches_and_nothing_else(name, tmp_path):
    detector, images = branched(name), sample_index(tmp_path / "raw", images=6, names=("ant", "fox"))
    statistics.gather(detector, images.relabel(detector.class_names))
    outputs = detector(pictures(2))
    own = outputs.parts[0]
    raw, weighed = outputs.scores(), detector.scores(outputs)
    assert torch.equal(raw[:, : own + BRANCH], weighed[:, : own + BRANCH]), "the first branch has no statistics"
    assert (weighed[:, -BRANCH:] < 0.9 * raw[:, -BRANCH:]).any()
    weights.save_model(tmp_path / "m.safetensors", detector)
    again = weights.load(tmp_path / "m.safetensors")
    assert torch.equal(again.scores(again(pictures(2))), weighed)


@pytest.mark.parametrize("name", LIGHT)
def test_an_exported_graph_is_the_model_with_its_arbiter(name, tmp_path):
    """Parts have unequal numbers of positions, and one class is known to two."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    detector = branched(name)
    arbiter = detector.add_arbiter()
    row = torch.tensor([1, 3, 4, 5]).repeat(20)
    x = torch.randn(len(row), arbiter.features)
    arbiter.learn(x, row, torch.arange(len(x)) * 4 // len(x))
    done = export(detector, tmp_path / "m.onnx", nms=True, score_threshold=0.001, max_detections=12)
    assert done.verified and done.score_difference < 1e-4 and done.detections > 4 * 12, "raw outputs are compared, too"
