"""D-FINE and DEIMv2: outputs and parts of the loss against ``transformers``, and all of it against formulas in NumPy.

The losses of ``transformers`` leave one set of queries out, pair others wrongly and give the last layer no loss of its
distributions, so a whole loss is compared with NumPy alone, and theirs only with the same wrong pairs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ciod.core.types import Outputs
from ciod.detectors.query import configs, d_fine
from ciod.detectors.query import distribution as fine
from ciod.detectors.query.matching import shares
from tests import fixed
from tests.detectors.common import NAMES, SIZE, make, pictures
from tests.detectors.query.test_golden import labels, ours

pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
optimize = pytest.importorskip("scipy.optimize", reason="scipy is absent: pip install 'ciod[detr]'")

COUNTS = [3, 0, 2]
CLASS = {"dfine-pico": "vfl", "deimv2-pico": "mal"}


def theirs(name: str) -> nn.Module:
    torch.manual_seed(3)
    config = configs.configuration(d_fine.DFINE.variants.get(name) or d_fine.DEIMv2.variants[name], NAMES, "a test")
    config.use_dense_one_to_one = False
    model = configs.network(config, "a test").eval()
    for key, p in model.named_parameters():
        if any(k in key for k in ("class_embed", "score_head", "bbox", "reg_conf", "layers.2")):
            nn.init.normal_(p, std=0.3)
    model.model.decoder.training = True  # else it gives its last layer alone
    return model


def case(name: str):
    model = theirs(name)
    detector = ours(name, model)
    targets = fixed.boxes_at_random(1, COUNTS, classes=len(NAMES), size=SIZE)
    return model, detector, detector(pictures(len(COUNTS))), targets


def blocks(out: Outputs, *sets: int, layers: tuple[int, ...] = ()) -> Outputs:
    """Only these sets of queries, with the distributions of these layers; both count from the last layer."""
    n = out.answers
    take = lambda v, which: torch.cat([v[:, i * n : (i + 1) * n] for i in which], 1)  # noqa: E731
    dist, refs = (take(v, layers or (0,)) for v in (out.distribution, out.refs))
    return replace(out, logits=take(out.logits, sets), boxes=take(out.boxes, sets), distribution=dist, refs=refs)


@pytest.mark.parametrize("name", CLASS)
def test_outputs_and_parts_of_the_loss_are_those_of_transformers(name):
    model, detector, out, targets = case(name)
    detector.network.config.use_dense_one_to_one = False
    found = model(pixel_values=pictures(len(COUNTS)) / 255, labels=labels(targets))
    n = found.logits.shape[1]
    assert out.logits.shape[1] == 4 * n, "two layers, the first boxes, the encoder"
    for i, (logits, units) in enumerate(zip(found_sets(found, "logits"), found_sets(found, "boxes"), strict=True)):
        own = slice(i * n, (i + 1) * n)
        torch.testing.assert_close(out.logits[:, own], logits, rtol=1e-4, atol=1e-4)
        real = torch.cat([units[..., :2], units[..., 2:].clamp(min=0)], -1)
        torch.testing.assert_close(shares(out.boxes, out.frame)[:, own], real, rtol=1e-4, atol=1e-4)
    corners = found.intermediate_predicted_corners.flip(1).flatten(1, 2)
    torch.testing.assert_close(out.distribution.flatten(2), corners, rtol=1e-4, atol=1e-4)

    parts = {"cls": f"loss_{CLASS[name]}", "box": "loss_bbox", "giou": "loss_giou"}
    for part, end in ((0, ""), (2, "_aux_0"), (3, "_aux_1")):
        one = blocks(out, part)
        losses = detector.loss(one, targets, detector.match(one, targets))
        for mine, yours in parts.items():
            assert float(losses[mine].detach()) == pytest.approx(float(found.loss_dict[yours + end]), rel=1e-5), yours
    # theirs gives the first boxes the distributions of the first layer
    one = blocks(out, 2, layers=(1,))
    losses = detector.loss(one, targets, detector.match(one, targets))
    assert float(losses["fgl"].detach()) == pytest.approx(float(found.loss_dict["loss_fgl_aux_0"]), rel=1e-5)
    two = blocks(out, 0, 2, layers=(0, 1))
    losses = detector.loss(two, targets, detector.match(two, targets))
    assert float(losses["ddf"].detach()) == pytest.approx(float(found.loss_dict["loss_ddf_aux_0"]), rel=1e-5)


def found_sets(found, what: str) -> list[torch.Tensor]:
    """The outputs of transformers, in ciod's order: the last layer first, then the first boxes, then the encoder."""
    stacked = found.intermediate_logits if what == "logits" else found.intermediate_reference_points
    return [*stacked.unbind(1)][::-1] + [found.enc_topk_logits if what == "logits" else found.enc_topk_bboxes]


