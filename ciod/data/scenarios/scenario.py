"""Scenario: a sequence of Tasks from one data set. It knows class names, images and boxes, but no models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciod.core import typed
from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.files import is_file, nfc
from ciod.core.plural import counted
from ciod.core.reading import Unreadable, read_yaml
from ciod.core.text_lists import near_name
from ciod.core.validation_messages import problems_of
from ciod.data.index import Index
from ciod.data.scenarios import folds, lists, loco, shots, subsets
from ciod.data.scenarios.protocol import Protocol


@dataclass(frozen=True)
class Task:
    """One step of a scenario. Labels of ``train`` and ``test`` are positions in the order of arrival."""

    index: int
    new_classes: tuple[str, ...]
    old_classes: tuple[str, ...]
    train: Index
    test: Index
    hidden_boxes: int  # boxes of old classes that the protocol hides in the training images
    future_boxes: int  # the same for classes of later tasks
    repeated_classes: tuple[str, ...] = ()  # old classes that this task teaches again, on other images

    @property
    def taught_classes(self) -> tuple[str, ...]:
        """Everything that the task teaches: old classes again, and its new ones."""
        return self.repeated_classes + self.new_classes

    @property
    def seen_classes(self) -> tuple[str, ...]:
        return self.old_classes + self.new_classes


def parse_split(split: str, total: int) -> list[int]:
    """``15+1x5`` → [15, 1, 1, 1, 1, 1]; ``all`` → [total].

    Raises:
        CiodError: the text is not a split.
    """
    if split == "all":
        return [total]
    groups: list[int] = []
    for part in str(split).replace(" ", "").split("+"):
        m = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", part)
        if not m or int(m[1]) == 0 or m[2] == "0":
            raise CiodError(
                f"split: '{split}' is not a split; write 40+40, 15+1x5 (15 classes, then five times 1), 20x4, "
                "or lists of names such as [[cat, dog], [bird]]."
            )
        groups += [int(m[1])] * int(m[2] or 1)
    return groups


def class_order(order: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """The data set's names (in its own order) arranged by ``order``."""
    if not isinstance(order, str):
        return [nfc(str(n)) for n in order]
    names = [*names]
    if order == "alphabetical":
        return sorted(names)
    if order in ("dataset", "coco_id"):
        return names
    m = re.fullmatch(r"seed:(\d{1,18})", order)
    if m:
        return [names[i] for i in np.random.default_rng(int(m[1])).permutation(len(names))]
    raise CiodError(
        f"order: '{order}' is not an order; allowed: alphabetical, dataset, coco_id, seed:N, a list of names."
    )


def groups_of(protocol: Protocol, names: Sequence[str]) -> list[tuple[str, ...]]:
    """New classes of each task. Names must be those of the data set.

    Raises:
        CiodError: every problem of order and split in one message.
    """

    problems: list[str] = []

    def known(listed: Sequence[str], key: str) -> None:
        for name in listed:
            if nfc(name) not in names:
                problems.append(f"{key}: the data has no class '{name}'; {near_name(key, name, names)}")

    split = protocol.split
    grouped = [g for g in split if isinstance(g, list)] if protocol.grouped else []
    if grouped:
        flat = [nfc(n) for g in grouped for n in g]
        known(flat, "split")
        twice = sorted({n for g in grouped for n in g if [*map(nfc, g)].count(nfc(n)) > 1})
        if twice:
            problems.append(f"split: {', '.join(twice)} is twice in one task; list each class once.")
        again = sorted({n for n in flat if flat.count(n) > 1 and n not in twice})
        if again and not (protocol.lists or protocol.images == "disjoint"):
            problems.append(
                f"split: {', '.join(again)} is in two tasks; a class can be new only once. To teach it again on other "
                "images, divide the images: images=disjoint, or a list of images per task."
            )
        if problems:
            raise ConfigError(problems)
        found = [tuple(map(nfc, g)) for g in grouped]
    else:
        if not isinstance(protocol.order, str):
            known(protocol.order, "order")
            listed = class_order(protocol.order, names)
            twice = sorted({n for n in listed if listed.count(n) > 1})
            if twice:
                problems.append(f"order: {', '.join(twice)} is listed twice; list each class once.")
        try:
            ordered = class_order(protocol.order, names)
            counts = [] if isinstance(split, str) else [int(n) for n in split if not isinstance(n, list)]
            sizes = parse_split(split, len(ordered)) if isinstance(split, str) else counts
        except CiodError as e:
            raise ConfigError([*problems, str(e)]) from None
        if sum(sizes) > len(ordered):
            problems.append(
                f"split: {'+'.join(map(str, sizes))} needs {counted(sum(sizes), 'class')}, but the data has "
                f"{len(ordered)} "
                f"({', '.join(ordered[:8])}{', …' if len(ordered) > 8 else ''})."
            )
        if problems:
            raise ConfigError(problems)
        ends = np.cumsum(sizes)
        found = [tuple(ordered[e - s : e]) for s, e in zip(sizes, ends, strict=True)]
    return found[::-1] if protocol.reverse else found


