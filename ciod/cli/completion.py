"""Completion of settings in a shell, from a list in the package: importing PyTorch for it would take seconds.

``words.json`` is written by ``python scripts/settings_page.py``; ``tests/test_site.py`` compares it with the settings.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import typer


@cache
def _words() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "words.json").read_text(encoding="utf-8"))


def settings_of(command: str) -> list[str]:
    """The settings of a command, as they are written."""
    return list(_words()["settings"].get(command, []))


def setting(ctx: typer.Context, incomplete: str) -> list[str]:
    """``ep`` → ``epochs=``, ``method=il`` → ``method=ilyolox``. A shell that splits words at ``=`` (bash) gives the key
    and the sign as words of their own, and gets the value alone."""
    keys = settings_of(ctx.info_name or "")
    before: list[str] = [*(ctx.params.get("words") or ())]
    if before[1:] and before[-1] == "=":
        return _values(before[-2], incomplete)
    if before and incomplete == "=":
        return _values(before[-1], "")
    key, sign, value = incomplete.partition("=")
    if sign:
        return [f"{key}={v}" for v in _values(key, value)]
    return [f"{k}=" for k in keys if k.startswith(incomplete)]


def _values(key: str, start: str) -> list[str]:
    """Completions of a setting with a list of values; of several values, of the last one."""
    done, comma, last = start.rpartition(",")
    return [f"{done}{comma}{v}" for v in _words()["values"].get(key, []) if v.startswith(last)]


def topic(incomplete: str) -> list[str]:
    """Completions of the topic of ``ciod list``."""
    return [t for t in _words()["topics"] if t.startswith(incomplete)]


def after_topic(ctx: typer.Context, incomplete: str) -> list[str]:
    """``ciod list methods NAME``, or a setting of a scenario."""
    if ctx.params.get("what") == "methods":
        return [m for m in _words()["values"]["method"] if m.startswith(incomplete)]
    return setting(ctx, incomplete)
