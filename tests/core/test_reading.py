"""Files in: bounded, regular, and a sentence for everything else."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from ciod.core import reading
from ciod.core.errors import CiodError, DataError


def put(folder: Path, content: bytes) -> Path:
    path = folder / "a.json"
    path.write_bytes(content)
    return path


def test_valid_files_are_read(tmp_path):
    path = put(tmp_path, b'\xef\xbb\xbf{"a": ["\xc3\xa9"]}')
    assert reading.read_object(path) == reading.read_json(path) == {"a": ["é"]}
    assert reading.read_yaml(put(tmp_path, b"a: 1\n")) == {"a": 1}
    assert reading.read_yaml(put(tmp_path, b"")) is None
    (tmp_path / "link.json").symlink_to("a.json")
    assert reading.read_bytes(tmp_path / "link.json") == b""


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"a\.json is empty; it should hold JSON\."),
        (b" \n", r"a\.json is empty; it should hold JSON\."),
        (b'{"a":\n 1,', r"a\.json is not JSON: line 2, column 4: Expecting property name"),
        (b"\xff\xfe{", r"a\.json is not text in UTF-8: line 1 cannot be read\. Save it as UTF-8\."),
        (b"[1]", r"a\.json should hold an object with keys, but holds a list\."),
        (b"null", r"a\.json should hold an object with keys, but holds nothing"),
        (b'"x"', r"a\.json should hold an object with keys, but holds text"),
        (b"true", r"a\.json should hold an object with keys, but holds true or false"),
        (b"7", r"a\.json should hold an object with keys, but holds a number"),
        (b"[" * 100_000, r"a\.json is not JSON: .*recursion"),
        (b"9" * 5000, r"a\.json is not JSON: Exceeds the limit"),
    ],
)
def test_json_that_is_not_what_it_should_be(tmp_path, content, match):
    with pytest.raises(DataError, match=match):
        reading.read_object(put(tmp_path, content))


def test_yaml_says_where(tmp_path):
    with pytest.raises(CiodError, match=r"a\.json is not YAML: .*line 2"):
        reading.read_yaml(put(tmp_path, b"a: [\nb: c: d"))


def test_what_is_larger_than_the_bound_is_not_read(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(3 << 40)  # takes no room
    with pytest.raises(DataError, match=r"large has 3,145,728 MB; at most 64 MB are read from such a file"):
        reading.read_bytes(path)
    assert reading.read_bytes(put(tmp_path, b"12345"), 5) == b"12345"
    with pytest.raises(DataError, match="at most 0 MB"):
        reading.read_bytes(put(tmp_path, b"123456"), 5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc here")
def test_a_file_of_unknown_size_is_bounded_too():
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(DataError, match="at most 0 MB"):
        reading.read_bytes("/proc/self/maps", 5)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "zero"):
        with pytest.raises(DataError, match=rf"{name} is not a regular file but a device, a pipe or a socket"):
            reading.read_bytes(tmp_path / name)
    with pytest.raises(DataError, match=r"loop cannot be read: Too many levels of symbolic links"):
        reading.read_bytes(tmp_path / "loop")
    with pytest.raises(DataError, match="is a folder, not a file"):
        reading.read_bytes(tmp_path)
    with pytest.raises(DataError, match=r"The file .*absent does not exist\."):
        reading.read_bytes(tmp_path / "absent")
    with pytest.raises(DataError, match="cannot be read: embedded null"):
        reading.read_bytes("a\0b")


def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = put(tmp_path, b"{}")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.json cannot be read: Permission denied\."):
        reading.read_bytes(path)


def test_a_small_file_takes_little_memory_whatever_the_limit_is(tmp_path):
    """Read at once up to the limit, Python asks for 8 GB first, which a system with little memory refuses."""
    (tmp_path / "a.json").write_text("[1]")
    tracemalloc.start()
    assert reading.read_bytes(tmp_path / "a.json", reading.ANNOTATIONS) == b"[1]"
    assert tracemalloc.get_traced_memory()[1] < 8 * reading.MB
    tracemalloc.stop()


def test_files_with_a_stated_size_of_zero_are_read_completely():
    if Path("/proc/self/status").exists():
        assert b"VmRSS" in reading.read_bytes("/proc/self/status")
        with pytest.raises(reading.Unreadable, match="are read from such a file"):
            reading.read_bytes("/proc/self/status", 100)
