"""Settings: YAML and ``key=value`` overrides → a validated Run, with every problem in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ciod import detectors, methods
from ciod.config import checks
from ciod.config.checks import data_folder
from ciod.config.reader import Table, nest, read_file, split
from ciod.config.settings import DetectorSettings, Evaluation, Run, Train
from ciod.core.errors import CiodError, ConfigError, nearest
from ciod.core.files import is_file
from ciod.core.user_code import is_users, where
from ciod.core.validation_messages import problems_of
from ciod.data.scenarios.protocol import Protocol

__all__ = ["DetectorSettings", "Evaluation", "Run", "Train", "data_folder", "load", "problems_of"]

# These settings of the protocol may be at the top level, where people expect them.
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


TABLE = Table(Run, {**shorthands(), **_NAMED}, default_method=methods.DEFAULT)
"""The settings of a training run."""


RECIPES = Path(__file__).resolve().parent / "recipes"


def recipes() -> list[str]:
    """Names of the recipes in the package: settings of published experiments."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def gather(
    path: str | Path | None = None, overrides: Sequence[str] | Mapping[str, Any] = (), table: Table = TABLE
) -> tuple[dict[str, Any], list[str]]:
    """Settings of a YAML file, a recipe or nothing, ``overrides`` on top, by full dotted key, and problems so far."""
    content, problems = ({}, []) if path is None else read_yaml(Path(path))
    given = overrides
    if not isinstance(given, Mapping):
        plain, given, more = split(list(overrides))
        problems += more + [f"'{w}' is not a setting; write key=value, for example epochs=30." for w in plain]
    merged, more = table.settings(content, given)
    if merged.get("method.name") == "auto":
        merged["method.name"] = _auto_method(merged)
    its, wrong = _detector_defaults(merged)
    theirs, also = _method_defaults(merged)
    problems += [*wrong, *also]
    for key, value in {**its, **theirs}.items():
        merged.setdefault(key, value)
    return merged, problems + more


def by_full_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested or shortened settings → full dotted key and value: ``lr`` → ``train.lr``.

    Raises:
        ConfigError: one is given twice with other values.
    """
    problems: list[str] = []
    flat = TABLE.flat(settings, problems)
    if problems:
        raise ConfigError(problems)
    return flat


def load(
    path: str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    absent: list[str] | None = None,
    problems: Sequence[str] = (),
) -> Run:
    """A validated Run from a YAML file, a recipe of the package, or nothing, and overrides, which take precedence.

    Args:
        overrides: ``key=value`` words, or a mapping of dotted keys.
        absent: list for messages about missing data and weights, which are then not errors; for plans.
        problems: known problems, reported together with the others.

    Raises:
        ConfigError: every problem at once. Nothing of the data has been read except, at most, its class names.
    """
    merged, more = gather(path, overrides)
    merged.setdefault("method.name", _auto_method(merged))
    problems = [*problems, *more]
    tree = nest(merged)
    protocol, trouble = _protocol(tree)
    problems += trouble
    tree["protocol"] = protocol
    problems += [p for p in problems_of(Run, tree) if not any(p.split(":")[0] == q.split(":")[0] for q in problems)]
    missing = [*checks.files(tree), *checks.absent_data(tree), *checks.trackers(tree.get("log"))]
    if absent is None:
        problems += missing
    else:
        absent += missing
    problems += [*checks.method(tree), *checks.training(tree), *checks.extra(tree), *checks.data(tree)]
    if problems:
        raise ConfigError(problems)
    return Run.model_validate(tree)


def read_yaml(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Content of a settings file or of a recipe, or the scenario of that name, and its problems."""
    from ciod.data.scenarios.scenario import available

    if not is_file(path) and str(path) in recipes():
        path = RECIPES / f"{path}.yaml"
    if not is_file(path) and str(path) in available():
        return {"scenario": str(path)}, []
    if not is_file(path):
        near = nearest(str(path) if path.suffix not in (".yaml", ".yml") else path.stem, [*available(), *recipes()])
        hint = f"did you mean '{near}'?" if near else "'ciod list recipes' and 'ciod list scenarios' name them."
        return {}, [f"There is no settings file {path}, nor a recipe or scenario of that name; {hint}"]
    return read_file(path)


def _detector_defaults(flat: dict[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Defaults for the run from a detector, and their problems."""
    name = str(flat.get("detector.name", DetectorSettings().name))
    if detectors.is_own(name):
        try:
            return _of_user(detectors.find(name))
        except CiodError:
            return {}, []  # checks.method reports it
    known = name in detectors.available() or name.startswith(detectors.HF)
    return (detectors.run_defaults(name) if known else {}), []


def _auto_method(flat: dict[str, Any]) -> str:
    """What ``method=auto`` means for the detector."""
    try:
        traits = detectors.traits(str(flat.get("detector.name", DetectorSettings().name)))
    except CiodError:
        traits = frozenset[str]()  # checks.method reports it
    return methods.auto(traits)


def _method_defaults(flat: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Defaults for the run from a method, and their problems."""
    try:
        method = methods.find(str(flat.get("method.name") or _auto_method(flat)))
    except CiodError:
        return {}, []  # checks.method reports it
    return _of_user(method) if is_users(method) else (method.run_defaults, [])


def _of_user(cls: type[Any]) -> tuple[dict[str, Any], list[str]]:
    """``run_defaults`` of a user's class by full key, and their problems."""
    found = TABLE.flat({str(k): v for k, v in cls.run_defaults.items()})
    wrong = [TABLE.unknown(k) for k in found if TABLE.annotation(k) is None]
    wrong = wrong or problems_of(Run, nest(found))
    return ({}, [f"{where(cls)}: run_defaults: {p}" for p in wrong]) if wrong else (found, [])


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
