"""From the lines of a run's log to the numbers of its trackers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciod.core.errors import CiodError
from ciod.core.files import exists
from ciod.core.reading import read_object
from ciod.core.run_log import plain, read_metrics, write_json
from ciod.trackers.base import Follow, Run, Tracker, make

WAIT = 60.0
"""Seconds that the end of a run waits for a tracker that still sends."""

Place = tuple[int, int, int]
"""Task, step of the task, and kind of line: of the lines of a log each is later than the one before."""
START: Place = (-1, 0, 0)
KINDS = {"step": 0, "epoch": 1, "task": 2}
RESULTS = 3
IGNORED = ("kind", "task", "epoch", "step", "losses")


@dataclass(frozen=True)
class Numbers:
    """What is logged at one place of a run."""

    place: Place
    step: int  # over all tasks
    values: dict[str, float]


@dataclass(frozen=True)
class Finished:
    """A complete run."""

    summary: dict[str, Any]
    files: Sequence[Path]
    pictures: Sequence[Path]


@dataclass
class Tracking:
    """The trackers of a run; does nothing without any.

    Args:
        say: prints a sentence for the user.
    """

    follow: Follow
    say: Callable[[str], None]
    started: list[Started] = field(default_factory=list, init=False)
    ends: dict[int, int] = field(default_factory=dict, init=False)  # task → its last step so far

    def start(self, *, resumed: bool) -> None:
        """Opens the trackers, and sends what the log of an earlier process has and they have not.

        Args:
            resumed: the run continues that of an earlier process; otherwise its trackers start a new run, too.
        """
        self.started = [Started(name, self.follow, self.say, resumed=resumed) for name in self.follow.names]
        if self.started:
            for line in read_metrics(self.follow.run.folder):
                self.line(line)

    def line(self, line: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``."""
        if not self.started or line.get("kind") not in KINDS:
            return
        task = line["task"]
        if line["kind"] == "step":
            self.ends[task] = line["step"]
        values = dict(_of_step(line) if line["kind"] == "step" else _of_evaluation(line))
        self._send((task, self.ends.get(task, 0), KINDS[line["kind"]]), values)

    def results(self, content: Any) -> None:
        """``results.json`` after a task: old, new and all classes, and per class AP and retention."""
        for entry in content["tasks"] if self.started else ():
            task = entry["index"]
            self._send((task, self.ends.get(task, 0), RESULTS), dict(of_task(content, entry)))

    def finish(self, content: Any, lineage: Any = None) -> None:
        """The run is complete, its report written."""
        if not self.started:
            return
        self.results(content)
        folder = self.follow.run.folder
        files = [f for f in (folder / n for n in ("report.html", "results.json", "run.yaml")) if exists(f)]
        pictures = sorted([*folder.glob("task-*/examples/*.jpg"), *folder.glob("examples/*.jpg")])[:24]
        summary = {"continual": content["continual"], "warnings": content["warnings"], "lineage": lineage}
        for one in self.started:
            one.put(Finished(plain(summary), files, pictures))

    def close(self) -> None:
        """Waits for what is still being sent, a minute at most."""
        for one in self.started:
            one.put(None)  # the end
        for one in self.started:
            one.join()

    def _send(self, place: Place, values: dict[str, float]) -> None:
        step = sum(end for task, end in self.ends.items() if task < place[0]) + place[1]
        for one in self.started if values else ():
            one.put(Numbers(place, step, values))


class Started:
    """One tracker in its thread. ``trackers/NAME.json`` in the folder of the state says how far it is."""

    def __init__(self, name: str, follow: Follow, say: Callable[[str], None], *, resumed: bool):
        self.name, self.run, self.say = name, follow.run, say
        self.path = follow.run.folder / "last" / f"tracker-{name}.json"
        self.identifier: str | None = None
        self.sent = START
        if resumed:
            self._read()
        self.waiting: queue.SimpleQueue[Numbers | Finished | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=f"ciod-{name}", daemon=True)
        self.thread.start()

    def put(self, item: Numbers | Finished | None) -> None:
        self.waiting.put(item)

    def join(self) -> None:
        self.thread.join(WAIT)
        if self.thread.is_alive():
            self.say(
                f"warning: log: {self.name} is still sending after {WAIT:.0f} s and is left; results and report are "
                "complete. The same command sends the rest."
            )

    def _work(self) -> None:
        try:
            tracker = make(self.name)
            self.identifier = tracker.open(
                Run(self.run.name, self.run.group, self.run.folder, self.run.config, self.identifier)
            )
            self._write(self.sent if tracker.keeps_all else START)
            try:
                self._send_all(tracker)
            finally:
                tracker.close()
            self._write(self.sent)
        except BaseException as error:  # a package may also call sys.exit
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.say(f"warning: log: {self.name} stopped, the run does not. {reason}")

    def _send_all(self, tracker: Tracker) -> None:
        while (item := self.waiting.get()) is not None:
            if isinstance(item, Finished):
                tracker.finish(item.summary, item.files, item.pictures)
            elif item.place > self.sent:
                tracker.log(item.values, item.step)
                self.sent = item.place
                if tracker.keeps_all:
                    self._write(self.sent)

    def _read(self) -> None:
        if not exists(self.path):
            return
        try:
            content = read_object(self.path)
            task, step, kind = (int(n) for n in content["sent"])
            self.identifier = str(content["id"])
            self.sent = (task, step, kind)
        except (CiodError, KeyError, TypeError, ValueError):
            self.say(f"warning: log: {self.path} is damaged; {self.name} starts a new run.")

    def _write(self, sent: Place) -> None:
        write_json(self.path, {"id": self.identifier, "sent": sent})


def _of_step(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    losses = {k: v for k, v in (line.get("losses") or {}).items() if v is not None}
    yield "train/loss", sum(losses.values())
    for name, value in losses.items():
        yield f"train/{name}", value
    for name in ("lr", "images_per_second"):
        if line.get(name) is not None:
            yield f"train/{name}", line[name]
    yield "train/task", line["task"] + 1
    yield "train/epoch", line["epoch"] + 1


def _of_evaluation(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """COCO's numbers of an epoch or a task. The seconds of a task are in them."""
    for name, value in line.items():
        if name not in IGNORED and isinstance(value, (int, float)):
            yield f"eval/{name}", value


def of_task(content: Any, entry: Any) -> Iterator[tuple[str, float]]:
    """``new/AP``, ``old/AP``, ``all/AP``; per class ``AP/cat`` and ``retention/cat``: the share of the AP that it had
    after the task in which it was learnt."""
    for group in ("old", "new", "all"):
        for metric, value in (entry.get(group) or {}).items():
            if value is not None:
                yield f"{group}/{metric}", value
    for metric, rows in content["ap"].items():
        kept, had = [], []
        for name, value in rows[entry["index"]].items():
            if value is None:
                continue
            yield f"{metric}/{name}", value
            first = next((row[name] for row in rows if name in row), None)
            if name in entry["old_classes"] and first:
                kept.append(value)
                had.append(first)
                if metric == "AP50":
                    yield f"retention/{name}", value / first
        if had:
            yield f"old/{metric}_retention", sum(kept) / sum(had)
