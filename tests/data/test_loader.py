"""Batches: order, augmentation and reading are functions of (seed, task, epoch, row) and of nothing else."""

from __future__ import annotations

import random
import tempfile

import numpy as np
import pytest
import torch

from ciod.core.errors import CiodError
from ciod.data.augment import Augment, TrainTransform, letterbox, put
from ciod.data.image_cache import Pictures
from ciod.data.index import Index
from ciod.data.loader import Collate, EvalData, Item, Order, TrainData, eval_loader, train_loader
from tests.data.writers import sample_index

SIZE = 64
PLAIN = Augment(flip=0, photometric=0, scale=(1, 1), mosaic=0)
EVERYTHING = Augment(flip=0.5, photometric=0.5, scale=(0.7, 1.3), mosaic=0.5)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return sample_index(tmp_path_factory.mktemp("pictures"), images=6)


def data_of(index: Index, settings: Augment = EVERYTHING, *, seed=0, task=0, cache="auto") -> TrainData:
    pictures = Pictures(index, cache=cache)
    return TrainData(index, TrainTransform(settings, SIZE, 114), seed=seed, task=task, pictures=pictures)


def same(a, b) -> bool:
    return all(torch.equal(a[k], b[k]) for k in ("image", "boxes", "labels"))


# Order ----------------------------------------------------------------------------------------------------------------


def batches(length: int, batch: int, *, epoch=0, seed=0, task=0, **world) -> list[list[Item]]:
    order = Order(length, batch, seed=seed, task=task, **world)
    order.epoch = epoch
    out = list(order)
    assert len(out) == len(order)
    return out


@pytest.mark.parametrize("length", [1, 3, 4, 7, 8, 13])
def test_one_process_of_four_equals_two_of_two(length):
    for epoch in (0, 1):
        whole = batches(length, 4, epoch=epoch)
        parts = [batches(length, 4, epoch=epoch, rank=r, world=2) for r in (0, 1)]
        assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_every_image_is_used_once_per_epoch_and_the_last_batch_is_full():
    found = batches(10, 4)
    rows = [i for b in found for _, i in b]
    assert [len(b) for b in found] == [4, 4, 4]
    assert sorted(rows[:10]) == list(range(10))
    assert rows[10:] == rows[:2]  # filled from the beginning
    assert {e for b in batches(10, 4, epoch=3) for e, _ in b} == {3}


def test_a_batch_larger_than_the_data_repeats_it():
    (only,) = batches(3, 8)
    assert len(only) == 8 and {i for _, i in only} == {0, 1, 2}


def test_orders_differ_by_epoch_seed_and_task_and_by_nothing_else():
    def rows(**k):
        return [i for b in batches(20, 4, **k) for _, i in b]

    assert rows() == rows()
    assert len({tuple(rows(epoch=e, seed=s, task=t)) for e in (0, 1) for s in (0, 1) for t in (0, 1)}) == 8


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(CiodError, match=r"train\.batch=3 cannot be shared equally by 2 processes"):
        Order(10, 3, seed=0, task=0, world=2)


# Training images ------------------------------------------------------------------------------------------------------


def test_an_item_is_a_function_of_seed_task_epoch_and_row(index):
    first = data_of(index)
    items = {(e, i): first[e, i] for e in (0, 1) for i in range(3)}
    torch.manual_seed(99)
    other = data_of(index, cache="off")
    for key in reversed(items):  # in another order, with another global state, without the cache
        torch.rand(7)
        assert same(other[key], items[key])
    assert not same(items[0, 0], items[1, 0])
    assert not same(items[0, 0], data_of(index, seed=1)[0, 0])
    assert not same(items[0, 0], data_of(index, task=1)[0, 0])


def test_an_item_leaves_the_global_generators_alone(index, monkeypatch):
    torch.manual_seed(3)
    gpus: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", gpus.append)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    data = data_of(index)
    for i in range(4):
        data[0, i]
    assert torch.equal(torch.get_rng_state(), before[0]) and not gpus
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]  # noqa: NPY002


def test_workers_change_nothing(index):
    def epoch(workers: int):
        loader = train_loader(
            index, TrainTransform(EVERYTHING, SIZE, 114), batch=4, seed=0, task=0, workers=workers, pin=False
        )
        loader.batch_sampler.epoch = 1
        return list(loader)

    for a, b in zip(epoch(0), epoch(1), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.targets.boxes, b.targets.boxes)
        assert torch.equal(a.index, b.index) and a.names == b.names


