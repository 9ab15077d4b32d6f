"""Distillation of query detectors (``query_kd``, ``sikd``): every term against its formula in NumPy."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ciod.core.types import Outputs
from ciod.detectors.query.matching import shares
from ciod.methods.base import queries
from ciod.methods.finetune import Finetune
from ciod.methods.pseudo_label import PseudoLabel
from ciod.methods.query_kd import QueryKD
from ciod.methods.sikd import SIKD
from tests import fixed
from tests.detectors.common import SIZE, absent, pictures
from tests.detectors.query.networks import trained

pytestmark = pytest.mark.skipif(absent("rtdetr-pico"), reason="transformers is absent: pip install 'ciod[detr]'")
OLD, NEW = ("ant", "bee", "cow"), ("dog",)
GIVEN = ["rtdetr-pico", "rtdetrv2-pico", "dfine-pico", "deimv2-pico", "ddetr-pico"]
LOW = {"score": 0.999, "box_score": 0.5, "deviations": 0.0}  # few pseudo boxes, and some anchors and tokens


@functools.cache
def pair(name: str):
    """A teacher, and a student that grew and moved away from it."""
    torch.manual_seed(0)
    teacher, student = trained(name, OLD), trained(name, OLD)
    student.load_state_dict(teacher.state_dict())
    student.grow(NEW)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.02)
    return teacher.frozen(), student.eval()


def attached(method, name: str):
    teacher, student = pair(name)
    method.attach(student, student, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    return method


def batch():
    targets = fixed.boxes_at_random(2, [2, 1], classes=4, size=SIZE)
    targets.labels.fill_(3)
    return fixed.batch(targets, pictures())


def double(x) -> np.ndarray:
    return x.detach().double().numpy()


def doubled(o: Outputs) -> Outputs:
    more = {} if o.distribution is None else {"distribution": o.distribution.double()}
    return replace(o, logits=o.logits.double(), boxes=o.boxes.double(), **more)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def iou_giou(a, b) -> tuple[float, float]:
    both = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both
    hull = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
    return both / union, both / union - (hull - union) / hull


def chosen(knowledge: Outputs, targets, score: float, iou: float) -> list[tuple[int, int, float]]:
    """Image, query and score of the anchors."""
    answers, found = knowledge.answer(), []
    boxes, real = double(answers.boxes), double(targets.boxes)
    best = sigmoid(double(answers.logits))[..., : len(OLD)].max(2)
    for b, q in np.ndindex(*best.shape):
        overlap = max([0.0, *(iou_giou(boxes[b, q], r)[0] for r, ok in zip(real[b], targets.valid[b]) if ok)])
        if best[b, q] >= score and overlap < iou:
            found.append((b, q, best[b, q]))
    return found


def box_error(asked: Outputs, knowledge: Outputs, b: int, q: int) -> float:
    mine, theirs = double(asked.boxes)[b, q], double(knowledge.boxes)[b, q]
    units = double(shares(asked.boxes, asked.frame))[b, q], double(shares(knowledge.boxes, asked.frame))[b, q]
    return 5 * np.abs(units[0] - units[1]).sum() + 2 * (1 - iou_giou(mine, theirs)[1])


def logit_error(asked: Outputs, knowledge: Outputs) -> float:
    n, total = asked.answers or 0, 0.0
    mine, theirs = double(asked.logits)[..., : len(OLD)], double(knowledge.logits)[..., : len(OLD)]
    for b in range(2):
        for part in range(mine.shape[1] // n):
            own = slice(part * n, (part + 1) * n)
            s = sigmoid(theirs[b, own]).max(1)
            total += (s / s.sum() * ((theirs[b, own] - mine[b, own]) ** 2).sum(1)).sum()
    return total / 2


def of(name: str):
    teacher, student = pair(name)
    given = batch()
    with torch.no_grad():
        outputs, knowledge = student(given.images), teacher(given.images)
        return outputs, knowledge, queries.ask(student, outputs, knowledge), given


@pytest.mark.parametrize("name", GIVEN)
def test_a_detector_that_is_asked_its_own_queries_gives_its_own_answers(name):
    teacher, _ = pair(name)
    with torch.no_grad():
        out = teacher(pictures())
        again = teacher.decode_at(out, out.asked, out.starts)
    n = again.logits.shape[1]
    assert n % out.answers == 0 and n >= 2 * out.answers, "at least the sets of two layers"
    torch.testing.assert_close(again.logits, out.logits[:, :n], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.boxes, out.boxes[:, :n], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", ["rtdetr-pico", "dfine-pico", "ddetr-pico"])
def test_the_terms_of_query_kd_are_the_formulas(name):
    outputs, knowledge, asked, given = of(name)
    method = attached(QueryKD(**LOW), name)
    with torch.no_grad():
        found = method.distill(outputs, knowledge, given)
        targets = replace(given.targets, boxes=given.targets.boxes.double())
        exact = method.box_term(doubled(asked), doubled(knowledge), replace(given, targets=targets))
        decoder = queries.logit_error(doubled(asked), doubled(knowledge), len(OLD)).mean()
    assert ("distill_enc" in found) == (name != "ddetr-pico")
    assert float(decoder) == pytest.approx(logit_error(asked, knowledge), rel=1e-5)
    assert float(found["distill_dec"]) == pytest.approx(float(decoder), rel=1e-3), "the decoder runs again, and rounds"
    total, anchors = 0.0, chosen(knowledge, given.targets, 0.5, 0.7)
    assert len(anchors) > 2
    for b, q, score in anchors:
        total += box_error(asked, knowledge, b, q)
        if asked.distribution is not None:
            t, s = (double(o.distribution)[b, q] / 5 for o in (knowledge, asked))
            t, s = (v - np.log(np.exp(v).sum(-1, keepdims=True)) for v in (t, s))
            total += 25 * score * (np.exp(t) * (t - s)).sum()
    assert float(exact) == pytest.approx(total / len(anchors), rel=1e-5)
    assert float(found["distill_box"]) == pytest.approx(float(exact), rel=1e-3)
    if "distill_enc" in found:
        mine, theirs = double(outputs.first)[..., : len(OLD)], double(knowledge.first)
        best, wanted = sigmoid(theirs).max(2), 0.0
        for b in range(2):
            stands = best[b] > best[b].mean()
            error = ((mine[b] - theirs[b]) ** 2).mean(1)[stands]
            wanted += error.mean() if len(error) else 0.0
        assert wanted > 0 and float(found["distill_enc"]) == pytest.approx(wanted / 2, rel=1e-5)


def test_the_terms_of_sikd_are_the_formulas():
    outputs, knowledge, asked, given = of("ddetr-pico")
    method = attached(SIKD(anchor_score=0.5), "ddetr-pico")
    with torch.no_grad():
        found = method.distill(outputs, knowledge, given)
        targets = replace(given.targets, boxes=given.targets.boxes.double())
        exact = method.spatial(doubled(asked), doubled(knowledge), replace(given, targets=targets))
    anchors, total, n = chosen(knowledge, given.targets, 0.5, 0.7), 0.0, len(OLD)
    for b, q, _ in anchors:
        t, s = (sigmoid(double(o.logits)[b, q, :n]) for o in (knowledge, asked))
        total += (t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))).sum() + box_error(asked, knowledge, b, q)
    wanted = total / len(anchors) + logit_error(asked, knowledge)
    assert float(exact) == pytest.approx(wanted, rel=1e-5)
    assert float(found["distill_spsd"]) == pytest.approx(wanted, rel=1e-3), "the decoder runs again, and rounds"

    def ranks(detector, out: Outputs) -> np.ndarray:
        states, score = double(out.states).reshape(-1, 64), sigmoid(double(out.answer().logits))[..., :n].reshape(-1, n)
        last = detector.network.class_embed[-1]
        rows = np.concatenate([double(b.weight) for b in last.blocks])[:n]
        bias = np.concatenate([double(b.bias) for b in last.blocks])[:n]
        table = []
        for c in range(n):
            p = (score[:, c : c + 1] * states).sum(0) / score[:, c].sum()
            s = sigmoid(rows @ (p / np.linalg.norm(p)) + bias)
            s = s / s.max()
            table.append([sum(sigmoid(-(s[k] - s[j])) for j in range(n)) for k in range(n)])
        return np.array(table)

    teacher, student = pair("ddetr-pico")
    apart = np.abs(ranks(student, outputs) - ranks(teacher, knowledge)).sum() / n**2
    assert apart > 0 and float(found["distill_sesd"]) == pytest.approx(6 * apart, rel=1e-4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.semantic(outputs, knowledge) * 6, found["distill_sesd"]), "in float32 under AMP, too"


@pytest.mark.parametrize(("kind", "name"), [(QueryKD, "rtdetr-pico"), (QueryKD, "ddetr-pico"), (SIKD, "ddetr-pico")])
def test_equal_detectors_teach_nothing(kind, name):
    teacher, _ = pair(name)
    method = kind()
    method.attach(teacher, teacher, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    with torch.no_grad():
        out = teacher(pictures())
        found = method.distill(out, out, batch())
    assert all(float(v) == pytest.approx(0, abs=1e-5) for v in found.values()) and set(found)


@pytest.mark.parametrize(
    ("kind", "name", "off"),
    [
        (QueryKD, "rtdetr-pico", {"enc_weight": 0, "dec_weight": 0, "box_weight": 0}),
        (SIKD, "ddetr-pico", {"spsd_weight": 0, "sesd_weight": 0}),
    ],
)
def test_without_weights_it_is_pseudo_labels_and_without_these_fine_tuning(kind, name, off):
    def losses(method):
        with torch.no_grad():
            return attached(method, name).loss(batch())

    mine, labels = losses(kind(score=0.5, **off)), losses(PseudoLabel(score=0.5, nms_iou=1.0))
    plain, none = losses(Finetune()), losses(kind(score=1.0, **off))
    terms = kind.distillation_terms & set(mine)
    assert terms and all(mine[k] == none[k] == 0 for k in terms)
    for key, value in labels.items():
        assert torch.equal(mine[key], value), key
        assert float(none[key]) == pytest.approx(float(plain[key]), rel=1e-6), key  # sums over other numbers of slots
    assert any(abs(float(labels[k]) - float(plain[k])) > 1e-3 for k in plain)


@pytest.mark.parametrize(("kind", "name"), [(QueryKD, "rtdetr-pico"), (SIKD, "ddetr-pico")])
def test_the_teacher_teaches_the_decoder_and_the_encoder_but_not_itself(kind, name):
    method = attached(kind(**({"box_score": 0.5} if kind is QueryKD else {"anchor_score": 0.5})), name)
    student = method.detector
    student.zero_grad()
    losses = method.loss(batch())
    sum(losses[k] for k in method.distillation_terms & set(losses)).backward()
    moved = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("decoder" in n for n in moved) and any("backbone" in n for n in moved)
    for rows in student.class_layers():
        if rows.first >= len(OLD) and isinstance(rows.tensor, nn.Parameter):
            assert rows.tensor.grad is None or not rows.tensor.grad.any(), f"{rows.name} is of a new class"
    assert all(p.grad is None for p in method.teacher.detector.parameters())
    student.zero_grad()


def test_offline_pseudo_boxes_are_boxes_of_the_batch_already():
    given = batch()
    with torch.no_grad():
        off = {"enc_weight": 0, "dec_weight": 0, "box_weight": 0}
        mine = attached(QueryKD(offline=True, **off), "rtdetr-pico").loss(given)
        plain = attached(Finetune(), "rtdetr-pico").loss(given)
    assert all(torch.equal(mine[k], plain[k]) for k in plain)


def test_tokens_are_distilled_that_stand_out():
    """By two deviations of the image: of twenty, one."""
    theirs = torch.full((1, 20, 3), -5.0)
    theirs[0, 3, 1], theirs[0, 7, 0] = 4.0, -4.0
    mine = theirs + torch.arange(20.0)[None, :, None]
    found = attached(QueryKD(enc_weight=2.0), "rtdetr-pico").encoder_term(mine, theirs)
    assert float(found) == pytest.approx(2 * 3.0**2)
