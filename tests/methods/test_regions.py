"""mma, faster_ilod and bpf against the papers' formulas, written again in NumPy; what they share; what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from torch import nn

from ciod import detectors
from ciod.core.errors import ConfigError
from ciod.core.types import MEMORY, TASK
from ciod.detectors.files import weights as files
from ciod.methods import find
from ciod.methods.base import regions
from ciod.methods.bpf import attention, two_teachers
from ciod.methods.faster_ilod import centred_error, feature_error
from ciod.methods.finetune import Finetune
from ciod.methods.mma import unbiased_distillation
from tests import fixed
from tests.detectors.common import pictures
from tests.detectors.test_contract import lively

OLD, NEW = ("ant", "bee"), ("cow", "dog", "eel")
METHODS = ("mma", "faster_ilod", "bpf")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VALID = torch.tensor([[True] * 5, [True, True, False, False, True]])


def test_unbiased_distillation_is_the_papers():
    student, teacher = random(2, 5, 6) * 2, random(2, 5, 3, seed=1) * 2
    found = unbiased_distillation(student, teacher, VALID).item()
    s, t, terms = student.double().numpy(), teacher.double().numpy(), []
    for b, r in np.argwhere(VALID.numpy()):
        z, q = s[b, r], softmax(t[b, r])
        whole = logsumexp(z)
        log_p = [logsumexp([z[0], *z[3:]]) - whole, z[1] - whole, z[2] - whole]
        terms.append(-np.dot(q, log_p) / 3)
    assert found == pytest.approx(np.mean(terms), abs=1e-5)


def test_centred_logits_and_boxes_are_faster_ilods():
    student, teacher = random(2, 5, 6) * 2, random(2, 5, 3, seed=1) * 2
    s, t, valid = student.double().numpy(), teacher.double().numpy(), VALID.numpy()
    apart = (s - s.mean(2, keepdims=True))[..., :3] - (t - t.mean(2, keepdims=True))
    assert centred_error(student, teacher, VALID).item() == pytest.approx((apart[valid] ** 2).mean(), abs=1e-5)
    mine, theirs = random(2, 5, 5, 4), random(2, 5, 2, 4, seed=1)
    wanted = ((mine[:, :, :2] - theirs).double().numpy()[valid] ** 2).sum(2).mean()
    judged = [regions.Judged(student, mine), regions.Judged(teacher, theirs)]
    assert regions.box_error(*judged, VALID, 2).item() == pytest.approx(wanted, abs=1e-5)


def test_features_and_first_stage_lose_nothing():
    student, teacher = (
        [random(2, 3, 4, 5), random(2, 3, 2, 2)],
        [random(2, 3, 4, 5, seed=1), random(2, 3, 2, 2, seed=2)],
    )
    terms = []
    for a, b in zip(student, teacher):
        f, g = a.double().numpy(), b.double().numpy()
        apart = (g - g.mean((1, 2, 3), keepdims=True)) - (f - f.mean((1, 2, 3), keepdims=True))
        terms.append(np.maximum(apart, 0).mean())
    assert feature_error(student, teacher).item() == pytest.approx(np.mean(terms), abs=1e-5)

    outputs, knowledge = (first_stage(seed) for seed in (3, 4))
    lost = (knowledge.rpn_logits - outputs.rpn_logits).double().numpy()
    apart = ((knowledge.rpn_deltas - outputs.rpn_deltas).double().numpy() ** 2).sum(2)
    both = np.maximum(lost, 0) ** 2 + (lost > 0.1) * apart
    wanted = np.mean([both[:, :20].mean(), both[:, 20:].mean()])
    assert regions.first_stage_error(outputs, knowledge).item() == pytest.approx(wanted, abs=1e-5)


def first_stage(seed: int):
    outputs = detectors.build(OLD, name="fasterrcnn-pico", size=64).eval()(pictures(1))
    return replace(
        outputs, rpn_logits=random(2, 26, seed=seed), rpn_deltas=random(2, 26, 4, seed=seed + 9), rpn_levels=(20, 6)
    )


def test_two_teachers_are_bpfs():
    old, new = random(1, 4, 3).softmax(2), random(1, 4, 4, seed=1).softmax(2)
    near = torch.tensor([[True, False, True, False]])
    found = two_teachers(old, new, near).double().numpy()[0]
    for r, (o, n) in enumerate(zip(old[0].double().numpy(), new[0].double().numpy())):
        both = o[0] * n[0]
        wanted = [both, *(n[0] * o[1:]), *n[1:]] if near[0, r] else [both, *o[1:], *(o[0] * n[1:])]
        assert found[r] == pytest.approx(wanted, abs=1e-5) and sum(wanted) == pytest.approx(1)


def test_regions_are_random_ones_of_the_teachers_best():
    outputs = detectors.build(OLD, name="fasterrcnn-pico", size=64).eval()(pictures(2))
    real = torch.ones_like(outputs.real)
    real[1, 40:] = False
    at, valid = regions.chosen(replace(outputs, real=real))
    assert at.shape == (2, 64) and valid[0].all() and valid[1].sum() == 40
    assert len(set(at[0].tolist())) == 64 and at[0].max() > 64 and (at[1, valid[1]] < 40).all()
    assert at[0].tolist() != regions.chosen(replace(outputs, keys=outputs.keys + 1))[0][0].tolist()


# A step --------------------------------------------------------------------------------------------------------------


def learner(method):
    """The method in its second task, on a detector that detects something."""
    torch.manual_seed(0)
    detector = lively(detectors.build(OLD, name="fasterrcnn-pico", size=64))
    nn.init.normal_(detector.head.cls.blocks[0].weight, std=0.3)
    teacher = detector.frozen()
    detector.grow(NEW)
    method.attach(detector.eval(), detector, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    return detector


def a_batch(source=None):
    batch = fixed.batch(fixed.boxes_at_random(1, [3, 1], classes=1, size=64), pictures())
    batch.targets.labels += 2 * batch.targets.valid
    batch.source = None if source is None else torch.tensor(source)
    return batch


@pytest.mark.parametrize("name", METHODS)
def test_a_student_that_has_not_moved_and_one_that_has(name):
    method = find(name)(rpn_weight=1)
    detector = learner(method)
    still = method.loss(a_batch())
    assert method.distillation_terms <= set(still) and still["distill_box"] == 0
    assert still["distill_rpn"].item() == pytest.approx(0, abs=1e-10)
    if name == "faster_ilod":  # new rows shift the mean of the student's logits
        assert still["distill_feature"].item() == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        for p in detector.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    moved = method.loss(a_batch())
    assert all(moved[k] > 0 for k in method.distillation_terms)
    torch.stack(list(moved.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize(
    ("name", "off", "same"),
    [
        ("mma", {"weight": 0}, {"mask": "new"}),
        ("mma", {"weight": 0, "unbiased": False}, {}),
        ("faster_ilod", dict.fromkeys(("cls_weight", "box_weight", "feature_weight", "rpn_weight"), 0), {}),
        ("bpf", {"weight": 0, "rpn_weight": 0, "future": 0, "score": 1}, {}),
    ],
)
@pytest.mark.parametrize("source", [None, (TASK, MEMORY)], ids=["task", "with memory"])
def test_without_distillation_it_is_finetuning(name, off, same, source):
    found, plain = find(name)(**off), Finetune(**same)
    a, b = learner(found), learner(plain)
    losses, wanted = found.loss(a_batch(source)), plain.loss(a_batch(source))
    assert {k: v.item() for k, v in losses.items() if v.item() or k in wanted} == {
        k: v.item() for k, v in wanted.items()
    }
    assert a.class_names == b.class_names


def test_mmas_weight_follows_the_number_of_new_classes():
    assert [find("mma")().factor(n) for n in (1, 2, 5, 10)] == [1, 1, 0.5, 0.1]
    assert find("mma")(weight=0.3).factor(1) == 0.3


def test_mma_leaves_the_first_stage_out_by_default():
    method = find("mma")()
    learner(method)
    assert "distill_rpn" not in method.loss(a_batch())  # a term that is always 0 would be warned about


# BPF -----------------------------------------------------------------------------------------------------------------


def test_pseudo_boxes_near_real_ones_are_doubtful_or_dropped():
    method = find("bpf")(score=0.5)
    learner(method)
    knowledge = method.teach(a_batch())
    boxes = torch.tensor([[0.0, 0, 20, 20], [30.0, 30, 50, 50], [30.0, 0, 50, 20]])
    logits = torch.full_like(knowledge.logits, -9.0)
    logits[:, :3, 1] = 9.0
    where = knowledge.boxes.clone()
    where[:, :3] = boxes
    knowledge = replace(knowledge, logits=logits, boxes=where, background=torch.zeros_like(knowledge.background))
    real = replace(
        a_batch().targets,
        boxes=torch.tensor([[[0.0, 0, 20, 21], [30.0, 30, 50, 42]]]).expand(2, -1, -1),
        labels=torch.full((2, 2), 2),
        valid=torch.ones(2, 2, dtype=torch.bool),
    )
    past = method.past(knowledge, real, 5)
    assert past.valid[0].tolist() == [False, True, True]  # IoU 0.95, 0.6 and 0
    assert past.doubtful[0, 1:].tolist() == [True, False] and past.labels[0].tolist() == [1, 1, 1]
    assert past.known is None and method.past(knowledge, replace(real, known=torch.ones(2, 5) > 0), 5).known is not None


def test_possible_future_objects_are_not_background():
    method = find("bpf")(future=0.3)
    detector = learner(method)
    outputs = detector(pictures())
    matches = detector.match(outputs, a_batch().targets)
    spared = method.spare(outputs, matches)
    look = attention(detector, outputs)
    for b in range(2):
        wanted = set(range(30)) & set(look[b].topk(30).indices.tolist())
        wanted -= set(torch.nonzero(matches.positive[b])[:, 0].tolist())
        assert set(torch.nonzero(spared.ignored[b])[:, 0].tolist()) == wanted
    assert spared.ignored.any()


def test_an_interim_model_teaches_the_new_classes(tmp_path):
    torch.manual_seed(1)
    other = lively(detectors.build(("eel", "cow", "dog"), name="fasterrcnn-pico", size=64))
    files.save_model(tmp_path / "new.safetensors", other)
    method = find("bpf")(interim=[str(tmp_path / "new.safetensors")], weight=1.0)
    learner(method)
    batch = a_batch()
    losses = method.loss(batch)
    assert losses["distill_box"] > 0 and losses["distill_cls"].isfinite()
    knowledge = method.teach(batch)
    at, _ = regions.chosen(knowledge)
    interim, near = method.ask_interim(knowledge, batch)
    assert interim.logits.shape == (2, 64, 4) and interim.deltas.shape == (2, 64, 3, 4) and near.shape == at.shape
    alone = other.eval()(batch.images)
    places = knowledge.proposals.gather(1, at[..., None].expand(-1, -1, 4))
    _, logits, _ = other.judge(alone.features, places)
    torch.testing.assert_close(interim.logits[..., 1:], logits[..., [1, 2, 0]], rtol=0, atol=1e-5)


def test_interim_models_that_do_not_fit(tmp_path):
    files.save_model(tmp_path / "few.safetensors", detectors.build(("cow",), name="fasterrcnn-pico", size=64))
    with pytest.raises(ConfigError, match=r"few\.safetensors does not know 'dog'; it must be trained on"):
        learner(find("bpf")(interim=[str(tmp_path / "few.safetensors")]))
    files.save_model(tmp_path / "kind.safetensors", detectors.build(NEW, name="yolox-pico", size=64))
    with pytest.raises(ConfigError, match=r"kind\.safetensors is not a Faster R-CNN"):
        learner(find("bpf")(interim=[str(tmp_path / "kind.safetensors")]))
    with pytest.raises(ConfigError, match="it has 0 model files, but task 2 needs one"):
        learner(find("bpf")(interim=[]))
    assert find("bpf")(keep_iou=0.5, drop_iou=0.4, interim=["no.pth"]).check() == [
        "method.interim: there is no file no.pth.",
        "method.drop_iou=0.4 is below method.keep_iou=0.5.",
    ]
