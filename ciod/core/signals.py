"""Signals that ask a run to stop: Ctrl-C, and SIGTERM and SIGUSR1 of schedulers and spot machines.

The files of a run are complete at every moment, so outside the training loop a signal ends it at once. Inside, it waits
for the end of the step, and the steps since the last save are written first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

AGAIN = 75  # EX_TEMPFAIL: "run me again"


class RunAgain(SystemExit):
    """The run was asked to stop and can be resumed: exit code 75."""

    def __init__(self, name: str):
        super().__init__(AGAIN)
        self.name = name


class Stop:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked: str | None = None  # name of the signal
        self._waiting = False
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Generator[Stop, None, None]:
        """Handles the signals inside the block (in the main thread only: Python allows no other)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        names = [n for n in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, n)]
        before = {n: signal.signal(getattr(signal, n), self._take) for n in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def at_steps(self) -> Generator[None, None, None]:
        """Inside the block a signal waits for ``leave``; a second Ctrl-C does not."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    @contextmanager
    def at_once(self) -> Generator[None, None, None]:
        """Within a block of ``at_steps``: in this block a signal ends the run at once; everything is written."""
        before, self._waiting = self._waiting, False
        try:
            yield
        finally:
            self._waiting = before

    def leave(self) -> NoReturn:
        """Ends the run; everything is saved.

        Raises:
            KeyboardInterrupt, RunAgain: depending on the signal.
        """
        if self.asked == "SIGINT":
            raise KeyboardInterrupt
        raise RunAgain(self.asked or "another process")

    def _take(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:
            return  # a loader worker has inherited this handler; it ends with its parent
        again, self.asked = self.asked == "SIGINT", signal.Signals(number).name
        if not self._waiting or (again and self.asked == "SIGINT"):
            self.leave()
        what = "press Ctrl-C again to exit at once" if self.asked == "SIGINT" else f"{self.asked} received"
        print(f"ciod: the state is written after this step ({what}).", file=sys.stderr)
