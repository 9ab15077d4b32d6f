"""Settings: YAML and ``key=value`` overrides → a validated Run, with every problem in one message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ciod.config import checks
from ciod.config.checks import data_folder
from ciod.config.settings import DetectorSettings, Evaluation, Run, Train
from ciod.core import reading, yaml_text
from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.files import is_file
from ciod.core.validation_messages import problems_of
from ciod.data.scenarios.scenario import Protocol

__all__ = ["DetectorSettings", "Evaluation", "Run", "Train", "data_folder", "load", "parse_overrides", "problems_of"]

_BYTES = re.compile("[\udc80-\udcff]")  # in a path that is no UTF-8, as Python has it; YAML knows no such text
# These settings of the protocol may stand at the top, where people look for them.
_PROTOCOL = [k for k in Protocol.model_fields if k not in ("name", "description", "data")]
# A plain value of these sections is their most important setting.
_NAMED = {"detector": "detector.name", "method": "method.name", "memory": "memory.size", "pool": "pool.folder"}


def _leaves(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Leaf name → dotted key, of every setting; ``batch`` and the like mean training before evaluation."""
    found: dict[str, list[str]] = {}
    for key, f in model.model_fields.items():
        kind = f.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for leaf, dotted in _leaves(kind, f"{prefix}{key}.").items():
                found.setdefault(leaf, []).append(dotted)
        else:
            found.setdefault(key, []).append(f"{prefix}{key}")
    return {leaf: keys[0] for leaf, keys in found.items()}


def shorthands() -> dict[str, str]:
    """Settings that may be written without their section: ``epochs`` for ``train.epochs``."""
    top = set(Run.model_fields)
    short = {leaf: key for leaf, key in _leaves(Run).items() if "." in key and leaf not in top and leaf != "name"}
    short = {leaf: key for leaf, key in short.items() if key.split(".")[0] not in ("memory", "pool")}
    return {**short, **{k: f"protocol.{k}" for k in _PROTOCOL}}


def parse_overrides(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """``key=value`` words → flat settings (values read as YAML), and problems."""
    flat, problems = {}, []
    for word in words:
        key, eq, text = word.partition("=")
        if not eq or not key:
            problems.append(f"'{word}' is not a setting; write key=value, for example epochs=30.")
            continue
        try:
            # 3+3 and 1e-3 are what people write; YAML 1.1 reads the latter as a string
            flat[key.strip()] = text if _BYTES.search(text) else _scalar(yaml_text.parse(text))
        except yaml_text.NotYAML:
            problems.append(f"{key}: '{text}' cannot be read; quote it or check its brackets.")
    return flat, problems


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and dotted.split(".")[0] in Run.model_fields:
            flat |= _flatten(value, f"{dotted}.")
        else:
            flat[dotted] = value
    return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for dotted, value in flat.items():
        *path, leaf = dotted.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def _normal_key(key: str, short: dict[str, str]) -> str:
    return _NAMED.get(key) or short.get(key, key)


RECIPES = Path(__file__).resolve().parent / "recipes"


def recipes() -> list[str]:
    """Names of the recipes in the package: settings of published experiments."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def gather(
    path: str | Path | None = None, overrides: Sequence[str] | dict[str, Any] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Settings of a YAML file, a recipe or nothing, ``overrides`` on top, by full dotted key, and problems so far."""
    problems: list[str] = []
    content: dict[str, Any] = {}
    if path is not None:
        content, problems = read_yaml(Path(path))
    flat = {}
    if isinstance(overrides, dict):
        flat = dict(overrides)
    else:
        flat, more = parse_overrides(overrides)
        problems += more
    short = shorthands()
    merged = {**by_full_key(content), **by_full_key(flat)}
    for key, value in _method_defaults(merged).items():
        merged.setdefault(key, value)
    return merged, problems + _unknown(merged, short)


def by_full_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested or shortened settings → full dotted key and value: ``lr`` → ``train.lr``."""
    short = shorthands()
    return {_normal_key(key, short): value for key, value in _flatten(dict(settings)).items()}


def load(
    path: str | Path | None = None,
    overrides: Sequence[str] | dict[str, Any] = (),
    *,
    absent: list[str] | None = None,
) -> Run:
    """A validated Run from a YAML file, a recipe of the package, or nothing, and overrides; overrides win.

    Args:
        overrides: ``key=value`` words, or a mapping of dotted keys.
        absent: takes the sentences about data and weights that are not there, which then are no errors; for plans.

    Raises:
        ConfigError: every problem at once. Nothing of the data has been read except, at most, its class names.
    """
    merged, problems = gather(path, overrides)
    known = {k: v for k, v in merged.items() if k.split(".")[0] in Run.model_fields}
    tree = _nest(known)
    protocol, trouble = _protocol(tree)
    problems += trouble
    tree["protocol"] = protocol
    problems += [p for p in problems_of(Run, tree) if not any(p.split(":")[0] == q.split(":")[0] for q in problems)]
    missing = [*checks.files(tree), *checks.absent_data(tree)]
    if absent is None:
        problems += missing
    else:
        absent += missing
    problems += [*checks.method(tree), *checks.training(tree), *checks.extra(tree), *checks.data(tree)]
    if problems:
        raise ConfigError(problems)
    return Run.model_validate(tree)


def read_yaml(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Content of a settings file or of a recipe, and what is wrong with it."""
    if not is_file(path) and str(path) in recipes():
        path = RECIPES / f"{path}.yaml"
    if not is_file(path):
        hint = did_you_mean(path.stem, recipes())
        hint = hint if "mean" in hint else "'ciod list recipes' names those of the package."
        return {}, [f"There is no settings file {path}, nor a recipe of that name; {hint}"]
    try:
        content = reading.read_yaml(path) or {}
    except reading.Unreadable as e:
        return {}, [str(e)]
    if not isinstance(content, dict):
        return {}, [f"{path} must hold settings (key: value), not a {type(content).__name__}."]
    return content, []


def _method_defaults(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings of the run that a method brings along."""
    from ciod import methods

    try:
        return methods.find(str(flat.get("method.name", "ilyolox"))).run_defaults
    except CiodError:
        return {}  # said by check.method


def _unknown(flat: dict[str, Any], short: dict[str, str]) -> list[str]:
    """Keys whose first part is no setting; nested ones are found by validation."""
    names = [*Run.model_fields, *short]
    out = []
    for key in flat:
        head = key.split(".")[0]
        if head not in Run.model_fields:
            out.append(f"{key}: there is no such setting; {did_you_mean(key.split('.')[-1], names)}")
    return out


def _protocol(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The scenario's switches with the run's on top."""
    from ciod.data.scenarios.scenario import read_protocol

    base: dict[str, Any] = {}
    problems = []
    if tree.get("scenario"):
        try:
            base = read_protocol(str(tree["scenario"])).model_dump(exclude_unset=True)
        except ConfigError as e:
            problems += e.problems
        except CiodError as e:
            problems.append(str(e))
    if not isinstance(tree.get("protocol") or {}, Mapping):
        problems.append(f"protocol: should be settings of the scenario (got {tree['protocol']!r})")
    own = checks.section(tree, "protocol")
    if checks.section(tree, "method").get("name") == "joint":
        own = {**own, "joint": True}
    return {**base, **own}, problems
