"""Settings of a comparison: from words, from a file, and how methods and seeds are written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ciod import methods
from ciod.config import load as config
from ciod.config.marks import NO_RESULT
from ciod.config.reader import RAW, Table
from ciod.config.settings import Run
from ciod.core import text_lists, typed, yaml_text
from ciod.core.errors import ConfigError
from ciod.core.files import is_file
from ciod.core.limits import LARGEST_SEED
from ciod.core.yaml_text import without_sources

SEEDS = 1000  # a larger number is a typing error
Upper = Literal["prefixes", "final", "none"]


class Compare(Run):
    """Everything that determines a comparison: the settings of its runs, and its own."""

    methods: Annotated[Any, RAW] = None
    """``a,b``, or a list of names and of mappings: name, settings and, if wanted, label."""
    seeds: int | list[int] | None = None
    """None: 1; 3 means 0, 1, 2; a list gives the seeds."""
    blocks: Annotated[Any, RAW] = None
    """Repetitions that differ in fold, class order and seed: a number, or a list of ``{fold: 1, seed: 7}``."""
    equal_steps: bool = False
    """Joint training takes as many optimiser steps as all tasks together, and rows with other steps are refused."""
    gate: Annotated[float, NO_RESULT] = 0.9
    """A first task counts as learnt from this share of joint training's AP50 on its classes; 0: no such gate."""
    margin: Annotated[float, NO_RESULT] = 0.02
    """Two methods count as equal if their difference in AP is within this margin (0.02: two points)."""
    only: Annotated[str | None, NO_RESULT] = None
    """``1/2``: train the first of two parts of the runs; without it, the remaining runs are trained and the page is
    written."""
    jobs: Annotated[int | None, NO_RESULT] = None
    """Number of parallel runs, each in its own process and on its own GPU; None: as many as there are GPUs, or 1."""
    on: Annotated[Literal["ray"] | None, NO_RESULT] = None
    """``ray``: the runs are trained on a Ray cluster (``RAY_ADDRESS``, or the one on this machine)."""
    upper: Upper | None = None
    """Joint models for upper bounds: of all class prefixes, the final one, or none; None: as the tasks need."""
    against: Annotated[str | None, NO_RESULT] = None
    """Label of the method that the others are compared with; None: the first."""
    cache: Annotated[str | None, NO_RESULT] = None
    """Folder of first tasks and joint models; None: ``out``."""


OWN = {
    "seed": "seeds=3 means 0, 1, 2; seeds='[4, 7]' lists them",
    "method.name": "write methods=a,b,c",
    "first": "the first task is shared automatically",
    "upper_bound": "write upper=prefixes, final or none",
    "resume": "an interrupted comparison resumes when the command is repeated",
}
"""Settings that a comparison sets for each of its runs, and what to write instead."""
TABLE = Table(Compare, config.TABLE.short, refused=OWN, default_method=methods.DEFAULT)
WORDS = (
    "methods",
    "seeds",
    "blocks",
    "equal_steps",
    "gate",
    "margin",
    "only",
    "jobs",
    "on",
    "upper",
    "against",
    "out",
    "cache",
)
"""Settings of the comparison itself; everything else is a setting of every run."""


@dataclass(frozen=True)
class Rules:
    """When rows are comparable, and which values are shown."""

    equal_steps: bool = False
    gate: float = 0.9
    """Minimum share of joint training's AP50 that a first task must reach on its classes for ratios to be shown."""
    margin: float = 0.02
    """Largest difference in AP that counts as equal."""


