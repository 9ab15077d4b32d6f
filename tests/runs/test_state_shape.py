"""States with a correct checksum but other entries than a run writes give an error message."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from ciod.core.errors import CiodError
from ciod.training import checkpoint
from tests.runs.commands import go

GONE = object()


def changed(state: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a state with another entry, or without it."""
    head, _, rest = key.partition(".")
    entry = changed(state.get(head) or {}, rest, value) if rest else value
    return {**{k: v for k, v in state.items() if k != head}, **({} if entry is GONE else {head: entry})}


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        *[
            (key, GONE, rf"state\.pt is not the state of a run: its entry '{key}' is missing\. No intact checkpoint is")
            for key in ("settings", "identity", "identity.data", "identity.code", "task", "seconds", "results",
                        "results.tasks", "results.ap", "warnings")
        ],
        *[
            (key, [3], rf"its entry '{key}' is of type list\.")
            for key in ("settings", "identity", "task", "seconds", "results", "chosen", "effort", "memory", "fit")
        ],
        ("warnings", 3, r"its entry 'warnings' is of type int\."),
        ("task", True, r"its entry 'task' is of type bool\."),
        ("task", -1, r"its entry 'task' is -1\."),
        ("fit", {"done": 3}, r"its entry 'fit.method' is missing"),
        ("format", 99, r"holds a run of another version of ciod; choose another out="),
        ("format", GONE, r"holds a run of another version of ciod"),
        ("command", "extend", r"holds a run of ciod extend; choose another out="),
        ("task", 7, r"task-7/model\.safetensors is not a readable model file"),
    ],
)  # fmt: skip
def test_a_state_with_another_entry(data, whole, tmp_path, key, value, match):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    state = checkpoint.load_state(out / "last" / checkpoint.NEWEST)
    assert state is not None
    for path in (out / "last").glob("*.pt"):
        path.unlink()
    checkpoint.save_state(out / "last" / checkpoint.NEWEST, changed(state, key, value))
    with pytest.raises(CiodError, match=match):
        go(data, out)


@pytest.mark.parametrize("content", [[1], None, "text", 3])
def test_a_state_that_is_not_a_dict(data, whole, tmp_path, content):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for path in (out / "last").glob("*.pt"):
        path.unlink()
    checkpoint.save_state(out / "last" / checkpoint.NEWEST, content)
    with pytest.raises(CiodError, match=rf"is not the state of a run: it holds a {type(content).__name__}\."):
        go(data, out)


def test_an_older_state_is_used_for_one_that_is_none(data, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    state = checkpoint.load_state(out / "last" / checkpoint.NEWEST)
    assert state is not None
    checkpoint.save_state(out / "last" / checkpoint.NEWEST, changed(state, "settings", GONE))  # the other is kept
    go(data, out)
