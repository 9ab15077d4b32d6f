"""Which run starts when, and what one that fails means for the others; no process is started here."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import pytest

from ciod.comparison import process, schedule


@dataclass
class Cell:
    name: str
    folder: object
    starts_from: str | None = None
    until: int | None = None
    started: bool = False
    key: str = "k"
    kind: str = "run"

    @property
    def needs(self):
        return (self.starts_from,) if self.starts_from and not self.started else ()


@dataclass
class World:
    """Stands in for processes: each lives for two looks."""

    broken: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)
    most: int = 0
    now: int = 0
    stopped: list[str] = field(default_factory=list)
    interrupt: str = ""
    gpus: dict[str, str | None] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)  # another process takes them between the look and the start

    def worker(self, cell, logs, threads, say, gpu):
        self.gpus[cell.name] = gpu
        if cell.name == self.interrupt:
            raise KeyboardInterrupt
        self.started.append(cell.name)
        self.now += 1
        self.most = max(self.most, self.now)
        return Process(self, cell, gpu)


class Process:
    def __init__(self, world, cell, gpu):
        self.world, self.cell, self.gpu, self.looks = world, cell, gpu, 0

    @property
    def alive(self):
        self.looks += 1
        return self.looks < 3

    @property
    def elsewhere(self):
        return self.cell.name in self.world.lost and not self.world.lost.discard(self.cell.name)

    def problem(self):
        self.world.now -= 1
        return "no room" if self.cell.name in self.world.broken else None

    def stop(self):
        self.world.stopped.append(self.cell.name)


@pytest.fixture
def go(monkeypatch, tmp_path):
    def run(cells, jobs=2, done=(), gpus=(), **given):
        world = World(**given)
        monkeypatch.setattr(schedule, "Worker", world.worker)
        monkeypatch.setattr(schedule, "finished", lambda folder, key: folder in done)
        monkeypatch.setattr(schedule.time, "sleep", lambda _: None)
        world.failed = lambda: schedule.run(cells, jobs=jobs, logs=tmp_path / "logs", say=print, gpus=gpus)
        return world

    return run


def cells(**started):
    return [
        Cell("first", "first", until=1, kind="first"),
        Cell("joint", "joint", kind="joint"),
        Cell("a", "a", "first", started=started.get("a", False)),
        Cell("b", "b", "first", started=started.get("b", False)),
    ]


def test_runs_wait_for_their_first_task(go):
    world = go(cells())
    assert world.failed() == {}
    assert world.started == ["first", "joint", "a", "b"] and world.most == 2


def test_one_at_a_time(go):
    world = go(cells(), jobs=1)
    assert world.failed() == {} and world.most == 1


def test_what_is_finished_is_not_started(go):
    world = go(cells(), done={"first", "a"})
    assert world.failed() == {} and world.started == ["joint", "b"]


def test_an_unneeded_first_task_is_not_trained(go):
    world = go(cells(b=True), done={"joint", "a"})
    assert world.failed() == {} and world.started == ["b"]


def test_the_other_runs_continue_when_one_fails(go):
    world = go(cells(), broken={"a"})
    assert world.failed() == {"a": "no room"} and world.started == ["first", "joint", "a", "b"]


def test_runs_are_reported_with_the_first_task_that_failed(go):
    world = go(cells(), broken={"first"})
    failed = world.failed()
    assert set(failed) == {"first", "a", "b"} and world.started == ["first", "joint"]
    assert failed["b"] == "it starts from first, which failed: no room"


def test_an_interruption_stops_what_runs(go):
    world = go(cells(), interrupt="b")
    with pytest.raises(KeyboardInterrupt):
        world.failed()
    assert world.stopped == ["a"]


@pytest.mark.parametrize(
    ("code", "last", "expected"),
    [
        (3, [], "its process ended with code 3"),
        (3, ["a", " "], "a"),
        (-9, ["a"], "signal 9 (out of memory?)"),
        (0, [], ""),
    ],
)
def test_why_a_process_failed(code, last, expected):
    assert expected in (process.reason(code, last) or "")
    assert (process.reason(code, last) is None) == (code == 0)


def test_a_log_on_a_full_disk_does_not_stop_the_reading():
    """If nothing read on, the run would wait forever."""

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    heard: list[str] = []
    process.follow(["a\n", "b\n"], Full(), heard.append)
    assert heard == ["a", "b"]


def test_runs_are_shared_out_among_the_gpus(go):
    world = go(cells(), jobs=2, gpus=["5", "3"])
    assert world.failed() == {}
    assert world.gpus == {"first": "5", "joint": "3", "a": "5", "b": "3"}
    world = go(cells(), jobs=2)
    assert world.failed() == {} and set(world.gpus.values()) == {None}


def test_what_another_process_trains_is_left_to_it_until_it_ends(go, monkeypatch, capsys):
    """It finishes ``joint``, and dies in ``a``, which is then trained here."""
    done, looks = {"first"}, []

    def holder(folder, name):
        looks.append(folder)
        if folder in ("joint", "a") and looks.count(folder) < 3:
            return "process 7 on node1"
        if folder == "joint":
            done.add("joint")
        return None

    monkeypatch.setattr(schedule, "holder", holder)
    monkeypatch.setattr(schedule, "LOOK", 0)
    world = go(cells(), done=done)
    assert world.failed() == {}
    assert world.started == ["b", "a"]
    output = capsys.readouterr().out
    assert output.count("joint: process 7 on node1 trains it; its result is used") == 1
    assert output.count("a: process 7 on node1 trains it") == 1


def test_a_run_that_another_process_took_first_waits_again(go):
    world = go(cells(), done={"first", "joint", "b"}, lost={"a"})
    assert world.failed() == {} and world.started == ["a", "a"]


def test_a_run_is_looked_at_once_a_second(monkeypatch):
    looks = []
    monkeypatch.setattr(schedule, "holder", lambda folder, name: looks.append(folder) or "process 7")
    others = schedule.Others(looks.append)
    assert all(others.train(Cell("a", "a")) for _ in range(5))
    assert looks == ["a", "a: process 7 trains it; its result is used"]
