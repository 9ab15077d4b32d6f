"""The wheel holds everything the package reads when it runs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed, and tests download nothing")
def test_the_wheel_has_code_and_package_data(tmp_path):
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        inside = {n for n in file.namelist() if ".dist-info/" not in n}
        about = next(n for n in file.namelist() if n.endswith("METADATA"))
        metadata = file.read(about).decode()
    there = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "ciod"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if there.returncode:
        pytest.skip("not a git checkout: there is no list of files to compare with")
    assert inside == set(there.stdout.split("\n")) - {""}
    assert any(n.endswith(".yaml") for n in inside) and "ciod/data/scenarios/shapes-6+4.yaml" in inside
    for extra in ("onnx", "video", "dev"):
        assert f"Provides-Extra: {extra}" in metadata
    assert "Requires-Python: >=3.10" in metadata
