"""One run of a comparison in its own process: ``python -m ciod.comparison.worker JOB.json``.

It is a separate process because a run that dies (for example, out of memory) must not end the others, and because the
peak memory of a process never decreases.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ciod.core.errors import CiodError
from ciod.core.reading import Unreadable, read_object

MARK = "cell.json"
LOCKED = ".cell.lock"
ELSEWHERE = 76  # exit code: another process trains this cell


class Elsewhere(Exception):
    """Another process trains this cell: one of the same comparison, or of one that shares its first task."""


def finished(folder: Path, key: str) -> bool:
    """Whether the run in ``folder`` was finished under this key."""
    return mark(folder) == {**mark(folder), "key": key, "finished": True}


def mark(folder: Path) -> dict[str, Any]:
    """The content of ``cell.json`` of a run folder; {} without a readable one."""
    try:
        return read_object(folder / MARK)
    except Unreadable:
        return {}


def work(job: dict[str, Any]) -> None:
    """Trains a run and marks it finished.

    Args:
        job: name, folder, key, facts, settings (a dumped Run), until (tasks; None for all), command.

    Raises:
        CiodError: any problem that the user can fix.
        Elsewhere: another process trains it.
    """
    from rich.console import Console

    from ciod.config.load import Run
    from ciod.core.run_log import write_json
    from ciod.runs import lock
    from ciod.runs import run as engine
    from ciod.training.progress import Reporter

    folder = Path(job["folder"])
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.owner_of(folder, LOCKED))
        except lock.Taken as error:
            raise Elsewhere from error
        if finished(folder, job["key"]):  # by another process, after this one was started
            return
        content = {"key": job["key"], "finished": False, "facts": job["facts"]}
        write_json(folder / MARK, content)
        console = Console(highlight=False, width=1000, force_terminal=False)
        reporter = Reporter(console=console, prefix=f"{job['name']}: ")
        engine.train(Run.model_validate(job["settings"]), command=job["command"], reporter=reporter, until=job["until"])
        write_json(folder / MARK, {**content, "finished": True})


def _die_with_parent() -> None:
    """Ends this run when standard input closes, that is, when the comparison ends in any way."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held when the interpreter shuts down
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(path: str) -> int:
    """Returns the exit code; the last line on standard error is the error."""
    _die_with_parent()
    try:
        work(read_object(path))
    except CiodError as e:
        print(" ".join(str(e).split()), file=sys.stderr, flush=True)
        return 2
    except Elsewhere:
        return ELSEWHERE
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
