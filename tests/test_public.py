"""The names of the package are what they say, whatever has been imported before."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

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
    assert importlib.import_module("ciod").__version__
