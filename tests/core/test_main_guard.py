"""A script without a main guard, where processes are spawned: told in a sentence, before anything is trained twice."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from ciod.core import main_guard
from ciod.core.errors import CiodError

BEGIN = """
import multiprocessing
multiprocessing.set_start_method({method!r}, force=True)
from ciod.core import main_guard

def work():
    main_guard.check()
    print("trains")

"""
UNGUARDED = "work()\n"
GUARDED = "if __name__ == '__main__':\n    work()\n"
INSIDE = "from contextlib import suppress\nwith suppress(KeyError):\n    if '__main__' == __name__:\n        work()\n"
LEAVES = "import sys\nif __name__ != '__main__':\n    sys.exit()\nwork()\n"
OTHER_CONDITION = "import sys\nif len(sys.argv) < 9:\n    work()\n"


def run(tmp_path: Path, method: str, body: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "my training.py"
    script.write_text(BEGIN.format(method=method) + body)
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("method", "body"), [("spawn", UNGUARDED), ("spawn", OTHER_CONDITION)])
def test_the_script_and_its_line_are_named(tmp_path, method, body):
    done = run(tmp_path, method, body)
    line = done.stderr.strip().splitlines()[-1]
    assert "trains" not in done.stdout and f"my training.py, line {12 if 'argv' in body else 10}: " in line
    assert 'put the call under `if __name__ == "__main__":`, or use train.workers=0' in line


@pytest.mark.parametrize(
    ("method", "body"), [("fork", UNGUARDED), ("spawn", GUARDED), ("spawn", INSIDE), ("spawn", LEAVES)]
)
def test_a_script_that_is_right_runs(tmp_path, method, body):
    done = run(tmp_path, method, body)
    assert done.stdout == "trains\n", done.stderr


def test_a_process_that_runs_the_script_again_is_stopped(monkeypatch):
    """Its parent could not see it: the training was started by a thread, say."""
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(CiodError, match=r"the script: the loader processes import the script again on this system"):
        main_guard.check()
