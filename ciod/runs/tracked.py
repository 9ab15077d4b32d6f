"""What trackers get from a run or an extension before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ciod.runs import environment
from ciod.trackers import Follow, Tracking
from ciod.trackers.base import Run as Tracked

if TYPE_CHECKING:
    from typing import Any

    from ciod.core.distributed import World
    from ciod.training.progress import Reporter


class Settings(Protocol):
    """Settings of ``ciod train`` and ``ciod extend``."""

    @property
    def log(self) -> Sequence[str]: ...
    @property
    def out(self) -> str: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


def tracking(settings: Settings, world: World, reporter: Reporter) -> Tracking:
    """The trackers of a run, not yet started; none on ranks other than the first. Runs of one folder are a group."""
    out = Path(settings.out).absolute()
    config = {**settings.model_dump(mode="json"), "commit": environment.commit(), "versions": environment.versions()}
    names = settings.log if world.main else ()
    return Tracking(Follow(names, Tracked(out.name, out.parent.name, out, config)), reporter.say)
