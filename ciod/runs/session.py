"""Around a whole run: its processes, its signals, and the lock of its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ciod.core.distributed import World, not_by_srun, world
from ciod.runs.lock import owner_of
from ciod.training.progress import Reporter


@contextmanager
def session(out: str, device: str, reporter: Reporter | None) -> Iterator[tuple[World, Reporter]]:
    """The processes of the run and this process's reporter: only the first process prints, and it owns the folder.

    Raises:
        Taken: a live run has the folder.
        RunAgain: SIGTERM or SIGUSR1 was received; the saved state is intact (exit code 75).
        KeyboardInterrupt: Ctrl-C; the same.
    """
    with world(device) as process_group, owner_of(Path(out)) if process_group.main else nullcontext():
        reporter = reporter or Reporter(quiet=not process_group.main)
        if hint := not_by_srun():
            reporter.say(hint)
        yield process_group, reporter


@contextmanager
def first_alone(world: World) -> Iterator[None]:
    """The first process runs the block before the others, so that they find what it writes."""
    if not world.main:
        world.barrier()
    yield
    if world.main:
        world.barrier()