def test_a_batch_has_what_it_promises(index):
    loader = train_loader(index, TrainTransform(PLAIN, SIZE, 114), batch=4, seed=0, task=0, workers=0, pin=False)
    batch = next(iter(loader))
    assert batch.images.shape == (4, 3, SIZE, SIZE) and batch.images.dtype == torch.uint8
    assert batch.names == [str(index.files[i]) for i in batch.index]
    assert batch.sizes.tolist() == index.sizes[batch.index.numpy()].tolist()
    assert batch.broken == []
    for b in range(4):
        n = int(batch.targets.valid[b].sum())
        assert n == index.of_image(int(batch.index[b])).stop - index.of_image(int(batch.index[b])).start
        assert not batch.targets.valid[b, n:].any()


# Augmentation ---------------------------------------------------------------------------------------------------------


def rectangle(height: int, width: int, box) -> np.ndarray:
    """A white rectangle on black."""
    picture = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    picture[y0:y1, x0:x1] = 255
    return picture


def white(image: torch.Tensor) -> list[float]:
    """Where the white is: x0, y0, x1, y1."""
    mask = image.float().mean(0) > 190  # black 0, filling 114
    rows, columns = torch.nonzero(mask.any(1)), torch.nonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1]


def transform(settings: Augment, picture, box, seed: int, label: int = 5):
    torch.manual_seed(seed)
    one = picture, np.array([box], np.float32), np.array([label])
    nothing = np.zeros((50, 50, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return TrainTransform(settings, 96, 114)(*one, lambda: nothing)


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        Augment(flip=1, photometric=0, scale=(1, 1)),
        Augment(flip=0, photometric=0, scale=(0.5, 0.9)),
        Augment(flip=0.5, photometric=0, scale=(0.6, 1.6)),
        Augment(flip=0.5, photometric=0, scale=(0.7, 1.3), mosaic=1),
    ],
    ids=["plain", "flip", "smaller", "zoom", "mosaic"],
)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)], ids=["wide", "high"])
def test_boxes_follow_their_pixels(settings, shape):
    box = (20, 15, 50, 40)
    picture = rectangle(*shape, box)
    seen = 0
    for seed in range(12):
        image, boxes, labels = transform(settings, picture, box, seed)
        assert image.shape == (3, 96, 96) and image.dtype == torch.uint8
        assert len(boxes) == len(labels) <= 1
        if len(boxes):
            seen += 1
            assert labels.tolist() == [5] and labels.dtype == torch.long and boxes.dtype == torch.float32
            assert boxes[0].tolist() == pytest.approx(white(image), abs=1.6)
            assert boxes.min() >= 0 and boxes.max() <= 96
    assert seen >= 6


def test_a_flip_mirrors():
    picture = rectangle(96, 96, (10, 20, 30, 60))
    torch.manual_seed(0)
    image, boxes, _ = transform(Augment(flip=1, photometric=0, scale=(1, 1)), picture, (10, 20, 30, 60), 0)
    assert boxes.tolist() == [[66, 20, 86, 60]] and white(image) == [66, 20, 86, 60]


def test_stretched_training_pictures_are_those_of_the_evaluation(index):
    picture, boxes = Pictures(index)[0], index.boxes[index.of_image(0)]
    given = (picture, boxes, index.labels[index.of_image(0)], lambda: None)
    image, xyxy, _ = TrainTransform(PLAIN, SIZE, 0, "stretch")(*given)
    wanted, frame = put(picture, SIZE, 0, "stretch")
    assert torch.equal(image, wanted) and frame.across != frame.down
    np.testing.assert_allclose(xyxy, boxes * np.array([frame.across, frame.down] * 2), rtol=1e-5)
    torch.manual_seed(1)
    _, xyxy, _ = TrainTransform(PLAIN.model_copy(update={"scale": (0.5, 0.5)}), SIZE, 0, "stretch")(*given)
    sides = (xyxy[:, 2:] - xyxy[:, :2]).numpy()
    np.testing.assert_allclose(sides, (boxes[:, 2:] - boxes[:, :2]) * np.array(frame[:2]) / 2, rtol=1e-5)


def test_without_augmentation_images_are_only_resized():
    box = (20, 15, 50, 40)
    image, boxes, _ = transform(PLAIN, rectangle(60, 90, box), box, 0)
    scale = 96 / 90
    width, height = [boxes[0, 2] - boxes[0, 0], boxes[0, 3] - boxes[0, 1]]
    assert [width.item(), height.item()] == pytest.approx([30 * scale, 25 * scale], abs=0.5)
    assert (image[:, 0, 0] == 114).all() or (image[:, -1, 0] == 114).all()  # filled above or below


