"""The output of ``ciod eval``: AP of every class, the worst first, and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from ciod.core import terminal
from ciod.core.errors import CiodError
from ciod.core.files import is_file
from ciod.core.plural import counted
from ciod.core.reading import Unreadable, read_json
from ciod.core.run_log import write_json

if TYPE_CHECKING:
    from ciod.evaluation.detect import Scored


def target_of(name: str | None) -> Path | None:
    """Where the result of an evaluation is written: it may replace an earlier one, but no other file.

    Raises:
        CiodError: the path is another file.
    """
    path = Path(name) if name else None
    if path is None or not is_file(path):
        return path
    try:
        found = read_json(path)
    except Unreadable:
        found = None
    if not isinstance(found, dict) or set(found) != {"per_class", "overall"}:
        raise CiodError(f"json: {path} exists and is not a result of 'ciod eval'; choose another name.")
    return path


def write(scored: Scored, path: Path) -> None:
    """Writes AP of every class, and over all classes, as JSON."""
    write_json(path, {"per_class": scored.table.per_class, "overall": scored.table.overall})


def show(scored: Scored) -> None:
    """Prints the table, what was left out, and the line of means."""
    columns = [k for k in scored.table.overall if k not in ("APs", "APm", "APl")]
    table = Table("class", *columns, box=box.SIMPLE_HEAD)
    for name in sorted(scored.scored, key=lambda n: scored.table.per_class[n]["AP"] or 0):
        row = scored.table.per_class[name]
        table.add_row(name, *("—" if row[k] is None else f"{row[k]:.3f}" for k in columns))
    console = terminal.console()
    console.print(table)
    for what, names in (
        ("not in the model, left out", scored.unknown_to_model),
        ("not in the data, left out", scored.absent_from_data),
    ):
        if names:
            console.print(f"{what}: {', '.join(names)}", markup=False, soft_wrap=True)
    for line in scored.problems:
        console.print(f"data: {line}", markup=False, soft_wrap=True)
    for file in scored.broken:
        console.print(f"unreadable, scored as empty: {file}", markup=False, soft_wrap=True)
    console.print(f"{counted(scored.images, 'image')}, {counted(len(scored.scored), 'class')}", markup=False)
    console.print(scored.table.line(), markup=False, soft_wrap=True)
