"""The output of a run: one line that is updated in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ciod.training.hooks import Hooks, Position, Reading

if TYPE_CHECKING:
    from ciod.core.run_log import RunLog


def clock(seconds: float) -> str:
    """75 → ``1:15``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Reporter:
    """Progress of a run: task, epoch, step, losses, images per second, time left.

    Args:
        quiet: print nothing (all ranks but the first).
        every: seconds between plain lines where there is no terminal.
        prefix: printed before every line, for several runs with one output; tables are then left out.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None, every: float = 15.0, prefix: str = ""):
        self.console = console or Console(quiet=quiet, highlight=False)
        self.quiet, self.every, self.prefix = quiet, every, prefix
        self.live = self.console.is_terminal and not quiet
        self._bar: Progress | None = None
        self._job: Any = None
        self._began = self._said = 0.0
        self._first = 0

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(self.prefix + text, markup=False, soft_wrap=True)

    def show(self, renderable: Any) -> None:
        if not self.quiet and not self.prefix:
            self.console.print(renderable)

    def begin(self, title: str, total: int, done: int = 0) -> None:
        """A task's training starts: ``total`` steps, ``done`` of them by an earlier process."""
        self._began, self._first = time.monotonic(), done
        self._said = self._began
        if self.live:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._job = self._bar.add_task(title, total=total, completed=done, info="")
        self._title, self._total = title, total

    def step(self, done: int, epoch: str, losses: dict[str, float], speed: float) -> None:
        """``done`` steps are done; ``speed`` in images per second."""
        now = time.monotonic()
        left = (now - self._began) / max(1, done - self._first) * (self._total - done)
        parts = "  ".join(f"{k} {v:.3f}" for k, v in losses.items())
        info = f"{epoch}  {parts}  {speed:.0f} img/s  {clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._job, completed=done, info=info)
        elif not self.quiet and now - self._said >= self.every:
            self._said = now
            self.say(f"{self._title}  step {done}/{self._total}  {info}")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@dataclass
class ShowProgress(Hooks):
    """The training of a task on the terminal."""

    reporter: Reporter

    def on_task(self, at: Position) -> None:
        self.reporter.begin(f"task {at.task + 1}/{at.tasks}", at.total, at.done)

    def on_read(self, at: Position, reading: Reading) -> None:
        epoch = f"epoch {reading.rows[-1].epoch + 1}/{at.epochs}"
        self.reporter.step(at.done, epoch, reading.mean, reading.images_per_second)

    def on_end(self, at: Position) -> None:
        self.reporter.end()


@dataclass
class LogLosses(Hooks):
    """The losses in ``metrics.jsonl``."""

    log: RunLog

    def on_read(self, at: Position, reading: Reading) -> None:
        self.log.write(
            "step",
            task=at.task,
            epoch=reading.rows[-1].epoch,
            step=at.done,
            losses=reading.mean,
            lr=reading.lr,
            images_per_second=reading.images_per_second,
        )


@dataclass
class Warnings:
    """The warnings of a run, each once: on the terminal when they arise, and kept for results and report."""

    reporter: Reporter
    sentences: list[str] = field(default_factory=list)

    def add(self, *sentences: str) -> None:
        for sentence in sentences:
            if sentence not in self.sentences:
                self.sentences.append(sentence)
                self.reporter.say(f"warning: {sentence}")

    def note(self, *sentences: str) -> None:
        """Keeps sentences without printing them, because the terminal shows them in other words."""
        self.sentences += [s for s in sentences if s not in self.sentences]
