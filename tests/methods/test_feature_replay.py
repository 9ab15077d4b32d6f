"""Feature replay: what is stored, how stored vectors follow the features, and the terms by hand."""

from __future__ import annotations

import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.core.boxes import gather_rows
from ciod.data.index import Index
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.head_inputs import has_head_inputs
from ciod.methods import feature_replay as fr
from ciod.methods.feature_replay import FeatureReplay, Vectors
from ciod.methods.pseudo_label import PseudoLabel
from tests import fixed
from tests.methods.test_waits import waits

OLD, NEW = ("ant", "bee"), ("cow", "dog")
KINDS = ("yolox-pico", "gfl-pico", "retinanet-nano", "fcos-nano")
kinds = pytest.mark.parametrize("name", KINDS)


def some_batch(seed: int = 0, classes: int = 4):
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return fixed.batch(fixed.boxes_at_random(seed, [2, 1], classes=classes), images)


def known(name: str):
    """A detector of the old classes with large class rows, in eval mode."""
    torch.manual_seed(0)
    detector = detectors.build(OLD, name=name, size=64)
    for rows in detector.class_layers():
        nn.init.normal_(rows.tensor, 0, 0.5)
    return detector.eval()


def second(method: FeatureReplay | PseudoLabel, name: str = "yolox-pico", *, moved: float = 0.0, stored: bool = True):
    """A second task, after vectors were stored of one batch; ``moved``: the student's features are no longer those."""
    detector = known(name)
    assert has_head_inputs(detector)
    if stored and isinstance(method, FeatureReplay):
        with torch.no_grad():
            found = method._matched(detector, some_batch(classes=2))
        assert found is not None
        method.load_state({"vectors": {f.name: getattr(found, f.name) for f in fields(found)}})
    teacher = detector.frozen()
    detector.grow(NEW)
    with torch.no_grad():
        for p in detector.trunk()[0].parameters():
            p += moved * torch.randn_like(p)
    method.attach(detector, detector, teacher)
    method.begin_task(fixed.task(OLD, NEW))
    return method


# The head answers stored features ------------------------------------------------------------------------------------