class Scenario:
    """An iterable of Tasks.

    Args:
        protocol: the switches.
        train: the data set's training split.
        test: its test split; classes are matched by name.

    Raises:
        CiodError: a split or order that does not fit the data, or a task without training images.
    """

    def __init__(self, protocol: Protocol, train: Index, test: Index):
        self.protocol = protocol
        known = train.class_names + tuple(n for n in test.class_names if n not in train.class_names)
        self.parts = groups_of(protocol, known)  # a joint run puts them into one task
        if protocol.images == "loco" and not protocol.grouped:
            ordered = [n for n in class_order(protocol.order, known) if n in known]
            self.parts = loco.groups(train, ordered, [len(g) for g in self.parts])
        every = tuple(dict.fromkeys(n for g in self.parts for n in g))
        self.taught = [every] if protocol.joint else self.parts
        """Classes that each task teaches."""
        self.groups = _first_time(self.taught)
        """Those of them that are new."""
        self.classes: tuple[str, ...] = every
        self.train = train.relabel(self.classes)
        self.test = subsets.part(test, protocol.subset).relabel(self.classes)
        self._all_test = len(test)
        self._owner = self._deal()
        self._listed = lists.rows(train, protocol.lists)
        self._all_rows = [self._images(i) for i in range(len(self.groups))]
        if self._listed and not protocol.joint:
            wrong = lists.without_boxes(protocol.lists, self._listed, self._all_rows, train, self.taught)
            if wrong:
                raise ConfigError(wrong)
        empty = [i for i, rows in enumerate(self._all_rows) if not len(rows)]
        if empty:
            what = "; ".join(f"task {i + 1} ({', '.join(self.groups[i][:5])})" for i in empty)
            raise CiodError(
                f"No training images for {what} under images={protocol.images} in {train.source}; "
                "choose another split= or images=."
            )
        if protocol.shots and not protocol.joint:
            if len(self.groups) == 1:
                raise CiodError(
                    "shots: there is no second task to learn from a few boxes; give a split with two or more."
                )
            self._all_rows[1:] = [self._few(i, protocol.shots) for i in range(1, len(self.groups))]
        self._rows = [self._part(i) for i in range(len(self.groups))]

    @property
    def repeats(self) -> bool:
        """Some task teaches a class that an earlier one taught."""
        return sum(map(len, self.taught)) > len(self.classes)

    def sizes(self) -> list[str]:
        """The sizes of a fold, of image lists, few-shot tasks and a subset as sentences; empty without any of them."""
        found = [folds.sentence(self.protocol, self.train, self.test)] if self.protocol.folds else []
        if self._listed and not self.protocol.joint:
            found.append(lists.sentence(self._listed, self._all_rows))
        if self.protocol.shots and not self.protocol.joint:
            later = [self.task(i) for i in range(1, len(self))]
            found += [shots.sentence(t.index + 1, t.train, t.taught_classes, self.protocol.shots) for t in later]
        if self.protocol.subset:
            tasks = ", ".join(f"{len(a)} of {len(b)}" for a, b in zip(self._rows, self._all_rows, strict=True))
            found.append(
                f"Subset ({self.protocol.subset}): training images of each task: {tasks}; test images: "
                f"{len(self.test)} of {self._all_test}."
            )
        return found

    def sentences(self) -> list[str]:
        """The protocol as sentences, for reports, with the sizes of a fold."""
        return [*self.protocol.sentences(), *self.sizes()]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Task]:
        return (self.task(i) for i in range(len(self)))

    def _deal(self) -> np.ndarray | None:
        """[I] task of every training image, or None if images may be used in several tasks.

        ``disjoint``: shuffled, cut in proportion to the number of classes (CL-DETR's image split).
        """
        if self.protocol.images == "loco":
            return loco.deal(self.train, self.groups, self.protocol.image_seed)
        if self.protocol.images != "disjoint":
            return None
        shuffled = np.random.default_rng(self.protocol.image_seed).permutation(len(self.train))
        sizes = [len(g) for g in self.taught]
        ends = np.cumsum(sizes) / sum(sizes) * len(self.train)
        owner = np.empty(len(self.train), dtype=np.int64)
        owner[shuffled] = np.searchsorted(ends, np.arange(len(self.train)), side="right").clip(max=len(self) - 1)
        return owner

    def _bounds(self, i: int) -> tuple[int, int]:
        first = sum(len(g) for g in self.groups[:i])
        return first, first + len(self.groups[i])

    def _images(self, i: int) -> np.ndarray:
        """Rows of the training images of task i, ascending."""
        new = self.teaches(i)[self.train.labels]
        rows = np.unique(self.train.image[new])
        if self.protocol.images == "only-new":
            rows = np.setdiff1d(rows, np.unique(self.train.image[~new]))
        elif self._owner is not None:
            rows = rows[self._owner[rows] == i]
        elif self._listed:
            rows = np.intersect1d(rows, np.concatenate(self._listed) if self.protocol.joint else self._listed[i])
        return rows

    def teaches(self, i: int) -> np.ndarray:
        """[C] bool: classes that task i teaches."""
        return np.isin(np.array(self.classes, object), np.array(self.taught[i], object))

    def _few(self, i: int, number: int) -> np.ndarray:
        """Rows of task i's images with a few boxes of each of its classes."""
        taught = self.teaches(i)[self.train.labels] & self.usable(self.train)
        return shots.choose(self.train, self._all_rows[i], taught, number, self.protocol.image_seed)

    def _part(self, i: int) -> np.ndarray:
        """The rows that a subset takes of those of task i; all without a subset."""
        rows, subset = self._all_rows[i], self.protocol.subset
        if subset is None:
            return rows
        return subsets.choose(
            self.train, rows, np.isin(self.train.labels, self.new(i)) & self.usable(self.train), subset
        )

    def rows(self, i: int) -> np.ndarray:
        """Rows of task i's training images in ``train``, ascending."""
        return self._rows[i]

    def images_without_subset(self, i: int) -> int:
        """Number of task i's training images if no subset were taken."""
        return len(self._all_rows[i])

    def new(self, i: int) -> range:
        """Labels of the new classes of task i."""
        return range(*self._bounds(i))

    def seen(self, i: int) -> int:
        """Number of classes up to and including task i."""
        return self._bounds(i)[1]

    def shown(self, i: int) -> np.ndarray:
        """[C] bool: classes whose boxes are shown in the images of task i."""
        if self.protocol.boxes == "new":
            return self.teaches(i)
        end = len(self.classes) if self.protocol.boxes == "all" else self.seen(i)
        return np.arange(len(self.classes)) < end

    def usable(self, index: Index) -> np.ndarray:
        """[A] bool: boxes to train on. Crowd boxes count only for choosing images, as in the published protocols."""
        return ~index.crowd & ~(index.difficult & (self.protocol.difficult == "drop"))

    def every_box(self, i: int) -> Index:
        """The test images of task i with the boxes of all classes, those of later tasks too."""
        if self.protocol.eval_images == "all":
            return self.test
        return self.test.select(np.unique(self.test.image[self.test.labels < self.seen(i)]))

    def task(self, i: int) -> Task:
        first, end = self._bounds(i)
        images = self.train.select(self._rows[i])
        usable = self.shown(i)[images.labels] & self.usable(images)
        seen = self.every_box(i)
        seen = seen.select(boxes=seen.labels < end)
        return Task(
            index=i,
            new_classes=self.classes[first:end],
            old_classes=self.classes[:first],
            train=images.select(boxes=usable),
            test=seen.relabel(self.classes[:end]),
            hidden_boxes=int(((images.labels < first) & ~self.shown(i)[images.labels]).sum()),
            future_boxes=int((images.labels >= end).sum()) if self.protocol.boxes != "all" else 0,
            repeated_classes=tuple(n for n in self.taught[i] if n in self.classes[:first]),
        )


def _first_time(tasks: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The classes of each task that no earlier task has."""
    seen: set[str] = set()
    found = []
    for names in tasks:
        found.append(tuple(n for n in names if n not in seen))
        seen.update(names)
    return found


FOLDER = Path(__file__).resolve().parent


def available() -> list[str]:
    """Names of the scenarios in the package."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def read_protocol(name: str) -> Protocol:
    """A scenario of the package by name, or a YAML file of the user's.

    Raises:
        CiodError: no such scenario, or the file is not one.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not is_file(path):
        raise CiodError(f"scenario: there is no '{name}'; {did_you_mean(name, available())}")
    try:
        content = read_yaml(path, sourced=True)
    except Unreadable as e:
        raise CiodError(f"scenario: {e}") from e
    if not isinstance(content, dict):
        raise CiodError(f"scenario: {path} must be a mapping with split, order, …")
    content = {"name": path.stem, **typed.fit(content, Protocol)}
    if isinstance(content.get("images"), list):  # its paths are relative to the file
        content["images"] = [str(path.parent / str(p)) for p in content["images"]]
    problems = problems_of(Protocol, content, where=str(path.name))
    if problems:
        raise ConfigError(problems)
    return Protocol.model_validate(content)
