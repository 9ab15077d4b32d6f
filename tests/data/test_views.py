"""Views that are used again: the batches of a plain loader, with what was made once of each view instead of images."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
from typing import Any

import numpy as np
import pytest
import torch

from ciod.core.errors import CiodError
from ciod.core.types import POOL, TASK
from ciod.data import views
from ciod.data.augment import Augment, TrainTransform
from ciod.data.loader import train_loader
from ciod.data.mixture import Mixture
from ciod.data.views import Schedule, ViewLoader
from tests.data.writers import sample_index

SIZE, WIDTH = 32, 3 * 32 * 32
CHANGED = Augment(mosaic=0.5)


@pytest.fixture
def index(tmp_path):
    return sample_index(tmp_path, images=5)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary" / (60 * "x")  # longer than the path of a socket may be
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Made:
    """The pixels in half precision, which has all of 0..255; and how many images they were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.count += len(images)
        return images.flatten(1).half()


def plain(index, batch: int = 2, **given):
    transform = TrainTransform(CHANGED, SIZE, 114)
    return train_loader(index, transform, **{"batch": batch, "seed": 3, "task": 1, "workers": 0, "pin": False, **given})


def assert_same(kept, images) -> None:
    for a, b in zip(kept, images, strict=True):
        assert torch.equal(a.images, b.images.flatten(1).half())
        for field in ("boxes", "labels", "valid"):
            assert torch.equal(getattr(a.targets, field), getattr(b.targets, field))
        assert a.names == b.names and torch.equal(a.sizes, b.sizes) and torch.equal(a.index, b.index)


def assert_epoch(loader: ViewLoader, epoch: int, *, skip: int = 0) -> None:
    """An epoch is the plain loader's, with the order of the epoch and the augmentation of the view."""
    sampler: Any = loader.batch_sampler
    sampler.epoch, sampler.skip = epoch, skip
    collate, data = loader.collate_fn, loader.dataset
    expected = [collate([data[item] for item in items]) for items in sampler]
    assert_same(loader, expected)


def test_which_view_an_epoch_has():
    order = Schedule(3, 2)
    assert [order.view(e) for e in range(14)] == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    assert order.computed(14) == 8 and order.computed(2) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_each_view_is_made_once(index, workers):
    made = Made()
    loader = ViewLoader(plain(index, workers=workers), Schedule(2, 3), made, WIDTH)
    assert len(loader) == 3
    for epoch in range(7):
        assert_epoch(loader, epoch)
        assert made.count == 5 * Schedule(2, 3).computed(epoch + 1)


def test_without_kept_views_every_epoch_has_new_ones(index, temporary):
    assert [Schedule(0).view(e) for e in range(3)] == [0, 1, 2] and Schedule(0).computed(9) == 9
    made = Made()
    loader = ViewLoader(plain(index), Schedule(0), made, WIDTH)
    for epoch in range(3):
        assert_epoch(loader, epoch)
        assert made.count == 6 * (epoch + 1)  # one of five is in two batches
    assert_epoch(loader, 1, skip=1)
    assert loader.store is None and not loader.held


def test_views_differ(index):
    loader = ViewLoader(plain(index), Schedule(2, 2), Made(), WIDTH)
    seen = []
    for epoch in (0, 1, 4):
        loader.batch_sampler.epoch = epoch
        seen.append({n: x for b in loader for n, x in zip(b.names, b.images)})
    assert not any(torch.equal(seen[0][n], other[n]) for other in seen[1:] for n in other)


def test_a_resumed_epoch_is_the_same(index):
    loader = ViewLoader(plain(index), Schedule(2, 2), Made(), WIDTH)
    assert_epoch(loader, 3, skip=1)
    assert_epoch(loader, 3)


def test_a_mixture(index):
    """Rows of the second part come in an order of their own, so some views are made later than others."""
    mixture = Mixture(
        index,
        np.array([TASK, TASK, TASK, POOL, POOL]),
        np.ones((5, 3), bool),
        np.ones(5, bool),
        [np.arange(3), np.arange(3, 5)],
        [2, 1],
    )
    made = Made()
    loader = ViewLoader(plain(index, batch=3, mixture=mixture), Schedule(2, 4), made, WIDTH)
    for epoch in range(8):
        assert_epoch(loader, epoch)
    assert made.count <= 10
    assert next(iter(loader)).source.tolist().count(POOL) == 1


def test_nothing_remains_in_the_temporary_folder(index, temporary):
    loader = ViewLoader(plain(index), Schedule(2, 2), Made(), WIDTH)
    assert_epoch(loader, 0)
    fd = loader.store.fd
    assert list(temporary.iterdir()) == []
    del loader
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_full_disk_at_the_start(index, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = Made()
    loader = ViewLoader(plain(index), Schedule(2, 2), made, WIDTH)
    monkeypatch.setattr(os, "pwrite", full)
    for epoch in (0, 2):
        assert_epoch(loader, epoch)
    assert made.count >= 10, "what could not be written is made again"
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    match = r"maps of the views need 0\.0 GB in the temporary folder \(No space left on device\).*views=0"
    with pytest.raises(CiodError, match=match):
        ViewLoader(plain(index), Schedule(2, 2), Made(), WIDTH)


def test_half_of_the_free_space_may_be_used(monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(views.shutil, "disk_usage", lambda _: Usage)
    assert views.room() == 500
    monkeypatch.setattr(Usage, "free", 1 << 50)
    assert views.room() == views.MOST

    def gone(_):
        raise FileNotFoundError

    monkeypatch.setattr(views.shutil, "disk_usage", gone)
    assert views.room() == 0
    monkeypatch.delattr(os, "pread")
    assert views.room() == 0