@kinds
def test_a_stored_window_gets_the_answer_of_its_position(name):
    detector = known(name)
    assert has_head_inputs(detector)
    with torch.no_grad():
        outputs = detector(some_batch().images)
        first = 0
        for level, (cls, box, n) in enumerate(zip(outputs.towers, outputs.box_towers, outputs.levels, strict=True)):
            height, width = cls.shape[2:]
            image, cell = torch.tensor([0, 1]), torch.tensor([0, height * width - 1])  # two corners
            where = (image, cell // width, cell % width)
            windows = [fr.window(m, *where, detector.window) for m in (cls, box)]
            logits, sure = detector.answer_at(level, *windows)
            anchors = n // (height * width)
            position = first + cell[:, None] * anchors + torch.arange(anchors)
            torch.testing.assert_close(logits, gather_rows(outputs.logits[image], position), atol=1e-4, rtol=1e-4)
            if outputs.objectness is not None and sure is not None:
                wanted = outputs.objectness[image].gather(1, position)
                torch.testing.assert_close(sure, wanted, atol=1e-4, rtol=1e-4)
            assert (sure is None) == (outputs.objectness is None)
            first += n


def test_a_window_beyond_the_border_is_0():
    m = torch.arange(1.0, 7).view(1, 1, 2, 3)
    got = fr.window(m, torch.tensor([0]), torch.tensor([0]), torch.tensor([2]), 3)
    assert got.tolist() == [[[[0, 0, 0], [2, 3, 0], [5, 6, 0]]]]


def test_the_largest_keys_of_each_class_are_kept():
    label, key = torch.tensor([1, 0, 1, 1, 0]), torch.tensor([0.1, 0.9, 0.5, 0.3, 0.2])
    assert fr.best_per_class(label, key, 2).tolist() == [1, 2, 3, 4]
    assert fr.best_per_class(label, key, 1).tolist() == [1, 2]


# The terms -----------------------------------------------------------------------------------------------------------


def stand_in(towers: list[torch.Tensor], box_towers: list[torch.Tensor]) -> Any:
    """Outputs with nothing but towers."""
    return SimpleNamespace(towers=towers, box_towers=box_towers)


class Line:
    """A head with one feature f: class logits f and −f for the old class and the new one, objectness 2 f."""

    traits = frozenset({"head_inputs"})
    window = 1

    def answer_at(self, level, cls, box):
        f = cls.flatten(1)
        return torch.stack([f, -f], 2), 2 * box.flatten(1)


def stored(values: list[float], prob: float, obj: float) -> Vectors:
    n = len(values)
    f = torch.tensor(values).view(n, 1, 1, 1)
    index = torch.zeros(n, dtype=torch.long)
    return Vectors(f, f.clone(), index, index, torch.full((n, 1, 1), prob), torch.full((n, 1), obj))


class Holding(FeatureReplay):
    """In a later task, with these vectors of a level."""

    def hold(self, level: int, vectors: Vectors) -> None:
        self._live = [(level, vectors)]


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_replay_by_hand():
    method = Holding(weight=2)
    head: Any = Line()
    method.attach(head, head, None)
    method.hold(0, stored([0.0, 1.0], prob=0.8, obj=0.5))
    got = method.replayed()
    s = [1 / (1 + math.exp(-x)) for x in (0.0, 1.0, 2.0)]
    cls = kl(0.8, s[0]) - math.log(s[0]) + kl(0.8, s[1]) - math.log(s[1])  # 1 − σ(−f) = σ(f) for the new class
    assert got["replay_cls"].item() == pytest.approx(2 * cls / 2, abs=1e-5)
    assert got["replay_obj"].item() == pytest.approx(2 * (kl(0.5, s[0]) + kl(0.5, s[2])) / 2, abs=1e-5)


def test_the_tie_by_hand(monkeypatch):
    monkeypatch.setattr(fr, "FLOOR", 0.5)
    method = FeatureReplay()

    def maps(*values: float) -> list[torch.Tensor]:
        return [torch.tensor(values).view(1, 1, 1, 2)]

    student, teacher = stand_in(maps(1, 4), maps(2, 2)), stand_in(maps(1, 2), maps(1, 2))
    got = method.tied(student, teacher, [torch.tensor([[0.5, 0.0]])])
    assert got.item() == pytest.approx((0.5 * 4 + 1 * 1) / (1 + 0.5 * 4 + 1 + 0.5 * 4))


def test_the_drift_is_found():
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 3, 8, 8, generator=g)
    turn, step = torch.randn(3, 3, generator=g), torch.randn(3, generator=g)
    student = torch.einsum("bfyx,fg->bgyx", teacher, turn) + step[:, None, None]
    moments = fr._moments(student, teacher, torch.rand(2, 64, generator=g))
    change = fr.drift(torch.stack([moments, 0 * moments]), 1e-6)
    torch.testing.assert_close(fr.shift(teacher[:, :, :3, :3], change[0]), student[:, :, :3, :3], atol=1e-3, rtol=1e-3)
    assert not change[1].any()  # nothing was seen


# In a task -----------------------------------------------------------------------------------------------------------


@kinds
def test_without_weights_it_is_pseudo_label(name):
    plain = second(PseudoLabel(score=0.1), name).loss(some_batch(1))
    mine = second(FeatureReplay(score=0.1, weight=0, tie=0), name).loss(some_batch(1))
    assert mine.keys() == plain.keys()
    assert all(torch.equal(mine[k], plain[k]) for k in plain)


@kinds
def test_right_after_growth_only_the_new_rows_are_wrong(name):
    losses = second(FeatureReplay(), name).loss(some_batch(1))
    assert losses["tie"].item() == pytest.approx(0, abs=1e-6)  # the teacher's convolutions are the same here
    method = second(FeatureReplay(), name)
    classes = sum(len(part.label) for _, part in method._live)
    assert classes and losses["replay_cls"].item() > 0
    with torch.no_grad():
        for rows in method.detector.class_layers():
            if rows.first >= len(OLD):
                rows.tensor.fill_(-50 if rows.name.endswith("bias") else 0)
    assert method.replayed()["replay_cls"].item() == pytest.approx(0, abs=1e-2)  # the answers are stored as float16


