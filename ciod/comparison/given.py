"""The settings of a comparison's runs, from a scenario, a file, words and the settings of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ciod import methods
from ciod.comparison.settings import OWN, TABLE, Entry, written
from ciod.config import load as config
from ciod.config import outputs
from ciod.config.checks import model_folder, target
from ciod.config.load import Run
from ciod.core.errors import ConfigError, did_you_mean
from ciod.core.files import is_file
from ciod.core.reading import Unreadable, read_yaml

# Sections of settings that a single row can have, too: additional images, from the second task on.
BESIDE = ("memory", "pool")


def base_of(scenario: str | Path | None, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings of every run by full key, without those that the comparison sets itself."""
    from ciod.data.scenarios import scenario as scenarios

    path, given = None, dict(settings)
    if scenario is not None:
        name = str(scenario)
        if name in scenarios.available() or _is_protocol(Path(name)):
            given = {"scenario": name, **given}
        elif name in config.recipes() or name.endswith((".yaml", ".yml")):
            path = Path(name)
        else:
            known = [*scenarios.available(), *config.recipes()]
            return {}, [f"compare: there is no scenario '{name}'; {did_you_mean(name, known)}"]
    own, problems = config.gather(None, given, TABLE)
    for k, why in OWN.items():
        if k in own:
            problems.append(f"{k.removesuffix('.name')}: not a setting of a comparison; {why}.")
    for k in own:
        if k.startswith("method.") and k not in OWN:
            leaf = k.removeprefix("method.")
            example = f"[{{name: ilyolox, {leaf}: {written(own[k])}}}, …]"
            problems.append(f"{k}: this setting belongs to a method. Write methods='{example}'.")
    merged, more = config.gather(path, given, TABLE)
    kept = {k: v for k, v in merged.items() if k not in (*OWN, "out") and not k.startswith("method.")}
    return kept, [*problems, *(p for p in more if p not in problems)]


def kept_settings(scenario: str | Path | None, entries: Sequence[Entry]) -> list[Entry]:
    """``entries`` with the settings of their methods from a file or recipe, unless they are set here."""
    name = str(scenario)
    if name not in config.recipes() and not (name.endswith((".yaml", ".yml")) and not _is_protocol(Path(name))):
        return list(entries)
    flat, _ = config.gather(name)
    method = {k.removeprefix("method."): v for k, v in flat.items() if k.startswith("method.")}
    named = method.pop("name", methods.DEFAULT)
    return [replace(e, settings={**method, **e.settings}) if e.name == named else e for e in entries]


def with_recipes(
    base: dict[str, Any], settings: Mapping[str, Any], entries: Sequence[Entry]
) -> tuple[dict[str, Any], list[str]]:
    """``base`` on top of the run settings of the recipes among ``entries``, which must be the same for all.

    Args:
        settings: those that were given for every run; they take precedence over recipes.
    """
    recipes = [e.recipe for e in entries if e.recipe]
    if not recipes:
        return base, []
    flats = {}
    for recipe in dict.fromkeys(recipes):
        flat, _ = config.gather(recipe)
        flats[recipe] = {k: v for k, v in flat.items() if not k.startswith("method.") and k not in (*OWN, "out")}
    first, problems = recipes[0], []
    mine = {**flats[first], **base}
    by_hand = config.by_full_key(settings)
    for recipe, flat in flats.items():
        keys = [k for k in {**mine, **flat} if k in flat and flat[k] != mine.get(k) and k not in by_hand]
        if keys:
            differ = "; ".join(f"{k} is {written(mine.get(k))}, there {written(flat[k])}" for k in keys[:4])
            problems.append(
                f"methods: the recipe {recipe} has other settings than this comparison "
                f"({differ}{'; …' * bool(keys[4:])}). All rows share the settings of the run; set those that differ "
                "here, for all rows."
            )
    return mine, problems


def wrong_words(upper: Any, out: Any, cache: Any, against: Any) -> list[str]:
    """What is wrong with the comparison's own settings."""
    problems = []
    if upper not in (None, "prefixes", "final", "none"):
        problems.append(f"upper: '{upper}' is not allowed; allowed: prefixes, final, none")
    for key, value in (("out", out), ("cache", cache), ("against", against)):
        if value is not None and not isinstance(value, (str, int, Path)):
            problems.append(f"{key}: {value!r} is not a name.")
    if not problems:
        places = {key: Path(str(value)) for key, value in (("out", out), ("cache", cache)) if value}
        problems += [p for key, place in places.items() for p in outputs.comparison_folder(key, place)]
    return [*problems, *target("out", out), *model_folder("cache", cache)]  # ``out`` is a setting of every run


def _is_protocol(path: Path) -> bool:
    """Whether a file is a scenario: it has only switches of the protocol."""
    from ciod.data.scenarios.protocol import Protocol

    if path.suffix not in (".yaml", ".yml") or not is_file(path):
        return False
    try:
        content = read_yaml(path)
    except Unreadable:
        return False
    return (
        isinstance(content, dict)
        and bool({"description", "name"} & set(content))
        and set(content) <= set(Protocol.model_fields)
    )


def of_method(entry: Entry) -> dict[str, Any]:
    """An entry's settings by full key."""
    beside = {k: v for k, v in entry.settings.items() if k.split(".")[0] in BESIDE}
    own = {f"method.{k}": v for k, v in entry.settings.items() if k not in beside}
    return {"method.name": entry.name, **own, **config.by_full_key(beside)}


def load(flat: dict[str, Any], out: Path, seed: int, problems: list[str]) -> Run | None:
    try:
        return config.load(None, {**flat, "seed": seed, "out": str(out)})
    except ConfigError as e:
        problems += e.problems
        return None
