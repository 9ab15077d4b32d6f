"""Augmented views that are used several times, so that a frozen network computes their maps once.

A view is one augmentation of one image. A file keeps what ``make`` returned for it, in half precision. Without this,
an epoch would run the frozen network again on every image.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ciod.core import main_guard
from ciod.core.errors import CiodError
from ciod.core.types import Batch
from ciod.data.loader import STALLED, Collate, Item, Order, Sample, TrainData, batches, short_temporary_folder

KEPT = 6  # views per image that a file has at a time
ROUNDS = 4  # times that a view is used before another replaces it
MOST = 8 << 30  # bytes of a file


@dataclass(frozen=True)
class Schedule:
    """Which view an image has in which epoch: ``kept`` views in turn, ``rounds`` times each, then the next ones. With
    ``kept`` 0 none is kept, and each epoch has new ones."""

    kept: int
    rounds: int = ROUNDS

    def view(self, epoch: int) -> int:
        if not self.kept:
            return epoch
        return self.kept * (epoch // self.kept // self.rounds) + epoch % self.kept

    def computed(self, epochs: int) -> int:
        """How many views of an image are computed in ``epochs`` epochs."""
        return len({self.view(e) for e in range(epochs)})


def room() -> int:
    """Maximum bytes of a file of views: at most half of the free space of the temporary folder. 0: no such files."""
    if not hasattr(os, "pread"):
        return 0
    try:
        return min(MOST, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    except OSError:
        return 0


class ViewOrder(Sampler):
    """Batches of an ``Order``, with views instead of epochs."""

    def __init__(self, order: Order, schedule: Schedule):
        self.order, self.schedule = order, schedule
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[Item]]:
        self.order.epoch, self.order.skip = self.epoch, self.skip
        view = self.schedule.view(self.epoch)
        for batch in self.order:
            yield [(view, *item[1:]) for item in batch]


class Store:
    """Rows of half precision in a file without a name in the temporary folder; it disappears with its process, even a
    killed one.

    Raises:
        CiodError: the temporary folder is too small for it.
    """

    def __init__(self, rows: int, width: int):
        self.bytes = 2 * width
        need = rows * self.bytes
        try:
            self.fd, name = tempfile.mkstemp(prefix="ciod-views-")
            weakref.finalize(self, os.close, self.fd)
            Path(name).unlink()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, need)  # now, since the disk may be full later
        except OSError as e:
            raise CiodError(
                f"The maps of the views need {need / 1e9:.1f} GB in the temporary folder ({e.strerror or e}); choose "
                "another with the variable TMPDIR, or set views=0, which computes them again in every epoch."
            ) from e

    def put(self, row: int, values: Tensor) -> bool:
        """Whether the values could be written."""
        content, done = memoryview(values.numpy().tobytes()), 0
        try:
            while done < len(content):
                done += os.pwrite(self.fd, content[done:], row * self.bytes + done)
        except OSError:  # the disk is full, where space could not be reserved: they are computed again
            return False
        return True

    def get(self, row: int) -> Tensor:
        content = bytearray(os.pread(self.fd, self.bytes, row * self.bytes))
        return torch.frombuffer(content, dtype=torch.float16)


class ViewLoader(DataLoader):
    """A training loader whose batches have, instead of images, what ``make`` returned for them.

    ``batch_sampler``, ``dataset`` and ``collate_fn`` give the images themselves.

    Args:
        loader: from ``loader.train_loader``.
        schedule: which views.
        make: images [B, 3, size, size] uint8 → [B, width] float16.
        width: see ``make``.

    Raises:
        CiodError: the temporary folder is too small.
    """

    def __init__(self, loader: DataLoader, schedule: Schedule, make: Callable[[Tensor], Tensor], width: int):
        order, data = loader.batch_sampler, loader.dataset
        assert isinstance(order, Order) and isinstance(data, TrainData)
        self.order = ViewOrder(order, schedule)
        super().__init__(data, batch_sampler=self.order, collate_fn=loader.collate_fn)
        self.schedule, self.make, self.images, self.processes = schedule, make, len(data), loader.num_workers
        self.store = Store(schedule.kept * self.images, width) if schedule.kept else None
        self.held: dict[int, tuple[Item, Sample]] = {}  # row of the store → its view, and the sample without its image

    def _row(self, item: Item) -> int:
        return item[0] % self.schedule.kept * self.images + item[1]

    def _has(self, item: Item) -> bool:
        held = self.held.get(self._row(item)) if self.store else None
        return held is not None and held[0] == item

    def __iter__(self) -> Iterator[Any]:
        plan = list(self.order)
        seen: set[Item] = set()
        missing = []
        for items in plan:
            missing.append([i for i in dict.fromkeys(items) if i not in seen and not self._has(i)])
            seen.update(items)
        fresh = self._fresh([m for m in missing if m])
        for items, lacking in zip(plan, missing, strict=True):
            made = dict(self._kept(lacking, *next(fresh))) if lacking else {}
            yield self._batch(items, made)

    def _fresh(self, missing: list[list[Item]]) -> Iterator[tuple[Tensor, list[Sample]]]:
        """Images and samples of views that are not in the file."""
        if self.processes:
            main_guard.check()
        loader: Any = DataLoader(
            self.dataset,
            batch_sampler=missing,  # type: ignore[arg-type]
            num_workers=self.processes if missing else 0,
            collate_fn=_parted,
            generator=torch.Generator().manual_seed(0),
            timeout=STALLED if self.processes and missing else 0,
            worker_init_fn=short_temporary_folder,
        )
        return batches(loader)  # type: ignore[return-value]

    def _kept(self, items: list[Item], images: Tensor, samples: list[Sample]) -> Iterator[tuple[Item, Sample]]:
        """The samples with what was made of their images, after it was written."""
        for item, sample, values in zip(items, samples, self.make(images), strict=True):
            if self.store and self.store.put(self._row(item), values):
                self.held[self._row(item)] = item, sample
            yield item, {**sample, "image": values}

    def _batch(self, items: list[Item], made: dict[Item, Sample]) -> Batch:
        samples = []
        for item in items:
            if item not in made:
                if not self._has(item):  # an earlier batch had it, but it was not kept, or the disk was too full
                    images, own = _parted([self.dataset[item]])  # type: ignore[index]
                    made |= dict(self._kept([item], images, own))
                elif self.store:
                    row = self._row(item)
                    made[item] = {**self.held[row][1], "image": self.store.get(row)}
            samples.append(made[item])
        collate = self.collate_fn
        assert isinstance(collate, Collate)
        return collate(samples)


def _parted(samples: list[Sample]) -> tuple[Tensor, list[Sample]]:
    """The images of samples, and the samples without them."""
    return torch.stack([s["image"] for s in samples]), [{k: v for k, v in s.items() if k != "image"} for s in samples]
