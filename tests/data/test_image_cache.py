"""Decoded pictures: kept in memory, in a file that processes share, or scaled down together with their boxes."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ciod.config.settings import Train
from ciod.core.errors import CiodError, DataError
from ciod.data import image_cache
from ciod.data.augment import Augment, TrainTransform
from ciod.data.image_cache import Disk, Pictures, presize_hint
from ciod.data.images import fit_within, read_image, read_within, save_image
from ciod.data.index import Index
from ciod.data.loader import train_loader
from tests.data.writers import sample_index


@pytest.fixture
def index(tmp_path) -> Index:
    return sample_index(tmp_path, images=4)


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files that are decoded."""
    read: list[Path] = []
    monkeypatch.setattr(image_cache, "read_within", lambda f, *a: read.append(f) or read_within(f, *a))
    return read


def test_they_are_kept_in_memory_when_asked(index, reads, monkeypatch):
    kept = Pictures(index, cache="auto")
    assert np.array_equal(kept[0], kept[0]) and len(reads) == 1
    for others in (Pictures(index), Pictures(index, cache="auto", alone=False)):
        assert others[0].shape == others[0].shape
    assert len(reads) == 5
    monkeypatch.setattr(image_cache, "CACHE_BYTES", 10)
    again = Pictures(index, cache="auto")  # they do not fit
    assert again[0].shape == again[0].shape
    assert len(reads) == 7


