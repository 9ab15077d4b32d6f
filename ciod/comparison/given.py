"""The settings of a comparison's runs, from what was given: a scenario, a file, words, the settings of a method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ciod.comparison.settings import OWN, TABLE, Entry, written
from ciod.config import load as config
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
        elif name.endswith((".yaml", ".yml")):
            path = Path(name)
        else:
            return {}, [f"compare: there is no scenario '{name}'; {did_you_mean(name, scenarios.available())}"]
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


def _is_protocol(path: Path) -> bool:
    """Whether a file is a scenario: it holds only switches of the protocol."""
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
