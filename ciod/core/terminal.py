"""Consoles as wide as the terminal, and without a limit where the output goes into a file or a pipe; and progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

WIDE = 10_000  # columns: no name is cut
EVERY = 15.0  # seconds between plain lines


def console(*, quiet: bool = False) -> Console:
    """A console on standard output. In a pipe or a file no line is cut (``COLUMNS`` sets another width)."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else WIDE
    return Console(highlight=False, quiet=quiet, width=width)


@contextmanager
def counting(
    place: Console, title: str, total: int, *, every: float = EVERY, prefix: str = ""
) -> Generator[Callable[[int], None], None, None]:
    """Progress of something that takes a while: a bar on a terminal, and elsewhere a line from time to time.

    Yields:
        A function that is called with how many more are done.
    """
    if place.is_terminal and not place.quiet:
        columns = TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=place, transient=True) as bar:
            job = bar.add_task(title, total=total)
            yield lambda n: bar.advance(job, n)
        return
    done, reported_at = 0, time.monotonic()

    def count(n: int) -> None:
        nonlocal done, reported_at
        done += n
        now = time.monotonic()
        if now - reported_at >= every and done < total:
            reported_at = now
            place.print(f"{prefix}{title}: {done} of {total}", markup=False, soft_wrap=True)

    yield count
