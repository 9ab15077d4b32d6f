"""The run's log survives a kill at any byte; files are complete or absent."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ciod.core.files import WriteError
from ciod.core.run_log import RunLog, atomic_write, plain, read_metrics, write_json


def test_log_round_trip(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run") as log:
        log.write("step", task=0, step=1, losses={"cls": np.float32(0.5), "box": math.nan}, lr=torch.tensor(0.25))
        assert len(read_metrics(tmp_path / "run")) == 1, "a line is on disk as soon as it is written"
        log.write("epoch", task=0, AP=None, note="Ähre 鳥")
    first, second = read_metrics(tmp_path / "run")
    assert first == {"kind": "step", "task": 0, "step": 1, "losses": {"cls": 0.5, "box": None}, "lr": 0.25}
    assert second["note"] == "Ähre 鳥"


def test_killed_at_any_byte(tmp_path: Path) -> None:
    whole = b'{"kind": "step", "step": 1}\n'
    last = '{"kind": "task", "note": "ä", "n": 12}\n'.encode()
    for cut in range(len(last) + 1):
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(whole + last[:cut])
        survives = cut >= len(last) - 1  # only the line end is missing
        assert len(read_metrics(tmp_path)) == 1 + survives
        with RunLog(tmp_path) as log:
            log.write("step", step=2)
        lines = path.read_text("utf-8").splitlines()
        assert [json.loads(line).get("step") for line in lines] == [1, *([None] if survives else []), 2]


def test_an_incomplete_first_line_and_an_absent_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"kind": "st')
    RunLog(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_write_json_makes_plain_json(tmp_path: Path) -> None:
    obj = {
        1: np.arange(2),
        "a": (np.float64("nan"), -math.inf, np.int64(3)),
        "p": Path("x"),
        "s": {"b", "a"},
        "t": True,
    }
    path = write_json(tmp_path / "new" / "x.json", obj)
    assert json.loads(path.read_text()) == {"1": [0, 1], "a": [None, None, 3], "p": "x", "s": ["a", "b"], "t": True}
    assert plain(torch.tensor([1.0, math.nan])) == [1.0, None]


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = atomic_write(tmp_path / "report.html", "old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"], "nothing is left beside it"


def test_existing_paths_that_are_not_files_are_written_to(tmp_path):
    """/dev/stdout, a pipe: to put a file in its place would take it away from everyone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic_write(pipe, "words")
    assert os.read(end, 100) == b"words" and pipe.is_fifo()
    os.close(end)
    assert os.listdir(tmp_path) == ["pipe"]  # noqa: PTH208


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_no_file_can_have_that_name(name, tmp_path):
    with pytest.raises(WriteError, match=r"cannot be written: no file can have that name\.$"):
        atomic_write(tmp_path / name, "words")
    with pytest.raises(WriteError, match="cannot be written: it is a folder"):
        atomic_write(tmp_path, "words")


def test_bytes_that_are_not_text_are_written_as_an_escape_and_read_back(tmp_path):
    """A file name of a disk that does not use UTF-8."""
    name = "bild-\udce9.jpg"
    with RunLog(tmp_path) as log:
        log.write("step", image=name)
    write_json(tmp_path / "a.json", {"image": name})
    assert read_metrics(tmp_path)[0]["image"] == name == json.loads((tmp_path / "a.json").read_bytes())["image"]


@pytest.mark.parametrize("wrong", ['"3"', "{}", "1e999", "-1", "true", "null", "1.5", "99999999999999999999"])
@pytest.mark.parametrize("key", ["task", "epoch", "step"])
def test_counts_that_are_none_are_left_out(key, wrong, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"kind": "step", "{key}": {wrong}}}\n{{"kind": "step", "{key}": 3}}\n')
    assert read_metrics(tmp_path) == [{"kind": "step", key: 3}]
