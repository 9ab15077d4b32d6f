"""Settings: YAML and ``key=value`` overrides → a validated Run, with every problem in one message."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ciod.data.scenario import Protocol
from ciod.errors import CiodError, ConfigError, did_you_mean
from ciod.settings import DetectorSettings, Evaluation, Run, Train

__all__ = ["DetectorSettings", "Evaluation", "Run", "Train", "data_folder", "load", "parse_overrides", "problems_of"]

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
            flat[key.strip()] = _scalar(yaml.safe_load(text)) if text else None
        except (yaml.YAMLError, ValueError, RecursionError):
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


def problems_of(model: type[BaseModel], content: dict[str, Any], *, where: str = "") -> list[str]:
    """Sentences about everything in ``content`` that ``model`` refuses."""
    try:
        model.model_validate(content)
        return []
    except ValidationError as e:
        return [_sentence(model, err, where) for err in _distinct(e.errors())]


def _distinct(errors: Sequence[Any]) -> list[Any]:
    """One error a setting: of a union pydantic reports every member; the one furthest inside the value counts."""
    kept: dict[Any, Any] = {}
    for err in errors:
        key = tuple(
            p
            for p in err["loc"]
            if not (
                isinstance(p, str)
                and ("[" in p or p in ("int", "str", "float", "constrained-int", "constrained-float"))
            )
        )
        if err["type"] == "extra_forbidden":  # its last part is the user's own word, whatever it looks like
            key = tuple(err["loc"])
        if key[:2] not in kept or len(key) > len(kept[key[:2]]["loc"]):
            kept[key[:2]] = {**err, "loc": key}
    return list(kept.values())


def _sentence(model: type[BaseModel], err: Any, where: str) -> str:
    loc = [str(p) for p in err["loc"]]
    key = ".".join([*([where] if where else []), *loc])
    if err["type"] == "extra_forbidden":
        allowed = _fields_at(model, loc[:-1])
        return f"{key}: there is no such setting; {did_you_mean(loc[-1], allowed)}"
    given = err.get("input")
    shown = f" (got {given!r})" if not isinstance(given, dict) else ""
    if err["type"] == "literal_error":
        expected = err["ctx"]["expected"].replace("'", "")
        options = [w.strip() for w in expected.replace(" or ", ", ").split(",")]
        hint = did_you_mean(str(given), options)
        return f"{key}: '{given}' is not allowed; " + (hint if "mean" in hint else f"allowed: {', '.join(options)}")
    message = err["msg"].replace("Input should be", "should be")
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        f = model.model_fields.get(part)
        kind = f.annotation if f else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return list(model.model_fields)


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
        content, problems = _read_yaml(Path(path))
    flat = {}
    if isinstance(overrides, dict):
        flat = dict(overrides)
    else:
        flat, more = parse_overrides(overrides)
        problems += more
    short = shorthands()
    merged: dict[str, Any] = {}
    for key, value in [*_flatten(content).items(), *_flatten(flat).items()]:
        merged[_normal_key(key, short)] = value
    for key, value in _method_defaults(merged).items():
        merged.setdefault(key, value)
    return merged, problems + _unknown(merged, short)


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
    missing = [*_check_files(tree), *_absent_data(tree)]
    if absent is None:
        problems += missing
    else:
        absent += missing
    problems += [*_check_method(tree), *_check_extra(tree), *_check_data(tree)]
    if problems:
        raise ConfigError(problems)
    return Run.model_validate(tree)


def _read_yaml(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.is_file() and str(path) in recipes():
        path = RECIPES / f"{path}.yaml"
    if not path.is_file():
        hint = did_you_mean(path.stem, recipes())
        hint = hint if "mean" in hint else "'ciod list recipes' names those of the package."
        return {}, [f"There is no settings file {path}, nor a recipe of that name; {hint}"]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as e:
        return {}, [f"{path} is not YAML: {next(iter(str(e).splitlines()), type(e).__name__)}"]
    if not isinstance(content, dict):
        return {}, [f"{path} must hold settings (key: value), not a {type(content).__name__}."]
    return content, []


def _method_defaults(flat: dict[str, Any]) -> dict[str, Any]:
    """Settings of the run that a method brings along."""
    from ciod import methods

    try:
        return methods.find(str(flat.get("method.name", "ilyolox"))).run_defaults
    except CiodError:
        return {}  # said by _check_method


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
    from ciod.data.scenario import read_protocol

    base: dict[str, Any] = {}
    problems = []
    if tree.get("scenario"):
        try:
            base = read_protocol(str(tree["scenario"])).model_dump(exclude_unset=True)
        except ConfigError as e:
            problems += e.problems
        except CiodError as e:
            problems.append(str(e))
    own = tree.get("protocol") or {}
    if (tree.get("method") or {}).get("name") == "joint":
        own = {**own, "joint": True}
    return {**base, **own}, problems


def _check_method(tree: dict[str, Any]) -> list[str]:
    """Names, and whether method and detector go together."""
    from ciod import detectors, methods

    problems = []
    detector = tree.get("detector", {}).get("name", DetectorSettings().name)
    settings = dict(tree.get("method", {}) or {})
    name = settings.pop("name", "ilyolox")
    known = detector in detectors.available()
    if not known:
        problems.append(
            f"detector.name: no detector '{detector}'; {did_you_mean(str(detector), detectors.available())}"
        )
    try:
        cls = methods.find(str(name))
    except CiodError as e:
        return [*problems, str(e)]
    found = problems_of(cls, settings, where="method")
    problems += found
    needs = cls.needs
    if not found:
        method = cls.model_validate(settings)
        problems += method.check()
        needs = method.requires()
        kind = (tree.get("train") or {}).get("teacher", Train().teacher)
        if method.exact_teacher and kind != "exact":
            problems.append(f"train.teacher: these settings of {name} need train.teacher=exact, not {kind}.")
    lacking = needs - detectors.traits(detector) if known else frozenset()
    if lacking:
        able = _one_a_family(detectors.offering(needs))
        problems.append(
            f"method: {name} needs a detector with {', '.join(sorted(lacking))}, which {detector} does not have"
            + (f"; {', '.join(able)} would do." if able else ", nor any other.")
        )
    return problems


def _one_a_family(names: Sequence[str]) -> list[str]:
    """The first of each run of names with the same beginning: yolox-pico for all of YOLOX."""
    return list({name.split("-")[0]: name for name in reversed(names)}.values())[::-1]


def _check_extra(tree: dict[str, Any]) -> list[str]:
    """Memory and pool against the method, the detector and each other."""
    from ciod import detectors, methods
    from ciod.data.memory import MemorySettings
    from ciod.data.pool import PoolSettings

    given, pool = tree.get("memory") or {}, tree.get("pool") or {}
    if problems_of(MemorySettings, given) or problems_of(PoolSettings, pool):
        return []
    memory, pool = MemorySettings.model_validate(given), PoolSettings.model_validate(pool)
    name = str((tree.get("method") or {}).get("name", "ilyolox"))
    try:
        method = methods.find(name)
    except CiodError:
        return []
    problems = []
    unlabelled = [
        k for k, on in (("pool", pool.folder), ("memory.labels=none", memory.labels == "none" and memory.size)) if on
    ]
    if unlabelled and not method.uses_teacher and name != "joint":  # which has no later task to use them in
        problems.append(
            f"{unlabelled[0]}: {name} has no teacher and learns nothing from images without labels; choose a method "
            "that distils or labels (distill_pool, pseudo_label, ilyolox, …)."
        )
    if method.needs_unlabelled and not unlabelled:
        problems.append(
            f"method: {name} needs images without labels; write pool=FOLDER, or memory=N memory.labels=none."
        )
    if pool.folder and memory.size and memory.batches == "share" and memory.share + pool.share >= 1:
        problems.append(
            f"pool.share={pool.share} and memory.share={memory.share} leave no room in a batch for the task's own "
            "images."
        )
    if pool.folder and not Path(pool.folder).expanduser().is_dir():
        problems.append(f"pool.folder: there is no folder {pool.folder}{_nearest(Path(pool.folder).expanduser())}")
    detector = (tree.get("detector") or {}).get("name", DetectorSettings().name)
    herds = memory.size and memory.select == "herding"
    if herds and detector in detectors.available() and "features" not in detectors.traits(detector):
        problems.append(f"memory.select=herding needs a detector with features, which {detector} does not have.")
    if (tree.get("train") or {}).get("batch") == 1 and (memory.size or pool.folder) and memory.batches != "merged":
        problems.append("train.batch=1 has no room for images of memory or pool beside the task's own.")
    return problems


def _check_files(tree: dict[str, Any]) -> list[str]:
    problems = []
    detector = tree.get("detector", {}) or {}
    for key in ("weights", "backbone_weights"):
        value = detector.get(key)
        if value and value not in ("imagenet", "random") and not Path(str(value)).is_file():
            problems.append(f"detector.{key}: there is no file {value}.")
    first = tree.get("first")
    if first and not (Path(first) / "task-1" / "model.safetensors").is_file():
        problems.append(f"first: {first} has no finished first task (task-1/model.safetensors).")
    given = tree.get("upper_bound") or []
    for bound in [given] if isinstance(given, str) else given:
        if not (Path(str(bound)) / "results.json").is_file():
            problems.append(f"upper_bound: {bound} is not a finished run; it has no results.json.")
    return problems


def _data(tree: dict[str, Any]) -> str | None:
    return data_folder(tree.get("data") or (tree.get("protocol") or {}).get("data"))


def _absent_data(tree: dict[str, Any]) -> list[str]:
    data = _data(tree)
    if data is None or data == "shapes" or Path(data).exists():
        return []
    variable = re.fullmatch(r"\$\{(\w+)\}", data)
    if variable:
        return [
            f"data: the environment variable {variable[1]}, which names the data set's folder, is not set; set it, or "
            "write data=FOLDER (docs/protocols.md has the layout)."
        ]
    return [f"data: there is no folder {data}{_nearest(Path(data))}"]


def known_classes(given: str | None) -> tuple[str, ...] | None:
    """Class names of a data set that may be absent: of the shapes, and of scenarios of COCO and VOC."""
    from ciod.data import names
    from ciod.data.shapes import CLASSES

    return {"shapes": CLASSES, "${COCO}": names.COCO, "${VOC}": names.VOC}.get(given or "")


def _check_data(tree: dict[str, Any]) -> list[str]:
    """The split's and order's class names are in the data."""
    from ciod.data import formats
    from ciod.data.scenario import groups_of

    data, protocol = _data(tree), tree.get("protocol") or {}
    if data is None:
        return ["data: no data set is given; write data=FOLDER (COCO, VOC or YOLO format), or scenario=NAME."]
    if problems_of(Protocol, protocol):
        return []
    try:
        if data == "shapes" or not Path(data).exists():
            names = known_classes(data if data == "shapes" else protocol.get("data"))
        else:
            names = formats.class_names(data)
        if names:
            groups_of(Protocol.model_validate(protocol), names)
    except ConfigError as e:
        return e.problems
    except CiodError as e:
        return [f"data: {e}"]
    return []


def _nearest(path: Path) -> str:
    parent = path.parent
    beside = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    hint = did_you_mean(path.name, beside)
    return f"; {hint}" if "mean" in hint else "."


def data_folder(data: str | None) -> str | None:
    """``data`` with ``~`` and ``${VARIABLES}`` replaced."""
    return None if data is None else str(Path(os.path.expandvars(str(data))).expanduser())
