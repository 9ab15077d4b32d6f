"""Exemplar memory and pools: selection by hand-computed values, what a task then sees, and what survives."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ciod.config.load import load
from ciod.config.settings import MemorySettings, PoolSettings
from ciod.core.errors import CiodError, ConfigError
from ciod.core.types import MEMORY, POOL, TASK, Detections
from ciod.data.images import save_image
from ciod.data.loader import Order
from ciod.data.scenarios.scenario import Protocol, Scenario
from ciod.detectors.base import Input
from ciod.memory import pools, rules
from ciod.memory.exemplars import Memory
from ciod.memory.rehearsal import Extra, concatenate
from tests import fixed

NAMES = ("ant", "bee", "cow")
# Images 0-3 have ants or bees, 4-5 cows; image 3 has all three.
ROWS = [(0, "ant"), (1, "ant"), (1, "bee"), (2, "bee"), (3, "ant"), (3, "bee"), (3, "cow"), (4, "cow"), (5, "cow")]


def scenario(split: str = "2+1", **more) -> Scenario:
    index = fixed.index_of(ROWS, NAMES, 6)
    return Scenario(Protocol(split=split, **more), index, index)


def memory(made: Scenario | None = None, **settings) -> Memory:
    return Memory(MemorySettings(**settings), made or scenario(), seed=0)


NO_MODEL: object = None  # these rules need no model


# Selection -----------------------------------------------------------------------------------------------------------


def test_herding_by_hand():
    # Mean 2. First 2.5 (nearest); then 1: (2.5 + 1)/2 beats (2.5 + 0)/2 and (2.5 + 4.5)/2; then 4.5: 8/3.
    features = np.array([[0.0], [1.0], [2.5], [4.5]])
    assert rules.herding(features, 2).tolist() == [2, 1, 0, 3]
    assert rules.herding(features, 3).tolist() == [2, 1, 3, 0]


def test_calibrated_by_hand():
    # Wanted 3 : 1. The best single image has exactly that ratio; then the pair that is closest to it.
    boxes = np.array([[1, 0], [0, 1], [3, 1], [2, 0]])
    assert rules.calibrated(boxes, np.array([3, 1]), 1).tolist() == [2]
    # After (3, 1): +(1,0) gives .8/.2, +(0,1) .6/.4, +(2,0) .83/.17: the first is closest to .75/.25.
    assert rules.calibrated(boxes, np.array([3, 1]), 2).tolist() == [2, 0]


def test_ocdm_balances_and_keeps_the_last_image_of_a_class():
    present = np.array([[True, False]] * 6 + [[False, True]] * 2)
    for k, expected in ((6, [4, 2]), (4, [2, 2]), (2, [1, 1])):
        kept = rules.ocdm(present, k, np.random.default_rng(0))
        assert len(kept) == k and present[kept].sum(0).tolist() == expected
    # An image of both classes counts for both: removing it never brings (3, 1) closer to uniform.
    both = np.array([[True, True], [True, False], [True, False]])
    assert 0 in rules.ocdm(both, 1, np.random.default_rng(0))


def test_in_turn():
    assert rules.in_turn([[1, 2, 3], [2, 4], []], 4).tolist() == [1, 2, 3, 4]
    assert rules.in_turn([[0], [0]], 5).tolist() == [0]


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["random", "calibrated", "ocdm"])
def test_a_memory_keeps_its_size_and_only_labelled_images(select):
    kept = memory(size=2, select=select)
    kept.update(0, NO_MODEL)
    assert len(kept) == 2 and set(kept.rows) <= {0, 1, 2, 3} and kept.known.tolist() == [[True, True, False]] * 2
    kept.update(1, NO_MODEL)
    assert len(kept) == 2 and set(kept.rows) <= set(range(6))
    index, known = kept.index()
    assert known[index.image, index.labels].all() and (np.diff(index.image) >= 0).all()


def test_an_image_of_two_tasks_has_the_boxes_of_both():
    kept = memory(size=6)
    kept.update(0, NO_MODEL)
    index, _ = kept.index()
    assert index.boxes_per_class().tolist() == [3, 3, 0]  # image 3's cow was not labelled yet
    kept.update(1, NO_MODEL)
    index, known = kept.index()
    assert index.boxes_per_class().tolist() == [3, 3, 3]
    assert known[3].tolist() == [True, True, True] and known[4].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("size", "per", "sizes"), [(0.5, "run", (2, 4)), (1, "class", (2, 3)), (50, "run", (4, 6)), (3, "run", (3, 3))]
)
def test_sizes(size, per, sizes):
    kept = memory(size=size, per=per)
    found = []
    for task in (0, 1):
        kept.update(task, NO_MODEL)
        found.append(len(kept))
    assert tuple(found) == sizes


def test_random_keeps_every_image_with_equal_probability():
    """100 images, then 300: of 40 exemplars 10 are of the first task."""
    index = fixed.index_of([(i, "ant" if i < 100 else "bee") for i in range(400)], ("ant", "bee"), 400)
    kept = memory(Scenario(Protocol(split="1+1"), index, index), size=40)
    kept.update(0, NO_MODEL)
    kept.update(1, NO_MODEL)
    assert (kept.rows < 100).sum() == 10


class Sees:
    """A model that finds a cow at the same place of every image, and an ant, which is not an old class."""

    device = torch.device("cpu")
    input = Input(size=64, fill=0.0)

    def eval(self):
        return self

    def __call__(self, images):
        return images

    def decode(self, outputs, score_threshold):
        assert score_threshold == 0.25
        box = np.array([[30, 30, 50, 50], [1, 1, 9, 9]], np.float32)
        return [Detections(box, np.array([0.9, 0.8]), np.array([2, 0]), NAMES) for _ in outputs]


def files(tmp_path, made: Scenario) -> Scenario:
    paths = [tmp_path / f"{i}.png" for i in range(len(made.train))]
    for p in paths:
        save_image(p, np.zeros((64, 64, 3), np.uint8))
    made.train = replace(made.train, files=paths)
    return made


def test_completed_labels_and_a_saved_state(tmp_path):
    made = files(tmp_path, scenario())
    kept = memory(made, size=6, labels="completed", score=0.25)
    kept.update(0, Sees())
    assert len(kept.found["row"]) == 0  # every class so far was labelled
    kept.update(1, Sees())
    index, known = kept.index()
    assert known.all()
    # Cows in 0, 1, 2 (3 has a labelled one), ants in 4, 5 (in 0, 1, 3 they are labelled; 2 is labelled and has none).
    assert sorted(zip(kept.found["row"].tolist(), kept.found["labels"].tolist(), strict=True)) == [
        (0, 2), (1, 2), (2, 2), (4, 0), (5, 0)]  # fmt: skip
    assert index.boxes_per_class().tolist() == [5, 3, 6]
    again = memory(made, size=6, labels="completed", score=0.25)
    again.load_state(kept.state())
    other, also = again.index()
    assert np.array_equal(known, also)
    for column in ("image", "boxes", "labels", "area", "crowd"):
        assert np.array_equal(getattr(index, column), getattr(other, column))
    assert index.files == other.files and again.fingerprint() == kept.fingerprint()


def test_a_state_of_other_data_is_refused():
    kept = memory(size=2)
    kept.update(0, NO_MODEL)
    index = fixed.index_of([*ROWS[:-1], (5, "ant")], NAMES, 6)
    other = memory(Scenario(Protocol(split="2+1"), index, index), size=2)
    with pytest.raises(CiodError, match="differ from those of the saved exemplars"):
        other.load_state(kept.state())


def test_herding_takes_the_images_near_the_class_mean(tmp_path):
    """Features by hand: the neck's map is the image's mean brightness and a constant."""
    made = files(tmp_path, scenario("3"))
    for i, value in enumerate((0, 100, 200, 100, 0, 250)):
        save_image(made.train.files[i], np.full((64, 64, 3), value, np.uint8))

    class Brightness(Sees):
        def __call__(self, images):
            x = images.float().mean(1, keepdim=True) / 100
            return SimpleNamespace(features=[torch.cat([x, torch.ones_like(x)], 1)])

    kept = memory(made, size=1, per="class", select="herding")
    kept.update(0, Brightness())
    # Ants: 0, 100, 100: image 1 is nearest to the mean. Bees: 100, 200, 100: 1 is taken, so 3, its equal.
    # Cows: 100, 0, 250.
    assert kept.rows[0] == 1 and len(kept) == 3
    assert set(kept.rows.tolist()) <= {0, 1, 2, 3, 4, 5}


# Mixtures ------------------------------------------------------------------------------------------------------------


def extra(made: Scenario, settings: dict, pool_index=None) -> Extra:
    run = SimpleNamespace(
        memory=MemorySettings(**settings.get("memory", {})),
        pool=PoolSettings(**settings.get("pool", {})),
        train=SimpleNamespace(batch=settings.get("batch", 8)),
        seed=0,
    )
    kept = Memory(run.memory, made, 0) if run.memory.size else None
    if kept is not None:
        kept.update(0, NO_MODEL)
    return Extra(run, kept, pool_index)


def test_a_mixture_knows_sources_and_classes_of_its_images():
    made = scenario()
    unlabelled = replace(fixed.index_of([], NAMES, 3), source="a pool")
    mixed = extra(made, {"memory": {"size": 2, "share": 0.25}, "pool": {"share": 0.25}}, unlabelled).mixture(
        made.task(1), 3
    )
    assert mixed is not None
    assert mixed.source.tolist() == [TASK] * 3 + [MEMORY] * 2 + [POOL] * 3
    assert mixed.known.tolist() == [[True] * 3] * 3 + [[True, True, False]] * 2 + [[False] * 3] * 3
    assert mixed.background.tolist() == [True] * 5 + [False] * 3
    assert mixed.counts == [4, 2, 2] and [len(p) for p in mixed.parts] == [3, 2, 3]
    assert len(np.unique(mixed.alike())) == 3
    cows = mixed.index.select(np.arange(3))
    assert (cows.labels == 2).all() and len(cows.labels) == 3
    assert (mixed.index.labels[mixed.index.image >= 3] < 2).all()


def test_the_first_task_has_only_its_own_images():
    made = scenario()
    assert extra(made, {"memory": {"size": 2}}).mixture(made.task(0), 2) is None
    assert extra(made, {}).mixture(made.task(1), 3) is None


@pytest.mark.parametrize(
    ("settings", "counts", "known", "background"),
    [
        ({"labels": "as_is"}, [4, 4], [True, True, True], True),
        ({"labels": "none"}, [4, 4], [False, False, False], False),
        ({"batches": "balanced"}, [3, 5], [True, True, False], True),
        ({"batches": "merged"}, [8], [True, True, False], True),
    ],
)
def test_labels_and_batches(settings, counts, known, background):
    made = scenario()
    mixed = extra(made, {"memory": {"size": 2, **settings}}).mixture(made.task(1), 3)
    assert mixed is not None and mixed.counts == counts
    assert mixed.known[-1].tolist() == known and mixed.background[-1] == background
    assert (len(mixed.index.labels) == 3) == (settings.get("labels") == "none")


def test_batches_have_their_shares_for_every_number_of_processes():
    parts, counts = [np.arange(10), np.arange(10, 13), np.arange(13, 20)], [4, 2, 2]

    def batches(rank: int, world: int):
        order = Order(20, 8, seed=1, task=1, rank=rank, world=world, parts=parts, counts=counts)
        order.epoch = 2
        assert len(order) == 3
        return [[i for _, i in b] for b in order]

    whole = batches(0, 1)
    for b in whole:
        assert [sum(i in p for i in b) for p in parts] == counts
    assert {i for b in whole for i in b if i < 10} == set(range(10))
    assert sorted(i for b in whole for i in b if 10 <= i < 13) == [10, 10, 11, 11, 12, 12]
    halves = [batches(r, 2) for r in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert all([sum(i in p for i in b) for p in parts] == [2, 1, 1] for half in halves for b in half)


def test_joined_indices():
    index = fixed.index_of(ROWS, NAMES, 6)
    both = concatenate([index.select(np.array([3])), index])
    assert len(both) == 7 and both.labels[both.of_image(0)].tolist() == [0, 1, 2]
    assert both.labels[both.of_image(4)].tolist() == [0, 1, 2] and both.files[4] == both.files[0]


# Pools and settings --------------------------------------------------------------------------------------------------


def test_a_pool_of_anything(tmp_path):
    for name in ("b.png", "deep/er/a.JPG"):
        save_image(tmp_path / name, np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "labels.txt").write_text("0 0 0 0 0")
    found = pools.read(tmp_path, NAMES)
    assert [p.name for p in found.files] == ["b.png", "a.JPG"] and found.sizes.tolist() == [[20, 30]] * 2
    assert found.class_names == NAMES and len(found.labels) == 0
    assert found.problems.lines() == ["1 × picture that cannot be read, left out: broken.jpg"]


def test_a_pool_follows_links_and_counts_skipped_files(tmp_path):
    far, pool = tmp_path / "far", tmp_path / "pool"
    save_image(far / "a.png", np.zeros((20, 30, 3), np.uint8))
    save_image(pool / "b.png", np.zeros((20, 30, 3), np.uint8))
    (pool / "linked").symlink_to(far)
    (pool / "loop").symlink_to(pool)
    (pool / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (pool / "c.cr2").write_bytes(b"raw")
    found = pools.read(pool)
    assert [p.name for p in found.files] == ["b.png", "a.png"]
    lines = " ".join(found.problems.lines())
    assert "loop" in lines and "gone.png" in lines and "c.cr2" in lines and len(found.problems.counts) == 3


def test_a_pool_with_nothing_in_it(tmp_path):
    with pytest.raises(CiodError, match="there is no picture in"):
        pools.read(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(CiodError, match="none of the 1 pictures in"):
        pools.read(tmp_path)
    with pytest.raises(CiodError, match=r"there is no folder .*pol; did you mean '.*pool'"):
        (tmp_path / "pool").mkdir()
        save_image(tmp_path / "pool" / "1.png", np.zeros((8, 8, 3), np.uint8))
        pools.read(tmp_path / "pol")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["method=finetune", "pool=POOL"], "finetune has no teacher and learns nothing from images without labels"),
        (["method=finetune", "memory=5", "memory.labels=none"], r"memory\.labels=none: finetune has no teacher"),
        (["method=distill_pool"], "distill_pool needs images without labels; write pool=FOLDER"),
        (["memory=5", "pool=POOL"], "leave no room in a batch"),
        (["method=distill_pool", "pool=nowhere/at/all"], r"pool\.folder: there is no folder nowhere/at/all"),
        (["memory=-1"], r"memory\.size: .*greater than or equal to 0"),
        (["memory.select=herdin"], "'herdin' is not allowed; did you mean 'herding'"),
        (["memory=5", "batch=1"], r"train\.batch=1 has no room"),
        (["memory.sise=5"], r"memory\.sise: there is no such setting; did you mean 'memory\.size'"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, words, match):
    words = [w.replace("POOL", str(tmp_path)) for w in words]
    with pytest.raises(ConfigError, match=match):
        load(None, ["data=shapes", "split=6+4", *words])


def test_herding_needs_features(monkeypatch):
    from ciod import detectors

    class Bare(detectors.find("yolox-pico")):
        traits = frozenset({"dense", "objectness"})
        variants = {"bare-pico": "pico"}  # noqa: RUF012

    known = tuple(detectors.families())
    monkeypatch.setattr(detectors, "families", lambda: (*known, Bare))
    words = ["data=shapes", "split=6+4", "method=replay", "memory=5", "memory.select=herding"]
    assert load(None, words).memory.select == "herding"
    with pytest.raises(ConfigError, match=r"memory\.select=herding needs a detector with features, which bare-pico"):
        load(None, [*words, "detector=bare-pico"])


def test_short_forms_and_what_a_method_brings_along(tmp_path):
    run = load(None, ["data=shapes", "split=6+4", "memory=50", f"pool={tmp_path}", "pool.share=0.25"])
    assert run.memory.size == 50 and run.pool.folder == str(tmp_path)
    assert load(None, ["data=shapes", "method=replay"]).memory.size == 0.1
    assert load(None, ["data=shapes", "method=replay", "memory=0"]).memory.size == 0
    assert load(None, ["data=shapes", "method=finetune"]).memory.size == 0
