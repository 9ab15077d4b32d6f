"""The names of the package are what they say, whatever has been imported before."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import ciod


def test_public_names_survive_the_import_of_every_module():
    """A subpackage of the same name would take a function's place as soon as somebody imports it."""
    modules = [m.name for m in pkgutil.walk_packages(ciod.__path__, "ciod.")]
    assert len(modules) > 50
    code = f"""
import importlib, ciod
for name in {modules!r}:
    importlib.import_module(name)
from types import ModuleType
print([n for n in ciod.__all__ if isinstance(getattr(ciod, n), ModuleType)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_listed():
    for name in ciod.__all__:
        assert getattr(ciod, name) is not None
    assert set(ciod.__all__) <= set(dir(ciod))


def test_the_package_and_its_metadata_have_one_version():
    """ciod/core/version.py is the source; the build reads it without importing the package."""
    text = (Path(ciod.__file__).parent / "core/version.py").read_text(encoding="utf-8")
    assert f'__version__ = "{ciod.__version__}"' in text
    project = Path(ciod.__file__).parents[1] / "pyproject.toml"
    assert not re.search(r"^version *=", project.read_text(encoding="utf-8"), re.M)
