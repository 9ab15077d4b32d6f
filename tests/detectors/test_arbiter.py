"""The arbiter: discriminant analysis from sums, and what it does to the scores of branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.detectors import statistics
from ciod.detectors.files import weights
from ciod.detectors.layers.arbiter import SHRINK, Arbiter, _inside, _means
from ciod.exporters.onnx_file import export
from tests.data.writers import sample_index

OLD = ("cat", "dog", "cow")


def objects(seed: int, counts: tuple[int, ...], features: int = 6):
    """Objects of classes with means of their own and one covariance, class numbers beside them."""
    g = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(len(counts), features, generator=g)
    mix = torch.randn(features, features, generator=g)
    row = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return mean[row] + torch.randn(len(row), features, generator=g) @ mix, row


def arbiter_of(x, row, classes: int) -> Arbiter:
    made = Arbiter((2, 4), (8, 16), classes)
    made.add(x, row)
    return made


def test_discriminants_are_those_of_gaussians_with_one_covariance():
    x, row = objects(0, (20, 30, 25))
    made = arbiter_of(x, row, 3)
    means = torch.stack([x[row == c].double().mean(0) for c in range(3)])
    apart = x.double() - means[row]
    pooled = apart.T @ apart / (len(x) - 3)
    shrunk = (1 - SHRINK) * pooled + SHRINK * torch.diag(pooled.diagonal())
    log = torch.stack([MultivariateNormal(m, shrunk).log_prob(x.double()) for m in means], 1)
    got = made.discriminants(x).double()
    assert torch.allclose(got - got[:, :1], log - log[:, :1], rtol=1e-3, atol=1e-2)
    assert torch.allclose(made.posterior(x.new_tensor([[0.0, 16.0, 16.0]])).sum(), torch.tensor(1.0))


def test_statistics_of_two_extensions_are_those_of_both_at_once():
    x, row = objects(1, (9, 7, 11, 5))
    once = arbiter_of(x, row, 4)
    first = torch.arange(len(x)) % 3 == 0  # the classes overlap between the two
    made = Arbiter((2, 4), (8, 16), 2)
    early = first & (row < 2)
    made.add(x[early], row[early])
    made.grow(2)
    made.add(x[~early], row[~early])
    assert torch.equal(made.count, once.count)
    for name in ("mean", "scatter", "weight", "bias"):
        assert torch.allclose(getattr(made, name), getattr(once, name), rtol=1e-4, atol=1e-4), name


def test_views_of_an_object_weigh_as_much_as_the_object():
    x, row = objects(2, (12, 15, 10))
    once = arbiter_of(x, row, 3)
    thrice = Arbiter((2, 4), (8, 16), 3)
    thrice.add(x.repeat(3, 1), row.repeat(3), 1 / 3)
    for name in ("count", "mean", "scatter", "weight"):
        assert torch.allclose(getattr(thrice, name), getattr(once, name), rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("objects_each", [2, 3])
def test_two_objects_of_a_class_are_enough_even_if_their_views_are_equal(objects_each):
    """The statistics without one of them have no scatter at all."""
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        scale = torch.randn(448, generator=g).mul(2).exp()
        x = torch.randn(objects_each, 448, generator=g).relu().mul(scale).repeat_interleave(4, 0)
        made = Arbiter((64, 128, 256), (8, 16, 32), 1)
        made.learn(x, torch.zeros(len(x), dtype=torch.long), torch.arange(objects_each).repeat_interleave(4), 1 / 4)
        assert made.count.tolist() == [objects_each] and made.distance.isfinite().all()


def test_each_fold_is_judged_by_statistics_without_it():
    x, row = objects(2, (12, 15, 10))
    fold = torch.arange(len(x)) % 3
    made = Arbiter((2, 4), (8, 16), 3)
    made.learn(x, row, fold)
    degrees = torch.logspace(0, 7, 36, 2.0).double()
    truth, logs = torch.zeros(36).double(), []
    for f in range(3):
        out = fold == f
        others = arbiter_of(x[~out], row[~out], 3)
        log = (others.discriminants(x[out]).double()[None] / degrees[:, None, None]).log_softmax(-1)
        truth += log[:, torch.arange(int(out.sum())), row[out]].sum(1)
        logs.append(others.distances(x[out] @ others.projection)[torch.arange(int(out.sum())), row[out]])
    assert made.degree == pytest.approx(float(degrees[truth.argmax()]), rel=1e-5) and 0.9 < made.degree < 20
    assert made.distance.tolist() == pytest.approx(
        [float(torch.cat(logs).sum()), float(torch.cat(logs).square().sum()), len(x)], rel=1e-4
    )


def test_an_object_that_is_alone_is_judged_with_itself():
    x, row = objects(2, (1, 15))
    made = Arbiter((2, 4), (8, 16), 2)
    made.learn(x, row, torch.cat([torch.tensor([-1]), torch.arange(15) % 3]))
    assert made.temperature[1] == made.distance[2] == 16 and made.distance.isfinite().all()


def test_folds_are_runs_of_neighbouring_pictures_of_each_class():
    row = torch.tensor([1, 0, 0, 0, 0, 0, 2, 2, 0])
    place = torch.tensor([5, 9, 7, 3, 3, 1, 4, 4, 5])
    #        class 1: one picture; class 0: pictures 1, 3, 5, 7, 9; class 2: one picture, two objects
    assert statistics._folds(row, place).tolist() == [-1, 3, 2, 0, 0, 0, -1, -1, 1]


def test_frames_of_one_film_do_not_make_the_arbiter_sure():
    """Objects of a class come in runs of nearly equal ones; folds of neighbours see how far runs are apart."""
    g = torch.Generator().manual_seed(0)
    runs, row = objects(4, (8, 8, 8))
    x = runs.repeat_interleave(10, 0) + 0.01 * torch.randn(len(runs) * 10, 6, generator=g)
    row = row.repeat_interleave(10)
    place = torch.arange(len(x))
    of_runs, of_frames = Arbiter((2, 4), (8, 16), 3), Arbiter((2, 4), (8, 16), 3)
    of_runs.learn(x, row, statistics._folds(row, place))
    of_frames.learn(x, row, place % 4)
    assert of_runs.degree > 1.2 * of_frames.degree
    assert of_runs.limit()[0] > of_frames.limit()[0]


def test_what_is_far_from_every_learnt_object_is_not_known():
    x, row = objects(6, (60, 60))
    made = Arbiter((2, 4), (8, 16), 2)
    assert (made.known(torch.tensor([9.0])) == 1).all()  # nothing was fitted
    made.learn(x, row, torch.arange(len(x)) % 4)
    new, label = objects(6, (200, 200))
    inside = made.known(made.distances(new @ made.projection))
    assert inside[torch.arange(400), label].quantile(0.05) > 0.8
    outside = made.known(made.distances((new + 60) @ made.projection))
    assert outside.max() < 0.05


def test_prototypes_of_nothing_weigh_as_much_as_one_class_together():
    x, row = objects(3, (10, 10))
    made = arbiter_of(x, row, 2)
    made.add_nothing(torch.zeros(4, 6), torch.tensor([5.0, 5.0, 5.0, 5.0]))
    assert torch.allclose(made.prior.exp(), torch.tensor([1.0, 1.0, 0.25, 0.25, 0.25, 0.25]))
    kept = made.mean[1].clone()
    made.select([1])
    assert made.count.tolist() == [10, 5, 5, 5, 5] and torch.equal(made.mean[0], kept)
    made.grow(2)
    assert made.count.tolist() == [10, 0, 0, 5, 5, 5, 5] and made.listed == [0, 3, 4, 5, 6]


@pytest.mark.parametrize("channels", [(3, 5), (600, 900)])
def test_judging_on_the_maps_is_judging_pooled_features(channels):
    g = torch.Generator().manual_seed(4)
    maps = [torch.randn(2, c, 64 // s, 64 // s, generator=g) for c, s in zip(channels, (8, 16), strict=True)]
    boxes = torch.tensor([[[3.0, 4, 40, 50], [20, 20, 28, 30]], [[-9, 0, 99, 64], [60, 60, 64, 64]]])
    made = Arbiter(channels, (8, 16), 3)
    x = made.pool(maps, boxes.view(4, 4), torch.tensor([0, 0, 1, 1]))
    assert x.shape == (4, min(1024, sum(channels)))
    made.add(x + 0.1 * torch.randn(4, x.shape[1], generator=g), torch.tensor([0, 1, 2, 2]))
    want = made.posterior(made.discriminants(x)).view(2, 2, 3)
    probability, known = made.judge(maps, boxes)
    assert torch.allclose(probability, want, atol=1e-4) and (known == 1).all()
    made.distance.copy_(torch.tensor([8.0, 20.0, 4.0]))
    near = made.known(made.distances(x @ made.projection)).view(2, 2, 3)
    assert torch.allclose(made.judge(maps, boxes)[1], near, atol=1e-3) and near.min() < 0.5
    flat = [torch.full((1, c, 64 // s, 64 // s), 2.0) for c, s in zip((2, 4), (8, 16), strict=True)]
    even = Arbiter((2, 4), (8, 16), 1).pool(flat, torch.tensor([[5.0, 5, 30, 60]]), torch.tensor([0]))
    assert torch.allclose(even, torch.full((1, 6), 2.0))


def test_the_mean_in_a_box_as_a_product_of_matrices_is_that_of_roi_align():
    g = torch.Generator().manual_seed(7)
    m = torch.randn(2, 3, 13, 10, generator=g)
    boxes = torch.rand(2, 40, 4, generator=g) * 500 - 40
    boxes[..., 2:] = boxes[..., :2] + torch.rand(2, 40, 2, generator=g) * 200
    boxes[0, 0] = torch.tensor([300.0, 400, 330, 416])
    boxes[0, 1] = torch.tensor([319.0, 415, 320, 416])  # smaller than a cell, at the border
    boxes[0, 2, 0] = float("nan")
    image = torch.arange(2).repeat_interleave(40)
    want = _inside(m, boxes.view(-1, 4), image, 32).view(2, 40, 3).transpose(1, 2)
    assert torch.allclose(_means(m, boxes, 32), want, atol=1e-5)


@pytest.fixture
def extended(tmp_path):
    """A detector with two branches, both with statistics; its scores are large enough to be compared."""
    torch.manual_seed(0)
    made = detectors.build(OLD, name="yolox-pico", size=64).eval()
    images = sample_index(tmp_path / "raw", images=6, names=(*OLD, "eel", "fox"))
    with torch.no_grad():
        for names, taught in ((["eel"], ["dog"]), (["fox"], [])):
            branch = made.add_branch(names, taught=taught).eval()
            for level in branch.levels:
                level.obj.bias.fill_(1.0)
                for block in level.cls.blocks:
                    block.weight.normal_(std=0.5)
                    block.bias.fill_(0.5)
            statistics.gather(made, images)
        head: Any = made.head
        for layer in (*head.obj, *(b for m in head.cls for b in m.blocks)):
            layer.bias.fill_(0.0)
    return made


IMAGES = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(5)).float()


def test_the_detectors_own_scores_and_detections_stay_bit_identical(extended):
    with torch.no_grad():
        outputs = extended(IMAGES)
        raw, weighed = outputs.scores(), extended.scores(outputs)
        positions = raw.shape[1] // 3
        assert torch.equal(raw[:, :positions], weighed[:, :positions])
        assert (weighed[:, positions:] <= raw[:, positions:]).all()
        assert (weighed[:, positions:] < 0.9 * raw[:, positions:]).any()
        only = torch.tensor([True, False, True, False, False])  # cat and cow, which no branch knows
        on = extended.decode(outputs, classes=only)
        extended.arbiter.on = False
        assert torch.equal(extended.scores(outputs), raw)
        off = extended.decode(outputs, classes=only)
    for a, b in zip(on, off, strict=True):
        assert len(a) and (a.boxes == b.boxes).all() and (a.scores == b.scores).all()


def test_the_newer_branch_yields_where_the_statistics_favour_the_older(extended):
    a = extended.arbiter
    with torch.no_grad():
        outputs = extended(IMAGES)
        a.count.zero_()
        a.count[[1, 3, 4]] = 10
        a.mean.zero_()
        a.mean[4] = 1e3  # fox is nowhere near what the maps hold
        a.refresh()
        raw, weighed = outputs.scores(), extended.scores(outputs)
        n = raw.shape[1] // 3
        assert torch.allclose(weighed[:, n : 2 * n], raw[:, n : 2 * n], atol=1e-5)
        assert weighed[:, 2 * n :].max() < 1e-5
        a.count[4] = 0  # a branch without statistics is left as it is
        a.refresh()
        assert torch.equal(extended.scores(outputs)[:, 2 * n :], raw[:, 2 * n :])


def test_a_model_file_keeps_the_statistics_and_one_without_is_read(extended, tmp_path):
    path = tmp_path / "m.safetensors"
    weights.save_model(path, extended)
    again = weights.load(path)
    with torch.no_grad():
        outputs = extended(IMAGES)
        assert torch.equal(again.scores(again(IMAGES)), extended.scores(outputs))
        without = weights.load(path, arbiter=False)
        assert torch.equal(without.scores(without(IMAGES)), outputs.scores())
    again.arbiter = None
    weights.save_model(path, again)
    assert weights.load(path).arbiter is None
    extended.arbiter.scatter = torch.zeros(3)
    weights.save_model(path, extended)
    with pytest.raises(CiodError, match="does not fit the detector its metadata describes"):
        weights.load(path)


def test_selecting_classes_keeps_the_others_statistics(extended):
    count = extended.arbiter.count.clone()
    extended.select(["cat", "dog", "fox"])
    assert torch.equal(extended.arbiter.count[:3], count[[0, 1, 4]])
    with torch.no_grad():
        outputs = extended(IMAGES)
        assert extended.scores(outputs).shape == outputs.logits.shape


@pytest.mark.parametrize("nms", [False, True])
def test_an_exported_graph_judges_as_the_model(extended, tmp_path, nms):
    settings = {"nms": True, "score_threshold": 0.01, "max_detections": 50} if nms else {}
    done = export(extended, tmp_path / "m.onnx", opset=13, **settings)
    assert done.verified and done.score_difference < 1e-4 and (not nms or done.detections > 50)
    raw = export(extended, tmp_path / "raw.onnx", arbiter=False)
    assert raw.path.stat().st_size < done.path.stat().st_size


@pytest.mark.parametrize("nms", [False, True])
def test_branches_with_bottlenecks_at_other_levels_are_exported(tmp_path, nms):
    """They are merged in two groups; the classes that two parts know go through one NMS."""
    torch.manual_seed(1)
    made = detectors.build(OLD, name="yolox-pico", size=128).eval()
    for i, (inner, taught) in enumerate(
        [((4, 6, 8), ["dog"]), ((0, 5, 7), []), ((3, 4, 5), ["cat", "cow"]), ((0, 0, 0), [])]
    ):
        branch = made.add_branch([f"new {i}", f"more {i}"], taught=taught, inner=inner, refine=False)
        for p in branch.parameters():
            p.data += 0.1 * torch.randn(p.shape)
        for level in branch.levels:
            level.obj.bias.data.fill_(1.0)
            for block in level.cls.blocks:
                block.bias.data.fill_(0.5)
        for module in branch.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 2)
    arbiter = made.add_arbiter()
    row = torch.arange(3, made.num_classes).repeat(20)
    x = torch.randn(len(row), arbiter.features)
    arbiter.learn(x, row, torch.arange(len(x)) * 4 // len(x))
    settings = {"nms": True, "score_threshold": 0.01, "max_detections": 60} if nms else {}
    done = export(made, tmp_path / "m.onnx", size=128, dynamic_size=True, **settings)
    assert done.verified and done.score_difference < 1e-4 and (not nms or done.detections > 50)
