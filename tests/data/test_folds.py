"""Grouped folds: related images on one side, every image tested once, sizes by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ciod.config import load as config
from ciod.core.errors import CiodError, ConfigError
from ciod.data.index import Index
from ciod.data.scenarios import folds
from ciod.data.scenarios.scenario import Protocol, Scenario
from ciod.data.shapes.scenes import write_shapes
from ciod.runs.start import open_data
from tests.fixed import index_of

NAMES = ("ant", "bee")


def images(names: list[str], labels: list[str] | None = None) -> Index:
    """One image per name, each with one box: of ``labels``, or of ant and bee in turn."""
    rows = [(i, (labels or NAMES * len(names))[i]) for i in range(len(names))]
    index = index_of(rows, NAMES, len(names))
    return dataclasses.replace(index, files=[Path(f"/data/{n}") for n in names])


def cut(index: Index, **protocol) -> tuple[list[str], list[str]]:
    """Names of the images that are trained on and of those that are tested."""
    sides = folds.cut(index, Protocol(**protocol))
    train, test = ([f.name for f in side.files] for side in sides)
    return train, test


FRAMES = [f"clip{c}_{f:02d}.jpg" for c in "abcdef" for f in range(4)]


@pytest.mark.parametrize("fold_by", ["spread", "order"])
def test_every_image_is_tested_once_and_no_group_is_on_both_sides(fold_by):
    tested = []
    for k in (1, 2, 3):
        train, test = cut(images(FRAMES), folds=3, fold=k, group="^clip.", fold_by=fold_by)
        assert sorted(train + test) == FRAMES and len(test) == 8
        assert not {n[:5] for n in train} & {n[:5] for n in test}
        tested += test
    assert sorted(tested) == FRAMES


def test_without_a_group_every_image_is_one():
    tests = [cut(images(FRAMES), folds=4, fold=k)[1] for k in (1, 2, 3, 4)]
    assert [len(t) for t in tests] == [6] * 4 and sorted(n for t in tests for n in t) == FRAMES


def test_folds_are_the_same_in_every_call_and_others_with_another_seed():
    given = {"folds": 3, "fold": 1, "group": "clip(.)"}
    assert cut(images(FRAMES), **given) == cut(images(FRAMES), **given)
    assert len({tuple(cut(images(FRAMES), **given, image_seed=s)[1]) for s in range(8)}) > 1


def test_every_fold_has_its_share_of_a_rare_class():
    """Twelve images of ant and three of bee: each of three folds tests four and one."""
    index = images([f"{i}.jpg" for i in range(15)], ["ant"] * 12 + ["bee"] * 3)
    for k in (1, 2, 3):
        _, test = folds.cut(index, Protocol(folds=3, fold=k))
        assert test.boxes_per_class().tolist() == [4, 1]


def test_folds_in_the_order_of_names_are_runs_of_numbers():
    """The numbers count, not the text: 9 comes before 10."""
    names = [f"IMG_{i}.jpg" for i in range(8, 20)]
    found = [cut(images(names), folds=3, fold=k, fold_by="order")[1] for k in (1, 2, 3)]
    assert [[int(n[4:-4]) for n in f] for f in found] == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]


def test_a_run_ends_where_a_group_ends():
    """Groups of 1, 4, 1, 4 images, cut in two: after five images, not inside a group."""
    names = ["a1", "b1", "b2", "b3", "b4", "c1", "d1", "d2", "d3", "d4"]
    assert cut(images(names), folds=2, fold=1, fold_by="order", group="^.")[1] == names[:5]
    assert cut(images(names), folds=4, fold=2, fold_by="order", group="^.")[1] == names[1:5], "every fold has a group"


def test_images_next_to_the_tested_ones_are_left_out_of_training():
    names = [f"{i:02d}" for i in range(12)]
    train, test = cut(images(names), folds=3, fold=2, fold_by="order", guard=1)
    assert test == names[4:8] and train == [*names[:3], *names[9:]]
    train, test = cut(images(names), folds=3, fold=1, fold_by="order", guard=3)
    assert test == names[:4] and train == names[7:]


def test_the_sizes_of_both_sides_are_in_the_protocol():
    index = images(FRAMES)
    protocol = Protocol(split="1+1", folds=3, fold=2, group="clip(.)", fold_by="order", guard=1)
    made = Scenario(protocol, *folds.cut(index, protocol))
    sentence = "Fold 2 of 3: training on 14 images of 4 groups, testing on 8 images of 2 groups; 1 image on each side"
    assert made.sentences()[-1].startswith(sentence) and made.sizes() == made.sentences()[-1:]
    assert any("into 3 folds (neighbours in the order of file names)" in s for s in made.sentences())
    assert any("images with equal 'clip(.)' in their names" in s for s in made.sentences())
    assert any("2 folds (each with its share of every class), of" in s for s in Protocol(folds=2, fold=1).sentences())
    assert not Scenario(Protocol(split="1+1"), index, index).sizes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fold": 2}, r"fold: the data is not cut into folds; also write folds=5 fold=1"),
        ({"group": "x"}, r"group: the data is not cut into folds"),
        ({"folds": 5}, r"fold: folds=5 needs the tested fold: fold=1 to fold=5 \(ciod compare .* blocks=5\)"),
        ({"folds": 5, "fold": 6}, r"fold: there is no fold 6; folds=5 has 1 to 5"),
        ({"folds": 1, "fold": 1}, r"folds: should be greater than or equal to 2"),
        ({"folds": 2, "fold": 1, "group": "("}, r"group: '\(' is not a regular expression \(missing \)"),
        ({"folds": 2, "fold": 1, "guard": 3}, r"guard: only folds of neighbouring images have edges; also write"),
        ({"folds": 2, "fold": 1, "fold_by": "ordr"}, r"fold_by: 'ordr' is not allowed; did you mean 'order'"),
    ],
)
def test_nonsense_is_refused_before_data_is_read(given, message):
    with pytest.raises(ConfigError, match=message):
        config.load(None, {"data": "shapes", "split": "6+4", **given})


def test_what_does_not_fit_the_files_is_refused():
    with pytest.raises(CiodError, match=r"group: 'clip\[ab\]' finds nothing in 16 of 24 file names \(clipc_00"):
        cut(images(FRAMES), folds=2, fold=1, group="clip[ab]")
    with pytest.raises(CiodError, match=r"group: 'clip.' makes 6 groups, but folds=7 needs at least as many"):
        cut(images(FRAMES), folds=7, fold=1, group="clip.")
    with pytest.raises(CiodError, match=r"group: the images make 2 groups, but folds=3"):
        cut(images(["a", "b"]), folds=3, fold=1)


def test_both_splits_are_pooled_and_an_image_in_both_counts_once():
    one, other = images(["a.jpg", "b.jpg"]), images(["b.jpg", "c.jpg", "d.jpg"])
    other = dataclasses.replace(other, class_names=("bee", "cat"))
    pooled = folds.pool(one, other)
    assert [f.name for f in pooled.files] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert pooled.class_names == ("ant", "bee", "cat") and pooled.labels.tolist() == [0, 1, 2, 1]
    assert len({*pooled.image_ids.tolist()}) == 4 and pooled.image.tolist() == [0, 1, 2, 3]
    assert [pooled.ids_of(i) for i in (0, 2)] == [one.ids_of(0), other.ids_of(1)]
    assert len(folds.pool(one, one)) == 2


def test_a_run_reads_its_fold(tmp_path):
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    settings = {"data": str(data), "split": "6+4", "folds": 4, "detector": "yolox-pico"}
    tested = []
    for k in (1, 2, 3, 4):
        train, test = open_data(config.load(None, {**settings, "fold": k}))
        assert len(train) + len(test) == 12 and not {*train.files} & {*test.files}
        tested += test.files
    assert len({*tested}) == 12
    train, test = open_data(config.load(None, {**settings, "fold": 1, "test_split": "train"}))
    assert len(train) + len(test) == 8, "the other split is kept back"
    tune, held = open_data(config.load(None, {**settings, "fold": 1, "holdout": 0.25}))
    first = open_data(config.load(None, {**settings, "fold": 1}))[1]
    assert not {*first.files} & {*tune.files, *held.files}, "tuning never sees the fold that is reported"
    assert np.isin(first.files, tested).all()