def test_photometric_changes_colours_and_not_boxes():
    grey = np.full((60, 90, 3), (90, 120, 60), np.uint8)
    plain = transform(PLAIN, grey, (20, 15, 50, 40), 1)
    found = [transform(Augment(flip=0, photometric=1, scale=(1, 1)), grey, (20, 15, 50, 40), s) for s in range(1, 8)]
    assert any(not torch.equal(f[0], plain[0]) for f in found)
    torch.manual_seed(1)
    assert all(f[1].shape == plain[1].shape for f in found)


def test_slivers_of_cut_boxes_are_dropped():
    """What a zoom cuts off is clipped; what is left of a box must be worth learning."""
    settings = Augment(flip=0, photometric=0, scale=(2, 2))
    for seed in range(30):
        _, boxes, _ = transform(settings, rectangle(60, 60, (0, 0, 20, 20)), (0, 0, 20, 20), seed)
        side = boxes[:, 2:] - boxes[:, :2]
        assert (side >= TrainTransform.MIN_SIDE).all()
        assert (side.prod(1) >= TrainTransform.MIN_VISIBLE * 64 * 64 * 0.9).all()


def test_images_without_boxes_pass():
    picture = rectangle(40, 60, (1, 1, 5, 5))
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    for mosaic in (0, 1):
        torch.manual_seed(0)
        t = TrainTransform(Augment(mosaic=mosaic), SIZE, 114)
        image, boxes, labels = t(picture, *none, lambda: (picture, *none))
        assert image.shape == (3, SIZE, SIZE) and boxes.shape == (0, 4) and labels.shape == (0,)


def test_mosaic_shows_four_pictures():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    pictures = [np.full((60, 60, 3), c, np.uint8) for c in colours]
    rest = iter(pictures[1:])
    box = np.array([[10, 10, 50, 50]], np.float32)
    torch.manual_seed(2)
    t = TrainTransform(Augment(flip=0, photometric=0, scale=(1, 1), mosaic=1), 96, 114)
    i = iter((1, 2, 3))
    image, boxes, labels = t(pictures[0], box, np.array([0]), lambda: (next(rest), box, np.array([next(i)])))
    for y, b in zip(labels.tolist(), boxes):
        x, row = (int(v) for v in (b[:2] + b[2:]) / 2)
        assert image[:, row, x].tolist() == list(colours[y])
    assert sorted(labels.tolist()) == [0, 1, 2, 3]


# Broken pictures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path) -> Index:
    index = sample_index(tmp_path, images=4)
    index.files[1].write_bytes(b"damaged")
    return index


def test_a_broken_picture_is_replaced_and_reported(broken):
    data = data_of(broken, PLAIN)
    item = data[0, 1]
    assert item["row"] == 2 and item["broken"] == [str(broken.files[1])]
    assert len(item["boxes"]) == 3
    batch = Collate(broken)([data[0, 0], item])
    assert batch.broken == [str(broken.files[1])] and batch.names[1] == str(broken.files[2])
    assert data[0, 0]["broken"] == []


def test_nothing_but_broken_pictures(broken):
    for f in broken.files:
        f.write_bytes(b"damaged")
    with pytest.raises(CiodError, match=r"None of the 4 images of .* can be read"):
        Pictures(broken).or_next(0)


def test_a_broken_test_picture_is_scored_as_empty(broken):
    item = EvalData(broken, SIZE, 114)[1]
    assert item["broken"] == [str(broken.files[1])] and (item["image"] == 114).all()


# Test images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(32, 64, 1.0), (128, 64, 0.5), (16, 16, 4.0), (1, 300, 64 / 300)]
)
def test_letterbox(height, width, scale):
    picture = np.random.default_rng(0).integers(0, 100, (height, width, 3), dtype=np.uint8)
    image, found = letterbox(picture, 64, 114)
    assert found == pytest.approx(scale)
    assert image.shape == (3, 64, 64) and image.dtype == torch.uint8
    h, w = max(1, int(height * scale)), max(1, int(width * scale))
    assert (image[:, h:] == 114).all() and (image[:, :, w:] == 114).all()
    assert (image[:, :h, :w] < 114).all()
    if scale == 1:
        assert torch.equal(image[:, :h, :w], torch.from_numpy(picture).permute(2, 0, 1))


