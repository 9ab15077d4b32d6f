"""What the old model finds in the new images is kept: a resumed extension does not look again."""

from __future__ import annotations

import numpy as np
import pytest

from ciod.core.types import Detections
from ciod.extension import looked
from tests.fixed import index_of

NAMES = ("cat", "dog")


def test_what_was_written_is_read(tmp_path):
    some = Detections([[0, 0, 5, 5.5], [1, 2, 3, 4]], [0.9, 0.25], [1, 0], NAMES)
    none = Detections(np.zeros((0, 4)), [], [], NAMES)
    index, path = index_of([], NAMES, 3), tmp_path / looked.NAME
    looked.write(path, "key", [none, some, none])
    again = looked.read(path, "key", index, NAMES)
    assert again is not None and [len(d) for d in again] == [0, 2, 0]
    for name in ("boxes", "scores", "labels"):
        assert np.array_equal(getattr(again[1], name), getattr(some, name))


def test_another_key_another_number_of_images_and_a_damaged_file_are_looked_at_again(tmp_path, monkeypatch):
    found = [Detections([[0, 0, 5, 5]], [0.9], [1], NAMES)]
    path = tmp_path / looked.NAME
    assert looked.read(path, "key", index_of([], NAMES, 1), NAMES) is None
    looked.write(path, "key", found)
    assert looked.read(path, "other", index_of([], NAMES, 1), NAMES) is None
    assert looked.read(path, "key", index_of([], NAMES, 2), NAMES) is None
    path.write_bytes(path.read_bytes()[:-30])
    assert looked.read(path, "key", index_of([], NAMES, 1), NAMES) is None
    monkeypatch.setattr(looked, "MOST", 0)
    looked.write(tmp_path / "large.npz", "key", found)
    assert not (tmp_path / "large.npz").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_from_time_to_time(terminal, capsys):
    from rich.console import Console

    from ciod.core.terminal import counting

    place = Console(force_terminal=terminal, width=80)
    with counting(place, "measuring", 3, every=0.0) as tick:
        for _ in range(3):
            tick(1)
    out = capsys.readouterr().out
    assert "measuring" in out and (terminal or out.splitlines() == ["measuring: 1 of 3", "measuring: 2 of 3"])
