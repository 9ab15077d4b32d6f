"""The result of ``ciod list`` before it is printed: for the terminal, for a pipe, or as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ciod.core.terminal import console as natural

Cell = str | Text


@dataclass
class Sheet:
    """Sentences, and a table if there is one."""

    lines: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)
    """Beside the rows, for ``--json``."""
    people: RenderableType | None = None
    """Text for the terminal instead."""

    def show(self, console: Console | None = None) -> None:
        """Prints it for people."""
        console = console or natural()
        if self.people is not None:
            console.print(self.people)
            return
        for line in self.lines:
            console.print(line, markup=False, soft_wrap=True)
        if self.columns:
            table = Table(*self.columns, box=box.SIMPLE_HEAD)
            for row in self.rows:
                table.add_row(*(Text(c) if isinstance(c, str) else c for c in row))
            console.print(table)
        for line in self.after:
            console.print(line, markup=False, soft_wrap=True)

    def plain(self) -> str:
        """One row per line, its cells separated by tabs; without a table, the sentences."""
        if not self.columns:
            return "\n".join([*self.lines, *self.after])
        return "\n".join("\t".join(" ".join(str(c).split()) for c in row) for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """``content``, and each row under the names of the columns."""
        if not self.columns:
            return self.content
        return {**self.content, "rows": [dict(zip(self.columns, map(str, row), strict=True)) for row in self.rows]}
