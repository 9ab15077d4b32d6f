"""Branches of query detectors: old outputs to the bit, training, files, selection, the arbiter, export, extension."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import ciod
from ciod import detectors
from ciod.config.settings import Train
from ciod.core.errors import CiodError
from ciod.detectors import statistics
from ciod.detectors.files import weights
from ciod.detectors.layers.branch import OFF
from ciod.detectors.query.branches import QueryBranches
from ciod.exporters import hf_folder
from ciod.exporters.onnx_file import export
from ciod.extension import auto, effort
from ciod.methods.freeze_branch import FreezeBranch
from ciod.training import optim
from ciod.training.loop import train_mode
from tests import fixed
from tests.data.writers import sample_index, write_coco
from tests.detectors.common import NAMES, SIZE, pictures
from tests.detectors.query.folders import write
from tests.detectors.query.networks import ALL, trained

pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")

SMALL = [n for n in ALL if n != "ddetr-r50"]
OWN, BRANCH = 50, 20  # queries


def branched(name: str = "rtdetr-pico") -> QueryBranches:
    """Two branches, the first of which knows an old class too, with class rows as of trained ones."""
    detector = trained(name)
    assert isinstance(detector, QueryBranches)
    detector.add_branch(["dog", "eel"], taught=[NAMES[1]])
    detector.add_branch(["fox"])
    g = torch.Generator().manual_seed(5)
    for rows in detector.class_layers():
        if rows.name.startswith("branches."):
            nn.init.normal_(rows.tensor, std=0.5, generator=g)
    return detector.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_old_outputs_stay_bit_identical_through_two_branches_and_training(name):
    detector, x = trained(name), pictures()
    first = detector(x).answer()
    method = FreezeBranch()
    method.grow(detector, ["dog", "eel"], [NAMES[1]])
    method.grow(detector, ["fox"])
    assert detector.growth[1:] == [
        {"branch": 2, "taught": [NAMES[1]], "inner": [BRANCH]},
        {"branch": 1, "taught": [], "inner": [BRANCH]},
    ]
    method.attach(detector, detector, None)
    method.begin_task(fixed.task((*NAMES, "dog", "eel"), ("fox",)))
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    optimizer, ema = optim.optimizer(detector, Train(), 0.001), optim.EMA(detector, 0.9)
    train_mode(detector, method, "auto", task=1)
    batch = fixed.batch(fixed.boxes_at_random(1, [2, 1], classes=6, size=SIZE), x)
    batch.targets.labels.fill_(5)
    with torch.enable_grad():
        for _ in range(2):
            losses = method.loss(batch)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            ema.update(detector)
    assert all(p.grad is not None for p in detector.branches[-1].parameters()), "or two processes would wait"
    ema.copy_to(detector)
    changed = {k for k, v in detector.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("branches.1.") for k in changed)
    after = detector.eval()(x)
    assert after.parts == (OWN, BRANCH, BRANCH) and after.answer() is after
    assert torch.equal(after.logits[:, :OWN, : len(NAMES)], first.logits)
    assert torch.equal(after.boxes[:, :OWN], first.boxes)
    assert (after.logits[:, :OWN, 3:] == OFF).all() and (after.logits[:, OWN:, [0, 2]] == OFF).all()
    assert (after.logits[:, -BRANCH:, 5] > OFF / 2).all() and detector.parts == [[0, 1, 2], [1, 3, 4], [5]]
    newest = detector.newest(after)
    assert newest.logits.shape[1] == BRANCH and torch.equal(newest.boxes, after.boxes[:, -BRANCH:])


def test_a_branch_learns_the_objects_of_its_classes_alone():
    detector = branched().train()
    targets = fixed.boxes_at_random(1, [2, 2], classes=6, size=SIZE)
    targets.labels[:] = torch.tensor([0, 5])
    outputs = detector(pictures())
    assert outputs.answers == BRANCH and outputs.logits.shape[1] == 3 * BRANCH, "two layers and the encoder"
    matches = detector.match(outputs, targets)
    assert (targets.labels.gather(1, matches.target)[matches.valid] == 5).all() and int(matches.valid.sum()) == 2 * 3
    assert not detector.network.training and detector.branches[-1].training and not detector.branches[0].training


@torch.no_grad()
@pytest.mark.parametrize("name", ["dfine-pico", "ddetr-pico", "lwdetr-pico"])
def test_files_selection_and_names(name, tmp_path):
    detector, x = branched(name), pictures()
    full = detector(x)
    weights.save_model(tmp_path / "m.safetensors", detector)
    loaded = weights.load(tmp_path / "m.safetensors")
    assert loaded.class_names == detector.class_names and loaded.growth == detector.growth
    assert torch.equal(loaded(x).logits, full.logits) and torch.equal(loaded(x).boxes, full.boxes)
    teacher = detector.frozen()(x)  # layers without gradients may sum in another order
    assert torch.allclose(teacher.logits, full.logits, atol=1e-5) and teacher.parts == full.parts
    detector.rename({NAMES[1]: "wasp"})
    detector.select(["wasp", "eel"])  # the branch of fox goes, that of dog loses it
    assert detector.parts == [[0], [0, 1]] and detector.growth[1]["taught"] == ["wasp"]
    assert {(r.first, len(r.tensor)) for r in detector.class_layers() if r.name.startswith("branches")} == {
        (0, 1),
        (1, 1),
    }
    found = detector(x)
    weights.save_model(tmp_path / "n.safetensors", detector)
    assert torch.equal(weights.load(tmp_path / "n.safetensors")(x).logits, found.logits)


@torch.no_grad()
def test_of_two_boxes_on_an_object_that_two_parts_know_the_better_counts():
    detector = branched()
    outputs = detector(pictures())
    mine = OWN + 3
    outputs.boxes[:, mine] = outputs.boxes[:, 0] = torch.tensor([8.0, 8, 40, 40])
    outputs.logits[:, 0, 1], outputs.logits[:, mine, 1] = 2.0, 3.0
    outputs.logits[:, 0, 0] = 1.0
    raw, scores = outputs.scores(), detector.scores(outputs)
    assert (scores[:, 0, 1] == 0).all() and torch.equal(scores[:, mine, 1], raw[:, mine, 1])
    assert torch.equal(scores[..., [0, 2, 3, 4, 5]], raw[..., [0, 2, 3, 4, 5]]), "classes that one part knows alone"


def test_what_a_branch_cannot_do_is_refused():
    detector = branched()
    with pytest.raises(CiodError, match="rtdetr-pico has branches already, so classes can be added only on a further"):
        detector.grow(["yak"])
    with pytest.raises(CiodError, match="a branch of rtdetr-pico has queries and no bottlenecks; leave inner out"):
        detector.add_branch(["yak"], inner=(0, 7, 9))
    assert effort.branch_widths(sample_index_without_boxes(), detector) is None


def sample_index_without_boxes():
    return fixed.task((), ("ant",)).train


@torch.no_grad()
@pytest.mark.parametrize("name", ["rtdetr-pico", "lwdetr-pico"])
def test_an_exported_graph_is_the_model_with_its_arbiter(name, tmp_path):
    """Parts have unequal numbers of queries, and one class is known to two."""
    detector, images = branched(name), sample_index(tmp_path / "raw", images=6, names=(NAMES[0], "fox"))
    statistics.gather(detector, images.relabel(detector.class_names))
    outputs = detector(pictures())
    raw, weighed = outputs.scores(), detector.scores(outputs)
    assert torch.equal(raw[:, :OWN, [0, 2]], weighed[:, :OWN, [0, 2]])
    assert (weighed[:, -BRANCH:] < 0.9 * raw[:, -BRANCH:]).any()
    weights.save_model(tmp_path / "m.safetensors", detector)
    again = weights.load(tmp_path / "m.safetensors")
    assert torch.equal(again.scores(again(pictures())), weighed)
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    done = export(detector, tmp_path / "m.onnx", nms=True, score_threshold=0.001, max_detections=12)
    assert done.verified and done.score_difference < 1e-4 and done.detections > 4 * 12, "raw outputs are compared, too"


def test_a_checkpoint_of_transformers_is_extended_by_queries_of_its_own(tmp_path):
    write(tmp_path / "model", "rt_detr")
    write_coco(sample_index(tmp_path / "raw", images=6, names=("eel", "dog")), tmp_path / "data")
    quick = {"epochs": 1, "batch": 2, "device": "cpu"}
    assert auto.method_for(weights.load(f"hf:{tmp_path / 'model'}"))[0] == "pseudo_label"
    results = ciod.extend(
        f"hf:{tmp_path / 'model'}", tmp_path / "data", tmp_path / "run", method="freeze_branch", **quick
    )
    unchanged = results["extension"]["unchanged"]
    assert unchanged["identical"] == unchanged["images"] == 6
    was, detector = (weights.load(f) for f in (f"hf:{tmp_path / 'model'}", tmp_path / "run" / "model.safetensors"))
    assert detector.parts == [[0, 1, 2], [1, 3]] and detector.arbiter is not None
    with torch.no_grad():
        old, new = was(pictures()).answer(), detector(pictures())
    n = old.logits.shape[1]
    assert torch.equal(new.logits[:, :n, :3], old.logits) and torch.equal(new.boxes[:, :n], old.boxes)
    assert auto.method_for(detector) == ("freeze_branch", ""), "it cannot go back any more"
    with pytest.raises(CiodError, match="trains the whole model, and of a hf:rt_detr that was extended only"):
        ciod.extend(
            tmp_path / "run" / "model.safetensors",
            tmp_path / "data",
            tmp_path / "other",
            method="pseudo_label",
            **quick,
        )
    with pytest.raises(CiodError, match="cannot be exported to transformers, which has none"):
        hf_folder.export(detector, tmp_path / "out")


def test_the_arbiter_reads_the_maps_of_the_encoder():
    detector = trained("ddetr-pico")
    assert isinstance(detector, QueryBranches) and detector.judged_maps() == ([64] * 3, [8, 16, 32])
    assert not detector.training and "branches" in detectors.traits("lwdetr-pico")
    lone = replace(detector(pictures()), parts=())
    assert detector.newest(lone) is lone
