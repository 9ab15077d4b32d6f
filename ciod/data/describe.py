"""A summary of a data set and its problems, to read before training."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ciod.core.errors import DataError
from ciod.core.plural import counted
from ciod.data.alike import alike, listed
from ciod.data.formats import merge_names, open_split, recognise
from ciod.data.formats.index_builder import Check
from ciod.data.formats.layout import Layout
from ciod.data.index import Index

_NAMES = {"coco": "COCO", "voc": "PASCAL VOC", "yolo": "YOLO", "labelme": "labelme"}


@dataclass(frozen=True)
class Summary:
    """A data set that was read: its splits under one order of classes, and why others cannot be read."""

    layout: Layout
    indexes: dict[str, Index]
    names: tuple[str, ...]
    failures: dict[str, str]
    check: Check

    def renderable(self) -> RenderableType:
        """For a rich console."""
        looked = {"files": "exist", "headers": "have a readable header", "pixels": "decode"}[self.check]
        title = f": {_NAMES[self.layout.kind]}, {counted(len(self.names), 'class')}"
        parts: list[RenderableType] = [
            Text.assemble((str(self.layout.root), "bold"), title),
            _splits_table(self.indexes),
        ]
        for split, text in self.failures.items():
            parts.append(Text(f"{split} cannot be used: {text}", style="red"))
        for split, index in self.indexes.items():
            if index.problems:
                parts.append(Text(f"Problems in {split}:", style="yellow"))
                parts.extend(Padding(Text(line), (0, 0, 0, 2)) for line in index.problems.lines())
        if not self.failures and not any(index.problems for index in self.indexes.values()):
            parts.append(Text(f"No problems found; all pictures {looked}.", style="green"))
        parts.extend(Text(f"Note: {remark}") for remark in _remarks(self.indexes, self.names))
        parts.append(_class_table(self.indexes, self.names))
        return Group(*parts)

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and one row per class: boxes and images of every split."""
        columns = ("class", *(f"{split} {what}" for split in self.indexes for what in ("boxes", "images")))
        counts = [c for i in self.indexes.values() for c in (i.boxes_per_class(), i.images_per_class())]
        return columns, [(name, *(str(c[k]) for c in counts)) for k, name in enumerate(self.names)]

    def content(self) -> dict[str, Any]:
        """The splits and their problems, for ``--json``."""
        splits = {
            split: {"images": len(i), "boxes": len(i.labels), "problems": i.problems.lines()}
            for split, i in self.indexes.items()
        }
        remarks = _remarks(self.indexes, self.names)
        about = {"data": str(self.layout.root), "format": self.layout.kind, "classes": list(self.names)}
        return {**about, "splits": splits, "unusable": self.failures, "notes": remarks}


def look(path: str | Path, check: Check = "pixels") -> Summary:
    """Reads every split of a data set.

    Args:
        path: see ``formats.recognise``.
        check: how thoroughly to check the images; see ``formats.read``.

    Raises:
        DataError: it is not a data set, or none of its splits can be read.
    """
    layout = recognise(path)
    indexes, failures = _read(layout, check)
    names = merge_names(indexes.values())
    return Summary(layout, {split: index.relabel(names) for split, index in indexes.items()}, names, failures, check)


def describe(path: str | Path, check: Check = "pixels") -> RenderableType:
    """Splits, problems and classes of a data set, for a rich console. Raises DataError as ``look``."""
    return look(path, check).renderable()


def describe_text(path: str | Path, check: Check = "pixels", width: int = 120) -> str:
    """``describe`` as plain text of at most ``width`` columns.

    Raises:
        DataError: see ``describe``.
    """
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(describe(path, check))
    return captured.get()