def test_evaluation_reads_images_in_order_with_boxes_in_scale(index):
    loader = eval_loader(index, SIZE, 114, batch=4, workers=0, pin=False)
    found = list(loader)
    assert torch.cat([b.index for b in found]).tolist() == list(range(6))
    for batch in found:
        for b, i in enumerate(batch.index.tolist()):
            own = index.of_image(i)
            scale = float(batch.scales[b])
            assert scale == pytest.approx(SIZE / max(index.sizes[i]))
            n = own.stop - own.start
            np.testing.assert_allclose(batch.targets.boxes[b, :n], index.boxes[own] * scale, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_long_path_of_the_temporary_folder(index, tmp_path, monkeypatch, training):
    """Batches come from the loader processes through a socket there, whose path may have about 100 bytes."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    if training:
        transform = TrainTransform(Augment(), 64, 114)
        loader = train_loader(index, transform, batch=2, seed=0, task=1, workers=1, pin=False)
    else:
        loader = eval_loader(index, 64, 114, batch=2, workers=1, pin=False)
    loader.timeout = 30  # seconds, instead of ten minutes
    assert sum(len(b.names) for b in loader) >= len(index) - 1
    assert tempfile.gettempdir() == str(folder)  # of this process: left alone


def test_rows_of_a_rank(index):
    loader = eval_loader(index, SIZE, 114, batch=2, workers=0, pin=False, rows=range(2, 5))
    assert torch.cat([b.index for b in loader]).tolist() == [2, 3, 4]


def test_detections_are_mapped_back_to_the_original_image():
    from ciod.core.types import Detections, in_original

    box = (30, 10, 60, 25)
    picture = rectangle(50, 120, box)
    image, scale = letterbox(picture, 64, 114)
    found = Detections(np.array([white(image), [0, 0, 999, 999]]), np.ones(2), np.zeros(2))
    back = in_original(found, scale, 50, 120)
    assert back.boxes[0] == pytest.approx(np.array(box), abs=1.6 / scale)
    assert back.boxes[1].tolist() == [0, 0, 120, 50]


@pytest.mark.parametrize("place", ["corner", "letterbox", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(50, 120), (120, 50)])
def test_a_box_is_where_the_object_is_wherever_the_picture_is_put(place, height, width):
    from ciod.core.types import Detections, in_original

    box = (20, 10, 40, 30)
    image, frame = put(rectangle(height, width, box), 64, 114, place)
    assert image.shape == (3, 64, 64)
    back = in_original(Detections(np.array([white(image)]), np.ones(1), np.zeros(1)), frame, height, width)
    assert back.boxes[0] == pytest.approx(np.array(box), abs=1.6 * max(height, width) / 64)


def test_borders_of_a_letterbox_are_as_wide_on_both_sides():
    image, frame = put(np.zeros((16, 64, 3), np.uint8), 64, 114, "letterbox")
    assert frame.top == 24 and (image[:, :24] == 114).all() and (image[:, 40:] == 114).all()
    assert (put(np.zeros((16, 64, 3), np.uint8), 64, 114, "stretch")[0] == 0).all()


# Sizes that change ----------------------------------------------------------------------------------------------------


def test_sizes_are_multiples_of_32_in_the_range():
    def sizes(size: int, *given: float) -> list[int]:
        return Augment(multiscale=given or None).sizes(size)

    assert sizes(416) == [416]
    assert sizes(416, 0.75, 1.25) == [320, 352, 384, 416, 448, 480, 512]
    assert sizes(64, 0.5, 1) == [32, 64]
    assert sizes(640, 0.1, 0.12) == [64, 640], "the detector's own is always among them"
    assert sizes(96, 2 / 3, 2 / 3) == [64, 96], "rounding loses none"
    with pytest.raises(ValueError, match="smaller factor comes first"):
        Augment(multiscale=(1.2, 0.8))


def test_a_size_lasts_some_steps_and_is_the_same_after_a_resumption():
    def order(**more) -> Order:
        made = Order(160, 4, seed=3, task=1, sizes=[32, 64, 96], every=2, **more)
        made.epoch = 5
        return made

    batches = list(order())
    sizes = [{item[2] for item in batch} for batch in batches]
    assert all(len(s) == 1 for s in sizes) and all(a == b for a, b in zip(sizes[::2], sizes[1::2], strict=True))
    assert set.union(*sizes) == {32, 64, 96}
    cut = order()
    cut.skip = 7
    assert list(cut) == batches[7:]
    halves = [list(order(rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == batches


def test_batches_of_another_size_hold_their_boxes(index):
    transform = TrainTransform(Augment(multiscale=(0.5, 1.5), multiscale_every=1), 64, 114)
    loader = train_loader(index, transform, batch=2, seed=0, task=0, workers=0, pin=False)
    seen = set()
    for epoch in range(4):
        loader.batch_sampler.epoch = epoch
        for batch in loader:
            side = batch.images.shape[-1]
            seen.add(side)
            assert batch.images.shape[2:] == (side, side)
            assert batch.targets.boxes.min() >= 0 and batch.targets.boxes.max() <= side
    assert len(seen) > 1 and seen <= {32, 64, 96}