def test_vectors_follow_the_features():
    """Both towers of both levels moved by their own linear map; the moments of two steps find it."""
    method, g = FeatureReplay(ridge=1e-6), torch.Generator().manual_seed(1)
    turn, step = torch.randn(2, 2, 3, 3, generator=g), torch.randn(2, 2, 3, generator=g)

    def moved(x: torch.Tensor, level: int, tower: int) -> torch.Tensor:
        return torch.einsum("bfyx,fg->bgyx", x, turn[level, tower]) + step[level, tower][:, None, None]

    for _ in range(2):
        old = [[torch.randn(2, 3, 4, 4, generator=g) for _ in range(2)] for _ in range(2)]  # tower, level
        new = [[moved(x, level, tower) for level, x in enumerate(maps)] for tower, maps in enumerate(old)]
        student, teacher = (stand_in(m[0], m[1]) for m in (new, old))
        method._follow(student, teacher, [torch.ones(2, 16)] * 2)
    part = stored([0.0], 0.5, 0.5)
    part.cls, part.box = torch.randn(2, 5, 3, 1, 1, generator=g)
    for level in range(2):
        for tower, now in enumerate(method._moved(level, part)):
            wanted = moved((part.cls, part.box)[tower], level, tower)
            torch.testing.assert_close(now, wanted, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Index:
    from ciod.data.formats import read

    folder = write_shapes(tmp_path_factory.mktemp("shapes"), train=6, val=2, size=64)
    return read(folder, "train")


def test_what_is_stored(pictures):
    """At most ``vectors`` of each class, the same in every process, and of earlier tasks what no task taught again."""
    detector = detectors.build(pictures.class_names, name="yolox-pico", size=64)
    task: Any = SimpleNamespace(train=pictures, index=0)
    method = FeatureReplay(vectors=3)
    method.attach(detector, detector, None)
    method.end_task(task)
    state = method.state()["vectors"]
    assert state["label"].bincount().max() == 3 and state["cls"].dtype == torch.float16
    again = FeatureReplay(vectors=3)
    again.attach(detector, detector, None)
    again.end_task(task)
    assert all(torch.equal(v, again.state()["vectors"][k]) for k, v in state.items())
    before = method._store
    assert before is not None
    detector.grow(["later"])
    method.end_task(task)
    after = method._store
    assert after is not None
    assert after.prob.shape[2] == len(pictures.class_names) + 1
    assert after.label.bincount().max() == 3


def test_a_resumed_run_has_the_same_losses():
    method = second(FeatureReplay(), moved=0.01)
    method.loss(some_batch(1))
    state = method.state()
    other = second(FeatureReplay(), moved=0.01, stored=False)
    other.detector.load_state_dict(method.detector.state_dict())
    other.load_state(state)
    a, b = method.loss(some_batch(2)), other.loss(some_batch(2))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_empty_state_is_pseudo_labels_and_the_tie():
    method = second(FeatureReplay(), stored=False)
    method.load_state({})
    assert "tie" in method.loss(some_batch()) and method.state() == {}


@kinds
def test_a_step_with_vectors_waits_for_nothing(name):
    method = second(FeatureReplay(), name)
    batch = some_batch(1)
    assert waits(lambda: torch.stack(list(method.loss(batch).values())).sum().backward()) == {}
    assert method._live and method._moments


def test_two_processes_see_the_drift_of_one(monkeypatch):
    g = torch.Generator().manual_seed(2)
    old, new = torch.randn(2, 4, 3, 4, 4, generator=g)  # 4 images

    def follow(rows: slice) -> list[torch.Tensor]:
        method = FeatureReplay()
        student, teacher = (stand_in([m[rows]], [-m[rows]]) for m in (new, old))
        method._follow(student, teacher, [torch.ones(len(old[rows]), 16)])
        return method._moments

    whole, other = follow(slice(4)), follow(slice(2, 4))
    monkeypatch.setattr(fr.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(fr.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(fr.dist, "all_reduce", lambda x: x.add_(other[0].flatten()))
    torch.testing.assert_close(follow(slice(2)), whole)


def test_under_mixed_precision_the_terms_are_float32():
    method = second(FeatureReplay(), moved=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method.loss(some_batch(1))
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