def rules_of(equal_steps: Any, gate: Any, margin: Any) -> tuple[Rules, list[str]]:
    """The rules, and their problems."""
    problems = []
    if not isinstance(equal_steps, bool):
        problems.append(f"equal_steps: {equal_steps!r} should be true or false.")
    for key, value, top in (("gate", gate, 1), ("margin", margin, 0.5)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= top:
            problems.append(f"{key}: {value!r} must be a number from 0 to {top}.")
    return (Rules() if problems else Rules(equal_steps, float(gate), float(margin))), problems


def where_of(own: dict[str, Any]) -> tuple[int | None, str | None, list[str]]:
    """``jobs`` and ``on``, taken out of ``own``, and their problems."""
    jobs, on, problems = own.pop("jobs", None), own.pop("on", None), []
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        problems.append(f"jobs: {jobs!r} must be a number from 1.")
    if on not in (None, "ray"):
        problems.append(f"on: '{on}' is not allowed; allowed: ray")
    return jobs, on, problems


def part_of(only: Any) -> tuple[int, int] | None:
    """``2/3`` → (2, 3); None for all runs.

    Raises:
        ConfigError: it is not K/N with 1 ≤ K ≤ N.
    """
    if only is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", str(only))
    if not found or int(found[1]) > int(found[2]):
        raise ConfigError([f"only: '{only}' is not a part of the runs; write 1/3, 2/3 or 3/3 for a third of them."])
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Entry:
    """One row of the table: a method with its settings."""

    label: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    """The recipe that the method's settings come from."""


def opened(
    scenario: str | Path | None, given: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[str | Path | None, dict[str, Any], dict[str, Any]]:
    """Scenario, words of the comparison and settings; also from a file that has methods:, if ``scenario`` is one.

    Returns:
        The arguments unchanged if ``scenario`` is not such a file. The arguments take precedence over the file.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = Path(str(scenario))
    if path.suffix not in (".yaml", ".yml") or not is_file(path):
        return scenario, dict(given), dict(settings)
    content, problems = config.read_yaml(path)
    if problems:
        raise ConfigError(problems)
    if "methods" not in content:
        return scenario, dict(given), dict(settings)
    words = {k: content.pop(k) for k in WORDS if k in content}
    return None, {**words, **given}, {**config.by_full_key(content), **config.by_full_key(settings)}


def own_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the comparison itself (``WORDS``) as values of their types, and the problems."""
    return TABLE.settings(given)


def entries(methods: str | Sequence[str | Mapping[str, Any]] | None) -> list[Entry]:
    """Methods by name or as mappings of name, settings and (if wanted) label → entries with distinct labels.

    Raises:
        ConfigError: a mapping without name, or two equal entries.
    """
    given = _listed(methods)
    problems, found = [], []
    for m in given:
        settings: dict[str, Any] = {"name": m} if isinstance(m, str) else dict(m) if isinstance(m, Mapping) else {}
        name, label = (typed.fit(settings.pop(k, None), str | None) for k in ("name", "label"))
        if not isinstance(name, str):
            problems.append(
                f"methods: {without_sources(m)!r} is neither a method's name nor a mapping with name: and its settings."
            )
            continue
        recipe = name if name in config.recipes() else None
        if recipe:
            name, theirs = of_recipe(recipe)
            settings = {**theirs, **settings}
        found.append((label or recipe, name, _of_types(name, settings), recipe))
    if not given:
        problems.append("methods= is needed: methods=finetune,pseudo_label,ilyolox")
    made = [
        Entry(str(label or _label(name, s, [o for _, n, o, _ in found if n == name])), name, s, recipe)
        for label, name, s, recipe in found
    ]
    twice = sorted({e.label for e in made if [o.label for o in made].count(e.label) > 1})
    problems += [f"methods: there are two entries '{t}'; give them other settings, or a label: each." for t in twice]
    if problems:
        raise ConfigError(problems)
    return made


def of_recipe(recipe: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of a recipe's method."""
    flat, _ = config.gather(recipe)
    settings = {k.removeprefix("method."): v for k, v in flat.items() if k.startswith("method.")}
    return str(settings.pop("name", methods.DEFAULT)), settings


def _listed(methods: Any) -> list[Any]:
    """The methods as they were written, as a list.

    Raises:
        ConfigError: brackets that do not match.
    """
    if isinstance(methods, str) and methods.lstrip().startswith(("[", "{")):
        try:
            methods = yaml_text.parse_sourced(methods)
        except yaml_text.NotYAML:
            raise ConfigError([f"methods: '{methods}' {typed.QUOTE}"]) from None
    if isinstance(methods, str):
        return [str(m) for m in text_lists.read_names(methods) or [] if m]
    return list(methods) if isinstance(methods, (list, tuple)) else [] if methods is None else [methods]


def _of_types(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a method as values of their types; unknown ones are reported when they are loaded."""
    method = config.TABLE.method(name)
    fields = method.model_fields if method else {}
    found = {}
    for key, value in settings.items():
        own = fields[key].annotation if key in fields else config.TABLE.annotation(config.TABLE.full(key))
        try:
            found[key] = typed.fit(value, own or Any)
        except typed.Unreadable as error:
            raise ConfigError([f"methods: {key}: '{value}' {error}"]) from None
    return found


def _label(name: str, settings: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> str:
    """The name, and for several variants of a method the settings in which this one differs."""
    stem = name.partition(":")[2] or name
    telling = [k for k in settings if any(o.get(k) != settings[k] for o in variants)]
    shown = ", ".join(f"{k}={written(settings[k])}" for k in telling)
    return f"{stem} ({shown})" if shown else stem


def written(value: Any) -> str:
    """A value as it is written in YAML."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def seeds_of(given: int | Sequence[int] | str) -> list[int]:
    """3 → [0, 1, 2]; a list gives the seeds.

    Raises:
        ConfigError: neither a number from 1 to SEEDS nor a list of different numbers from 0.
    """
    if isinstance(given, str) and "," in given:
        given = [int(s) if s.strip().isdecimal() else -1 for s in given.split(",")]
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= SEEDS:
        return list(range(given))
    listed = list(given) if isinstance(given, (list, tuple)) else []
    if (
        not listed
        or any(not isinstance(s, int) or not 0 <= s <= LARGEST_SEED for s in listed)
        or len({*listed}) < len(listed)
    ):
        raise ConfigError(
            [f"seeds: {given!r} must say how many seeds (1 to {SEEDS:,}), or list different ones: seeds=0,7,42."]
        )
    return listed