def _read(layout: Layout, check: Check) -> tuple[dict[str, Index], dict[str, str]]:
    """The readable splits, and the reasons why the others cannot be read."""
    # VOC's trainval is train plus val: reading it would count every box twice.
    splits = [s for s in layout.splits if s != "trainval" or not {"train", "val"} <= layout.splits.keys()]
    indexes: dict[str, Index] = {}
    failures = {split: f"{text}." for split, text in layout.absent.items() if split not in layout.splits}
    for split in splits:
        try:
            indexes[split] = open_split(layout, split, check)
        except DataError as error:
            if len(splits) == 1:
                raise
            failures[split] = str(error)
    if not indexes:
        raise DataError(" ".join(dict.fromkeys(failures.values())))
    return indexes, failures


def _splits_table(indexes: dict[str, Index]) -> Table:
    table = Table("split", *_SPLIT_COLUMNS, box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for split, index in indexes.items():
        numbers = (
            len(index),
            len(index.labels),
            int((np.diff(index.starts) == 0).sum()),
            int(index.crowd.sum()),
            int(index.difficult.sum()),
            sum(index.problems.counts.values()),
        )
        table.add_row(split, *(f"{n:,}" for n in numbers))
    return table


_SPLIT_COLUMNS = ("images", "boxes", "images without boxes", "crowd", "difficult", "problems")


def _class_table(indexes: dict[str, Index], names: tuple[str, ...]) -> Table:
    """One row per class: boxes and images of every split; crowd, difficult and the median size over all of them."""
    crowd = sum(np.bincount(i.labels[i.crowd], minlength=len(names)) for i in indexes.values())
    difficult = sum(np.bincount(i.labels[i.difficult], minlength=len(names)) for i in indexes.values())
    assert isinstance(crowd, np.ndarray) and isinstance(difficult, np.ndarray)
    table = Table(box=None, header_style="bold")
    table.add_column("class")
    rows = [[Text(name)] for name in names]
    for split, index in indexes.items():
        table.add_column(f"{split} boxes", justify="right")
        table.add_column("images", justify="right")
        for row, boxes, images in zip(rows, index.boxes_per_class(), index.images_per_class()):
            row += [Text(f"{boxes:,}", style="" if boxes else "red"), Text(f"{images:,}")]
    for title, counts in (("crowd", crowd), ("difficult", difficult)):
        if counts.any():
            table.add_column(title, justify="right")
            for row, n in zip(rows, counts):
                row.append(Text(f"{n:,}"))
    table.add_column("median box, px", justify="right")
    boxes = np.concatenate([i.boxes for i in indexes.values()])
    labels = np.concatenate([i.labels for i in indexes.values()])
    for c, row in enumerate(rows):
        own = boxes[labels == c]
        size = np.median(own[:, 2:] - own[:, :2], axis=0) if len(own) else None
        row.append(Text("–" if size is None else f"{size[0]:.0f} × {size[1]:.0f}"))
        table.add_row(*row)
    return table


def _remarks(indexes: dict[str, Index], names: tuple[str, ...]) -> list[str]:
    """Problems of the data set as a whole that are worth knowing before training."""
    remarks = []
    for split, index in indexes.items():
        empty = [n for n, boxes in zip(names, index.boxes_per_class()) if not boxes]
        if empty:
            shown = ", ".join(empty[:8]) + (", …" if len(empty) > 8 else "")
            of = f"{len(empty)} of {counted(len(names), 'class')}"
            remarks.append(f"no box in {split}: {shown} ({of}).")
    used = [
        [n for n, boxes in zip(index.class_names, index.boxes_per_class(), strict=True) if boxes]
        for index in indexes.values()
    ]
    within = {group for classes in used for group in alike(classes)}  # each is a problem of its split
    remarks += [
        f"different classes have names that look the same: {listed(g)}." for g in alike(names) if g not in within
    ]
    if {"train", "val"} <= indexes.keys():
        shared = set(indexes["train"].files) & set(indexes["val"].files)
        if shared:
            example = min(shared).name
            remarks.append(
                f"train and val have {counted(len(shared), 'picture')} in common, such as {example}; AP on val is too "
                "high."
            )
    return remarks