@pytest.mark.parametrize("longest", [None, 30])
def test_they_are_kept_in_a_file(index, reads, longest):
    kept, plain = Pictures(index, cache="disk", longest=longest), Pictures(index, longest=longest)
    for _ in range(2):
        for i in (2, 0, 3, 1):
            (a, b), (c, d) = kept.scaled(i), plain.scaled(i)
            assert np.array_equal(a, c) and np.array_equal(b, d)
    assert len(reads) == 4 + 8
    kept[0][:] = 0  # the caller gets a copy
    assert np.array_equal(kept[0], plain[0])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_the_file_is_shared_and_removed_with_its_process(index, tmp_path, monkeypatch, start):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: start)
    monkeypatch.setattr(image_cache.tempfile, "tempdir", str(tmp_path))
    store = Disk(index.sizes)
    picture = read_image(index.files[1])
    assert store.get(1) is None
    if start == "fork":
        assert not list(tmp_path.glob("ciod-*")), "its name is gone at once: nothing is left behind by kill -9"
        pid = os.fork()
        if not pid:
            store.put(1, picture)
            os._exit(0)
        os.waitpid(pid, 0)
    else:
        other = pickle.loads(pickle.dumps(store))
        other.opened = (-1, -1)  # as in a new process
        other.put(1, picture)
    assert np.array_equal(store.get(1), picture)
    assert store.get(0) is None
    fd = store.opened[1]
    del store
    gc.collect()
    assert not list(tmp_path.glob("ciod-*"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_full_disk_for_the_file(index, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    kept = Pictures(index, cache="disk")
    assert np.array_equal(kept[0], kept[0]), "without space in the file it is decoded again"
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    match = r"picture_cache=disk needs 0\.0 GB in the temporary folder \(No space left on device\); choose another"
    with pytest.raises(CiodError, match=match):
        Pictures(index, cache="disk")
    monkeypatch.delattr(os, "pread")
    with pytest.raises(CiodError, match="picture_cache=disk does not work on this system"):
        Pictures(index, cache="disk")


def test_a_file_of_another_size_than_annotated_is_not_kept(index, reads):
    """Annotations that were not checked against the files: boxes count in the pixels of the file."""
    index.sizes[0] = 100, 100
    for cache in ("disk", "auto"):
        kept = Pictures(index, cache=cache, longest=30)
        for _ in range(2):
            picture, scale = kept.scaled(0)
            assert picture.shape[:2] == (20, 30) and scale.tolist() == [0.5, 0.5]
    assert len(reads) == 4
    index.files[0].unlink()
    with pytest.raises(DataError, match="does not exist"):
        kept[0]


# Made smaller ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [((40, 60), 30, (20, 30)), ((60, 40), 30, (30, 20)), ((40, 60), 60, (40, 60)), ((40, 60), 99, (40, 60)),
     ((1, 500), 100, (1, 100)), ((301, 400), 100, (75, 100))],
)  # fmt: skip
def test_the_longest_side_counts(size, longest, expected):
    assert fit_within(*size, longest) == expected


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_smaller_picture_shows_the_same(tmp_path, suffix, turn):
    """JPEG's decoder scales by itself; pictures that EXIF rotates are rotated."""
    across = np.linspace(0, 255, 640)[None, :, None] * np.ones((480, 1, 1))
    down = np.linspace(0, 255, 480)[:, None, None] * np.ones((1, 640, 1))
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(np.concatenate([across, down, 255 - across], 2).astype(np.uint8)).save(path, exif=exif, quality=95)
    whole = read_image(path)
    small, full = read_within(path, None, 100)
    assert full == whole.shape[:2] == ((480, 640) if turn == 1 else (640, 480))
    assert small.shape[:2] == ((75, 100) if turn == 1 else (100, 75))
    plain = np.array(Image.fromarray(whole).resize(small.shape[1::-1], Image.Resampling.BILINEAR))
    assert np.abs(small.astype(int) - plain).mean() < 1.5
    untouched, _ = read_within(path, None, 640)
    assert np.array_equal(untouched, whole)
    as_stored, full = read_within(path, (480, 640), 100)
    assert full == (480, 640) and as_stored.shape[:2] == (75, 100), "annotations that count before the turn"


def big(index: Index, times: int) -> Index:
    """The same pictures and boxes, ``times`` as large."""
    for f in index.files:
        save_image(f, read_image(f).repeat(times, 0).repeat(times, 1))
    return replace(index, sizes=index.sizes * times, boxes=index.boxes * times, area=index.area * times**2)


def test_boxes_shrink_with_their_picture(index):
    """A batch of large pictures has the same boxes with and without ``presize``."""
    large = big(index, 8)
    transform = TrainTransform(Augment(photometric=0, mosaic=0.5), 64, 114)

    def batch(presize: bool):
        made = train_loader(
            large, transform, batch=4, seed=0, task=0, workers=0, pin=False, cache="off", presize=presize
        )
        return next(iter(made))

    plain, small = batch(False), batch(True)
    assert torch.equal(plain.targets.valid, small.targets.valid) and plain.targets.valid.any()
    torch.testing.assert_close(plain.targets.boxes, small.targets.boxes, atol=0.7, rtol=0)  # rounded to other pixels
    assert torch.equal(plain.targets.labels, small.targets.labels)
    assert plain.sizes.tolist() == small.sizes.tolist() == large.sizes[plain.index.numpy()].tolist()
    assert (plain.images.float() - small.images.float()).abs().mean() < 12
    assert not torch.equal(plain.images, small.images)


def test_only_pixels_beyond_the_largest_zoom_are_removed():
    """Twice the largest zoom, of the largest batch."""
    assert TrainTransform(Augment(), 320, 114).longest_side() == 2 * 416
    assert TrainTransform(Augment(scale=(0.5, 0.9)), 320, 114).longest_side() == 2 * 320
    assert TrainTransform(Augment(scale=(1, 1), multiscale=(0.5, 1.5)), 320, 114).longest_side() == 2 * 480


def test_users_who_would_benefit_get_a_hint(index, monkeypatch):
    large = big(index, 8)  # the longer sides are 480, 464, 448 and 432 pixels

    def hint(size: int = 32, pictures_of: Index = large, **settings) -> str | None:
        given = Train(**settings)
        transform = TrainTransform(Augment(scale=(1, 1)), size, 114)
        return presize_hint(pictures_of, transform, presize=given.presize, cache=given.picture_cache)

    assert hint() is None, "they are kept in memory"
    monkeypatch.setattr(image_cache, "CACHE_BYTES", 1000)
    message = hint()
    assert message is not None and message.startswith("hint: pictures have 456 pixels along their longer side")
    assert "train.presize=true" in message and "(to 64)" in message
    assert hint(128) is None, "hardly larger than the input of the network"
    assert hint(presize=True) is None and hint(picture_cache="disk") is None, "decoded once, or made smaller"
    assert hint(pictures_of=large.select(np.array([], int))) is None


@pytest.mark.parametrize("cache", ["auto", "disk"])
@pytest.mark.parametrize("presize", [False, True])
def test_keeping_and_workers_change_no_pixel(index, cache, presize):
    large = big(index, 4)

    def epochs(workers: int, keep):
        loader = train_loader(
            large, TrainTransform(Augment(mosaic=0.5), 64, 114), batch=2, seed=0, task=0, workers=workers, pin=False,
            cache=keep, presize=presize,
        )  # fmt: skip
        found = []
        for epoch in range(2):
            loader.batch_sampler.epoch = epoch
            found += list(loader)
        return found

    for a, b, c in zip(epochs(0, "off"), epochs(0, cache), epochs(2, cache), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.images, c.images)
        assert torch.equal(a.targets.boxes, b.targets.boxes) and torch.equal(a.targets.boxes, c.targets.boxes)
