"""A script without a main guard, where processes are spawned: an error says so before anything is trained twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
THREAD = """
import threading

def train():
    try:
        main_guard.check()
    except Exception as error:
        print(error, flush=True)
        return
    child = multiprocessing.Process(target=print)
    child.start()
    child.join()

thread = threading.Thread(target=train)
thread.start()
thread.join()
"""
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


def test_a_process_that_runs_the_script_again_is_stopped(tmp_path):
    """A thread starts the training: no frame of the script is around the call, so only the new process can see it."""
    done = run(tmp_path, "spawn", THREAD)
    assert "the script: the loader processes import the script again on this system and would train, too" in done.stdout
