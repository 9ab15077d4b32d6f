"""A Task as batches: decoding, augmentation, order. Every random choice is a function of (seed, task, epoch, image).

So workers, processes and resuming cannot change what a run sees.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

from ciod.core import main_guard
from ciod.core.errors import CiodError, DataError
from ciod.core.types import Batch, Targets
from ciod.data.augment import Placement, TrainTransform, frame_of, put
from ciod.data.image_cache import Cache, Pictures
from ciod.data.index import Index
from ciod.data.mixture import Mixture

HANDLES, HANDLES_OF_A_WORKER = 48, 16  # open files: of the command, and of a process with its waiting batches
STALLED = 600  # seconds without a batch after which a loader worker counts as stalled
SOCKET_PATH, SHORT_FOLDERS = 100, ("/tmp", "/var/tmp", "/dev/shm")  # bytes; macOS allows 103, Linux 107

Sample = dict[str, Any]
Item = tuple[int, ...]  # epoch and row of a training image, and its size where sizes change


class TrainData(Dataset):
    """Training images of a task; an item is requested as (epoch, row), or (epoch, row, size)."""

    def __init__(
        self,
        index: Index,
        transform: TrainTransform,
        *,
        seed: int,
        task: int,
        pictures: Pictures,
        alike: np.ndarray | None = None,
    ):
        self.index, self.transform, self.seed, self.task = index, transform, seed, task
        self.pictures = pictures
        self.alike = alike  # [I] images with equal numbers may be put into one mosaic; None: all

    def __len__(self) -> int:
        return len(self.index)

    def _sample(self, i: int) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray], list[str]]:
        j, picture, scale, broken = self.pictures.or_next(i)
        own = self.index.of_image(j)
        boxes = self.index.boxes[own] * np.tile(scale, 2)
        return j, (picture, boxes, self.index.labels[own]), broken

    def __getitem__(self, item: Item) -> Sample:
        epoch, i, *size = item
        transform = self.transform.at(size[0]) if size else self.transform
        # A separate generator: the global one belongs to the model and must not depend on the data.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also set the GPU's generators, which are the model's, and takes 1 ms per image.
            torch.default_generator.manual_seed(_mix(self.seed, self.task, epoch, i))
            j, own, broken = self._sample(i)

            def another() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                if self.alike is None:
                    return self._sample(int(torch.randint(len(self.index), ())))[1]
                partners = np.flatnonzero(self.alike == self.alike[j])
                return self._sample(int(partners[int(torch.randint(len(partners), ()))]))[1]

            image, boxes, labels = transform(*own, another)
        return {"image": image, "boxes": boxes, "labels": labels, "row": j, "scale": 1.0, "broken": broken}


class EvalData(Dataset):
    """Test images, letterboxed. An unreadable one becomes an empty image and is reported."""

    def __init__(self, index: Index, size: int, fill: float, place: Placement = "corner"):
        self.index, self.size, self.fill = index, size, fill
        self.place: Placement = place
        self.pictures = Pictures(index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        broken = []
        try:
            image, frame = put(self.pictures[i], self.size, self.fill, self.place)
        except DataError:
            broken.append(str(self.index.files[i]))
            # created at its final size, because the size in the annotations is not verified
            image = torch.full((3, self.size, self.size), int(self.fill), dtype=torch.uint8)
            height, width = self.index.sizes[i].tolist()
            frame = frame_of(height, width, self.size, self.place)
        own = self.index.of_image(i)
        zoom, shift = (np.tile(np.array(pair, np.float32), 2) for pair in (frame[:2], frame[2:]))
        boxes = torch.from_numpy(self.index.boxes[own] * zoom + shift)
        labels = torch.from_numpy(self.index.labels[own])
        return {
            "image": image,
            "boxes": boxes,
            "labels": labels,
            "row": i,
            "scale": frame.across,
            "frame": frame,
            "broken": broken,
        }


class Collate:
    """Samples → Batch; holds the index for names and sizes, and the mixture for sources and known classes."""

    def __init__(self, index: Index, mixture: Mixture | None = None):
        self.index, self.mixture = index, mixture

    def __call__(self, samples: list[Sample]) -> Batch:
        rows = [s["row"] for s in samples]
        targets = Targets.pad([s["boxes"] for s in samples], [s["labels"] for s in samples])
        source = None
        if self.mixture is not None:
            targets.known = torch.from_numpy(self.mixture.known[rows])
            targets.background = torch.from_numpy(self.mixture.background[rows])
            source = torch.from_numpy(self.mixture.source[rows])
        images = torch.stack([s["image"] for s in samples])
        if get_worker_info() is not None:
            images.share_memory_()  # here, where a lack of memory raises an error; later the batch would never arrive
        return Batch(
            source=source,
            images=images,
            targets=targets,
            names=[str(self.index.files[r]) for r in rows],
            sizes=torch.from_numpy(self.index.sizes[rows].astype(np.int64)),
            scales=torch.tensor([s["scale"] for s in samples]),
            index=torch.tensor(rows),
            frames=torch.tensor([s["frame"] for s in samples]) if "frame" in samples[0] else None,
            broken=[b for s in samples for b in s["broken"]],
        )


class Order(Sampler):
    """Batches of ``Item`` for one rank. The full batch of a step is the same for any number of processes.

    The last batch of an epoch is filled up from the epoch's beginning, so every batch has the same shape.

    Args:
        length: number of images; with ``parts``, the rows come from the parts.
        parts, counts: groups of rows, and how many rows of each group a batch has. An epoch is one pass over the first
            group; the others are repeated, in a new order each time.
        sizes, every: possible sizes of batches; a new one is drawn every ``every`` steps of an epoch.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        *,
        seed: int,
        task: int,
        rank: int = 0,
        world: int = 1,
        parts: Sequence[np.ndarray] | None = None,
        counts: Sequence[int] | None = None,
        sizes: Sequence[int] = (),
        every: int = 1,
    ):
        self.sizes, self.every = list(sizes), every
        self.parts, self.counts = parts or [np.arange(length)], counts or [batch]
        if batch % world:
            raise CiodError(
                f"train.batch={batch} cannot be shared equally by {world} processes; choose a multiple of {world}."
            )
        self.length, self.batch, self.rank, self.world = length, batch, rank, world
        self.seed, self.task, self.epoch = seed, task, 0
        self.skip = 0  # batches of the epoch that were done before resuming

    def __len__(self) -> int:
        return -(-len(self.parts[0]) // self.counts[0])

    def __iter__(self) -> Iterator[list[Item]]:
        order = np.concatenate([self._drawn(p).reshape(len(self), -1) for p in range(len(self.parts))], 1)
        if len(self.parts) > 1:  # interleaved, so that every process gets its share of each part
            place = np.concatenate([(np.arange(n) + 0.5) / n for n in self.counts])
            order = order[:, np.argsort(place, kind="stable")]
        share = self.batch // self.world
        for step, batch in enumerate(order[self.skip :], self.skip):
            size = self._size(step)
            yield [(self.epoch, int(i), *size) for i in batch[self.rank * share : (self.rank + 1) * share]]

    def _size(self, step: int) -> tuple[int, ...]:
        """The size of a batch: a function of seed, task, epoch and step, the same for every process."""
        if len(self.sizes) < 2:
            return ()
        rng = np.random.default_rng([self.seed, self.task, self.epoch, step // self.every, 32])
        return (int(rng.choice(self.sizes)),)

    def _drawn(self, part: int) -> np.ndarray:
        """The rows of one part for an epoch."""
        rows, wanted = self.parts[part], len(self) * self.counts[part]
        if part == 0:
            order = np.random.default_rng([self.seed, self.task, self.epoch]).permutation(len(rows))
            return rows[np.resize(order, wanted)]
        rng = np.random.default_rng([self.seed, self.task, self.epoch, part])
        passes = -(-wanted // len(rows))
        return rows[np.concatenate([rng.permutation(len(rows)) for _ in range(passes)])[:wanted]]


def train_loader(
    index: Index,
    transform: TrainTransform,
    *,
    batch: int,
    seed: int,
    task: int,
    workers: int,
    pin: bool,
    rank: int = 0,
    world: int = 1,
    mixture: Mixture | None = None,
    cache: Cache = "auto",
    presize: bool = False,
) -> DataLoader:
    """Batches of a task; set ``epoch`` and ``skip`` of ``loader.batch_sampler`` before each epoch.

    Args:
        mixture: the task's images with exemplars and pool; it replaces ``index``.
        cache, presize: see the settings of ``train``.

    Raises:
        CiodError: ``cache`` is ``disk``, and no space is left for it.
    """
    if workers:
        main_guard.check()
    alike = parts = counts = None
    if mixture is not None:
        index, alike, parts, counts = mixture.index, mixture.alike(), mixture.parts, mixture.counts
    longest = transform.longest_side() if presize else None
    pictures = Pictures(index, cache=cache, alone=workers == 0, longest=longest)
    _check_handles(workers)
    data = TrainData(index, transform, seed=seed, task=task, pictures=pictures, alike=alike)
    order = Order(
        len(index),
        batch,
        seed=seed,
        task=task,
        rank=rank,
        world=world,
        parts=parts,
        counts=counts,
        sizes=transform.settings.sizes(transform.size),
        every=transform.settings.multiscale_every,
    )
    return DataLoader(
        data,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=Collate(index, mixture),
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=_own_generator(),
        timeout=STALLED if workers else 0,
        worker_init_fn=short_temporary_folder,
    )


def eval_loader(
    index: Index,
    size: int,
    fill: float,
    *,
    batch: int,
    workers: int,
    pin: bool,
    rows: range | None = None,
    place: Placement = "corner",
) -> DataLoader:
    """Test images in order; ``rows``: only those (one rank's share)."""
    if workers:
        main_guard.check()
    _check_handles(workers)
    data: Dataset = EvalData(index, size, fill, place)
    if rows is not None:
        data = torch.utils.data.Subset(data, rows)
    return DataLoader(
        data,
        batch_size=batch,
        num_workers=workers,
        collate_fn=Collate(index),
        pin_memory=pin,
        generator=_own_generator(),
        timeout=STALLED if workers else 0,
        worker_init_fn=short_temporary_folder,
    )


def batches(loader: DataLoader) -> Iterator[Batch]:
    """Batches of the loader; failures of its processes become error messages.

    Raises:
        CiodError: a process ended, returned nothing for ``STALLED`` seconds, or ran out of shared memory; or the error
            of a sample.
    """
    try:
        yield from loader
    except CiodError as e:  # torch puts the traceback of a worker before its message
        raise CiodError(str(e).rstrip().splitlines()[-1].partition("CiodError: ")[2] or str(e)) from e
    except (RuntimeError, OSError) as e:
        message = str(e)
        if "Too many open files" in message or "ancdata" in message:  # torch's message about a handle that was not sent
            why = "ran out of file handles: raise their number with ulimit -n, or lower train.workers"
        elif "shared memory" in message or "Bus error" in message:
            why = (
                "found no space in shared memory (/dev/shm), which passes batches on: make it larger (containers: "
                "--shm-size=8g), or lower train.workers or train.batch"
            )
        elif "timed out" in message:
            why = "returned no batch in time: a disk or network folder may hang, or an image may be huge"
        elif ("DataLoader worker" in message and "exited unexpectedly" in message) or "killed by signal" in message:
            why = f"ended ({message.splitlines()[0]}): memory may be exhausted"
            if not main_guard.forks():
                why += f", or it ran the script again ({main_guard.ADVICE})"
        else:  # an error of the code, whose traceback is needed
            raise
        raise CiodError(
            f"A loader process {why}. Repeat the command to resume from the last saved state; train.workers=0 uses "
            "no such processes."
        ) from e


def short_temporary_folder(worker: int) -> None:
    """In a loader process: makes sure that it can create a socket in the temporary folder, through which batches are
    passed.

    The path of a socket has at most about 100 bytes; with a longer one the process sends nothing.
    """
    del worker
    name = os.path.join(tempfile.gettempdir(), "pymp-12345678", "listener-12345678")  # noqa: PTH118
    if len(os.fsencode(name)) > SOCKET_PATH:
        tempfile.tempdir = next((f for f in SHORT_FOLDERS if os.access(f, os.W_OK | os.X_OK)), tempfile.tempdir)


def _check_handles(workers: int) -> None:
    """Before processes are started: torch prints its own tracebacks when it runs out of handles during training.

    Raises:
        CiodError: the processes need more open files than the system allows.
    """
    if not workers or resource is None:
        return
    allowed, need = resource.getrlimit(resource.RLIMIT_NOFILE)[0], HANDLES + HANDLES_OF_A_WORKER * workers
    if allowed not in (resource.RLIM_INFINITY, -1) and allowed < need:
        raise CiodError(
            f"train.workers={workers} needs about {need} open files, but the system allows {allowed}: allow more with "
            f"'ulimit -n {need}', or lower train.workers."
        )


def _own_generator() -> torch.Generator:
    """Generator for the loader's workers. Without one, torch uses the global generator, which belongs to the model."""
    return torch.Generator().manual_seed(0)


def _mix(*numbers: int) -> int:
    """Several integers → one 63-bit seed; similar inputs give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
