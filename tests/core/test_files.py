"""Partly written files: a run removes its own and no others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ciod.core.files import LOCK, WriteError, atomic_write, explained, sweep, temporary, whole


def left_behind(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = temporary(folder / "state.pt")
    path.write_text("half")
    return path


def test_a_run_removes_its_temporary_files(tmp_path):
    places = ("", "last", "task-1", "task-2/examples", "doubtful")
    left = [left_behind(tmp_path / place) for place in places]
    kept = [tmp_path / ".hidden", tmp_path / "last" / ".state.pt.tmp"]
    for path in kept:
        path.write_text("the user's")
    sweep(tmp_path)
    assert not any(p.exists() for p in left) and all(p.exists() for p in kept)


def test_two_threads_that_write_one_file_each_write_a_whole_one(tmp_path):
    """Also two machines with the same process number: the names of their temporary files differ."""
    path, second = tmp_path / "a.json", threading.Thread(target=lambda: atomic_write(tmp_path / "a.json", "second"))
    with whole(path) as file:
        file.write(b"fir")
        second.start()
        second.join()
        assert path.read_text() == "second"
        file.write(b"st")
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_half_written_files_of_runs_inside_are_left_alone(tmp_path):
    inner = [left_behind(tmp_path / place) for place in ("inner", "inner/last", "a/b/task-1", "last/run")]
    locked = left_behind(tmp_path / "task-2")  # a run whose folder is called as one of ours
    (tmp_path / "task-2" / LOCK).write_text("{}")
    sweep(tmp_path)
    assert all(p.exists() for p in [*inner, locked])


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path, below):
    (tmp_path / "a").write_text("")
    with pytest.raises(WriteError, match=r"a is a file, but a folder is needed\. Choose another folder\."):
        atomic_write(f"{tmp_path / 'a'}{below}/b.json", "")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there are no devices as files here")
def test_a_device_is_not_a_folder():
    with (
        pytest.raises(
            WriteError, match=r"^/dev/null cannot be written: it is not a folder, but a folder is needed\. C"
        ),
        explained(Path("/dev/null")),
    ):
        Path("/dev/null").mkdir(parents=True, exist_ok=True)
