"""Python's search for garbage: off while much is made, and as it was afterwards."""

from __future__ import annotations

import gc
import importlib
import sys

import pytest

import ciod
from ciod import cli
from ciod.core.gc_pause import uncollected


@pytest.fixture
def imported(monkeypatch) -> dict[str, bool]:
    """Modules that were asked for, and whether Python looked for garbage then."""
    seen: dict[str, bool] = {}
    real = importlib.import_module

    def watched(name: str, package: str | None = None):
        seen[name] = gc.isenabled()
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", watched)
    return seen


def test_it_is_as_it_was_also_after_a_failure():
    with pytest.raises(ZeroDivisionError), uncollected():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


def test_garbage_collection_that_was_off_stays_off():
    gc.disable()
    try:
        with uncollected(), uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_command_imports_torch_without_it_and_runs_with_it(imported, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ciod", "list"])
    running = []
    monkeypatch.setattr("ciod.listing.show", lambda *_, **__: running.append(gc.isenabled()))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and imported["torchvision"] is False and running == [True]


def test_a_public_name_is_imported_without_it(imported):
    assert callable(ciod.load)
    assert imported["ciod.detectors.files.weights"] is False and gc.isenabled()