@pytest.mark.parametrize("together", [True, False], ids=["union", "own"])
@pytest.mark.parametrize("name", CLASS)
def test_the_whole_loss_is_that_of_the_formulas(name, together):
    _, detector, out, targets = case(name)
    detector.network.config.use_dense_one_to_one = together
    losses = {k: float(v.detach()) for k, v in detector.loss(out, targets, detector.match(out, targets)).items()}
    wanted = formulas(out, targets, mal=name == "deimv2-pico", together=together)
    assert set(losses) == set(wanted)
    for key, value in wanted.items():
        assert losses[key] == pytest.approx(value, rel=1e-5), key


# The formulas, in NumPy -----------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def overlap(a, b):
    """IoU and generalised IoU of two boxes: centre, width, height."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    sides = lambda c, s, d, t: (max(c - s / 2, d - t / 2), min(c + s / 2, d + t / 2))  # noqa: E731
    (left, right), (top, low) = sides(ax, aw, bx, bw), sides(ay, ah, by, bh)
    common = max(right - left, 0) * max(low - top, 0)
    union = aw * ah + bw * bh - common
    hull = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
        max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    )
    return common / union, common / union - (hull - union) / hull


def matched(logits, units, real, label):
    """Query and target of each pair of least cost."""
    p = sigmoid(logits)[:, label]
    cost = 2 * (0.25 * (1 - p) ** 2 * -np.log(p + 1e-8) - 0.75 * p**2 * -np.log(1 - p + 1e-8))
    for q in range(len(units)):
        for t in range(len(real)):
            cost[q, t] += 5 * np.abs(units[q] - real[t]).sum() - 2 * overlap(units[q], real[t])[1]
    return list(zip(*optimize.linear_sum_assignment(cost)))


def weights_of_bins(number=32, up=0.5, scale=4.0):
    a = up * scale
    base = (a + 1) ** (2 / (number - 2))
    half = [base**i - 1 for i in range(1, number // 2)]
    return np.array([-2 * a, *[-h for h in half[::-1]], 0.0, *half, 2 * a])


def fgl(dist, ref, real, iou, scale=4.0):
    """The loss of one query: [4, 33] logits."""
    (cx, cy, w, h), (x, y, bw, bh) = ref, real
    offset = [
        (cx - (x - bw / 2)) * scale / w, (cy - (y - bh / 2)) * scale / h,
        ((x + bw / 2) - cx) * scale / w, ((y + bh / 2) - cy) * scale / h,
    ]  # fmt: skip
    values, total = weights_of_bins(), 0.0
    for logits, d in zip(dist, np.array(offset) - scale / 2):
        d = min(max(d, values[0]), values[-1])
        low = min(int((values <= d).sum()) - 1, 31)
        right = (d - values[low]) / (values[low + 1] - values[low])
        log_p = np.log(softmax(logits))
        total -= (1 - right) * log_p[low] + right * log_p[low + 1]
    return total * iou


def ddf(dist, teacher, best, iou_of):
    """The loss of one layer: dist and teacher [B, Q, 4, 33], best [B, Q], iou_of (image, query) → IoU if matched."""
    t, s = softmax(teacher / 5), softmax(dist / 5)
    apart = 25 * (t * (np.log(t) - np.log(s))).sum(-1)  # [B, Q, 4]
    yes, no = [], []
    for b in range(len(dist)):
        for q in range(dist.shape[1]):
            weight = iou_of.get((b, q), best[b, q])
            (yes if (b, q) in iou_of else no).extend(weight * apart[b, q])
    root = np.sqrt(len(yes)), np.sqrt(len(no))
    return (np.mean(yes) * root[0] + np.mean(no) * root[1]) / sum(root)


def united(pairs: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """The union of all sets: every query with its most frequent target; of equally frequent ones, the first."""
    found = {}
    votes = Counter(pair for one in pairs for pair in one)
    for query, target in sorted(votes, key=lambda pair: (-votes[pair], pair[1])):
        found.setdefault(query, target)
    return list(found.items())


def formulas(out: Outputs, targets, *, mal: bool, together: bool) -> dict[str, float]:
    n, frame = out.answers or 0, out.frame
    double = lambda v: v.detach().double().numpy()  # noqa: E731
    logits, dist, refs = double(out.logits), double(out.distribution), double(out.refs)
    units = np.clip(double(shares(out.boxes.double(), frame)), 0, 1)
    real = double(shares(targets.boxes.double(), frame))
    total = dict.fromkeys(("cls", "box", "giou", "fgl", "ddf"), 0.0)
    sets = [slice(i * n, (i + 1) * n) for i in range(logits.shape[1] // n)]
    labels = [targets.labels[b, :count].numpy() for b, count in enumerate(COUNTS)]
    pairs = [
        [matched(logits[b, own], units[b, own], real[b, :c], labels[b]) for own in sets] for b, c in enumerate(COUNTS)
    ]
    for part, own in enumerate(sets):
        ious = {}
        for b in range(len(COUNTS)):
            z = logits[b, own]
            target, hit = np.zeros_like(z), np.zeros_like(z, dtype=bool)
            for q, t in pairs[b][part]:
                target[q, labels[b][t]], hit[q, labels[b][t]] = overlap(units[b, own][q], real[b, t])[0], True
            for q, t in united(pairs[b]) if together else pairs[b][part]:
                iou, giou = overlap(units[b, own][q], real[b, t])
                ious[b, q] = iou
                total["box"] += 5 * np.abs(units[b, own][q] - real[b, t]).sum()
                total["giou"] += 2 * (1 - giou)
                if part < 2:
                    total["fgl"] += 0.15 * fgl(dist[b, own][q], refs[b, own][q], real[b, t], iou)
            p = sigmoid(z)
            weight = np.where(hit, 1.0 if mal else target, p**1.5 if mal else 0.75 * p**2)
            target = target**1.5 if mal else target
            total["cls"] += (weight * -(target * np.log(p) + (1 - target) * np.log(1 - p))).sum()
        if part == 1:
            best = sigmoid(logits[:, :n]).max(-1)
            total["ddf"] += 1.5 * ddf(dist[:, own], dist[:, :n], best, ious)
    boxes = sum(len(united(p)) for p in pairs) if together else sum(COUNTS)
    assert not together or boxes > sum(COUNTS), "sets disagree"
    return {k: v if k == "ddf" else v / (sum(COUNTS) if k == "cls" else boxes) for k, v in total.items()}


def test_a_side_of_negative_length_has_none():
    """All weight on the bin that is farthest inside."""
    detector = make("dfine-pico").eval()
    with torch.no_grad():
        heads: Any = detector.network.decoder.bbox_embed
        for head in heads:
            head.layers[-1].bias.view(4, 33)[:, 0] = 30.0
        out = detector(pictures())
        found = detector.decode(out, score_threshold=0.0)
    own = out.answer().boxes
    assert (own[..., 2:] >= own[..., :2]).all() and (own[..., 2:] - own[..., :2]).max() < 1e-3
    assert len(found[0]) == out.answers


# Small things ---------------------------------------------------------------------------------------------------------


def test_bins_are_narrow_in_the_middle():
    values = fine.bins(32, 2.0, torch.device("cpu"))
    np.testing.assert_allclose(values.numpy(), weights_of_bins(), rtol=1e-6)
    assert len(values) == 33 and values[16] == 0 and values[-1] == 4 and (values.diff() > 0).all()


def test_an_offset_lies_between_two_bins():
    values = fine.bins(8, 2.0, torch.device("cpu"))
    middle = (values[2] + values[3]) / 2
    low, share = fine.between(torch.stack([middle, values[5], torch.tensor(-99.0), torch.tensor(99.0)]), values)
    assert low.tolist() == [2, 5, 0, 7]
    assert share.tolist() == pytest.approx([0.5, 0.0, 0.0, 1.0])


def test_equal_distributions_teach_nothing_and_the_last_layer_learns_from_none():
    detector = make("dfine-pico")
    out, targets = detector(pictures()), fixed.boxes_at_random(1, [2, 1], classes=3, size=SIZE)
    n = out.answers
    same = out.distribution[:, :n].detach()
    given = torch.cat([same, same], 1).requires_grad_()
    out = replace(out, distribution=given)
    matches = detector.match(out, targets)
    assert float(fine.distillation(out, matches, matches.valid)) == 0
    other = given.detach().clone()
    other[:, n:] += torch.randn(other[:, n:].shape, generator=torch.Generator().manual_seed(1))
    other.requires_grad_()
    fine.distillation(replace(out, distribution=other), matches, matches.valid).backward()
    assert not other.grad[:, :n].any() and other.grad[:, n:].any()


def test_a_match_that_is_not_counted_teaches_no_distribution():
    detector = make("deimv2-pico")
    out, targets = detector(pictures()), fixed.boxes_at_random(1, [2, 1], classes=3, size=SIZE)
    given = out.distribution.detach().requires_grad_()
    out = replace(out, distribution=given)
    matches = detector.match(out, targets)
    counted = matches.valid.clone()
    counted[0] = False
    fine.localisation(out, targets, matches, counted, 2.0, 4.0).backward()
    assert not given.grad[0].any() and given.grad[1].any()
