"""Writes docs/settings.md, the settings of every command, from the models that read them, and for completion in a shell
ciod/cli/words.json.

    python scripts/settings_page.py

``tests/test_site.py`` fails when they are not what this writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel

from ciod import detectors, listing, methods, trackers
from ciod.comparison import settings as comparison
from ciod.config import catalogue, commands, load
from ciod.config.catalogue import BY_EFFORT, NONE, Setting
from ciod.config.reader import Table
from ciod.data.scenarios import scenario
from ciod.extension import settings as extension
from ciod.methods.base.method import Method
from ciod.training.effort import KEYS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
WORDS = Path(__file__).resolve().parents[1] / "ciod" / "cli" / "words.json"
HEAD = """# Settings

<!-- written by scripts/settings_page.py -->

Every setting of every command. A setting is written `key=value`, on the command line or as `key: value` in a YAML file.

- **setting**: the full name, and in brackets the shorter one, if there is one.
- **default**: `—` (None in the last column) means that there is none, or that it is chosen when the command runs.
  `by effort`: what `effort` chooses from data, start and machine.
- **changes**: which results the setting changes. `later tasks`: all except those of the first task, so that runs that
  differ in it can share one. `none`: no result; such a setting may change when a run is resumed.
"""
COMMANDS = (
    ("ciod eval MODEL", commands.EVAL),
    ("ciod predict MODEL FILE...", commands.PREDICT),
    ("ciod export MODEL onnx=FILE", commands.EXPORT),
    ("ciod export MODEL mmdet=FOLDER", commands.EXPORTS["mmdet"]),
    ("ciod check MODEL", commands.CHECK),
    ("ciod push MODEL user/model", commands.PUSH),
    ("ciod demo", commands.DEMO),
    ("ciod data NAME", commands.DOWNLOAD),
)
TITLES = {"": "The run", "protocol": "Scenario", "detector": "Detector", "train": "Training", "augment": "Augmentation",
          "eval": "Evaluation", "memory": "Memory", "pool": "Pool"}  # fmt: skip


def rows(settings: Iterable[Setting], short: Mapping[str, str], needed: Iterable[str] = ()) -> str:
    """One Markdown table.

    Args:
        short: full key → the shorter one.
        needed: keys of settings that have no default because they must be given.
    """
    lines = ["| setting | type | default | changes | what it does |", "| --- | --- | --- | --- | --- |"]
    for s in settings:
        name = f"`{s.key}`" + (f" (`{short[s.key]}`)" if s.key in short else "")
        if s.key.startswith("protocol.") and s.key in short:  # as everyone writes them
            name = f"`{short[s.key]}`"
        default = s.default if s.default in (NONE, BY_EFFORT) else f"`{s.default}`"
        default = "must be given" if s.key in needed else default
        cells = name, s.kind, default, s.changes, s.note.replace("``", "`")
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def shorter(table: Table) -> dict[str, str]:
    """Full key → the shorter one that a command takes for it."""
    return {full: key for key, full in table.short.items() if key != full}


def sections(table: Table) -> str:
    """One table for each section of a command's settings, those at the top first."""
    found: dict[str, list[Setting]] = {"": []}
    for s in catalogue.settings(table.model, by_effort=KEYS):
        found.setdefault(s.section, []).append(s)
    return "\n\n".join(f"### {TITLES[name]}\n\n{rows(some, shorter(table))}" for name, some in found.items())


def own(model: type[BaseModel], parent: type[BaseModel] | None = None) -> list[Setting]:
    """The settings of a model at its top that its parent does not have."""
    known = set() if parent is None else set(parent.model_fields)
    return [s for s in catalogue.settings(model) if not s.section and s.key not in known]


def needed(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.is_required()]


def of_json(settings: Iterable[Setting]) -> Iterable[Setting]:
    """``json_file`` is written ``json``: a field of pydantic cannot have that name."""
    return (Setting(**{**vars(s), "key": "json"}) if s.key == "json_file" else s for s in settings)


def page() -> str:
    """The text of docs/settings.md."""
    parts = [HEAD, "## ciod train", sections(load.TABLE)]
    parts += ["## ciod compare SCENARIO", "Takes every setting of `ciod train` for all its runs, and its own:"]
    parts.append(rows(own(comparison.Compare, load.Run), {}))
    parts.append("It sets these itself:\n\n" + "\n".join(f"- `{k}`: {v}" for k, v in comparison.OWN.items()))
    parts += [
        "## ciod extend MODEL",
        "Takes `train.…`, `augment.…` and `eval.…` as `ciod train` does, and its own:",
    ]
    of_extend = [s for s in own(extension.Extend) if s.key != "model"]
    parts.append(rows(of_extend, {}, needed(extension.Extend)))
    for title, table in COMMANDS:
        parts += [f"## {title}", rows(of_json(catalogue.settings(table.model)), {}, needed(table.model))]
    parts += ["## Methods", "Settings of a method are written `method.NAME=VALUE`. Every method has"]
    common = list(catalogue.settings(Method))
    parts.append(rows(common, {}) if common else "none.")
    for name in methods.available():
        of_method = own(methods.find(name), Method)
        parts.append(f"### {name}\n\n" + (rows(of_method, {}) if of_method else "It has no settings of its own."))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def words() -> str:
    """The text of ciod/cli/words.json, from which a shell completes settings."""
    tables = {"train": load.TABLE, "compare": comparison.TABLE, "extend": extension.TABLE}
    keys = {name: table.keys() for name, table in tables.items()}
    for title, table in COMMANDS:
        name = title.split()[1]
        keys[name] = [*dict.fromkeys([*keys.get(name, []), *(s.key for s in of_json(catalogue.settings(table.model)))])]
    keys["compare"] = [*dict.fromkeys([*(s.key for s in own(comparison.Compare, load.Run)), *keys["compare"]])]
    scenarios = list(scenario.available())
    values = {
        "method": list(methods.available()),
        "methods": list(methods.available()),
        "detector": list(detectors.available()),
        "scenario": scenarios,
        "effort": ["quick", "normal", "thorough"],
        "log": list(trackers.EXTRAS),
        "metric": ["coco", "voc07", "voc"],
        "device": ["auto", "cpu", "cuda"],
    }
    topics = [*listing.TOPICS, *scenarios]
    content = {"topics": topics, "values": values, "settings": {k: sorted(v) for k, v in sorted(keys.items())}}
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    WORDS.write_text(words(), encoding="utf-8")
