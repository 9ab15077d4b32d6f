"""Configs of MMDetection: finding them, extracting what a detector needs, and refusing unsafe ones.

A ``.py`` config is code and is executed when it is read; this is done only for a file or name that the user gave. A
config in a model file or checkpoint is read as plain values and can name only registered classes.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ciod.core.errors import CiodError, nearest
from ciod.core.files import expanded, is_file
from ciod.detectors.base import Input

PREFIX = "mmdet:"
INSTALL = "its operators are compiled, which docs/mmdetection.md has step by step"
# Keys and values of a model's config that refer to another file.
_LEADING = ("checkpoint", "pretrained", "teacher_config", "teacher_ckpt", "filename", "file_name", "path")
_FILE = re.compile(r"[/\\:~]|\.(py|pth?|pkl|pickle|json|ya?ml|bin|ckpt|safetensors)$", re.IGNORECASE)
KEPT = ("type", "data_preprocessor", "backbone", "neck", "bbox_head", "train_cfg", "test_cfg")


def require() -> None:
    """Imports MMDetection's models.

    Raises:
        CiodError: the extra is not installed, or the versions of its packages are incompatible.
    """
    try:
        import mmdet.models  # noqa: F401
    except ImportError as error:
        raise CiodError(f"Detectors of MMDetection need the extra mmdet ({error}): {INSTALL}") from error
    except AssertionError as error:  # mmdet asserts the versions of its packages
        raise CiodError(f"Incompatible versions of MMDetection packages: {error}") from error


def configs() -> Path:
    """The folder of MMDetection's own configs.

    Raises:
        CiodError: the extra is not installed.
    """
    require()
    import mmdet

    return Path(mmdet.__file__).parent / ".mim" / "configs"


def locate(given: str) -> Path:
    """A config's file: a path, or the name of one of MMDetection's own, with or without folder and ``.py``.

    Raises:
        CiodError: there is none.
    """
    path = expanded(given)
    if path.suffix == ".py" and is_file(path):
        return path
    folder = configs()
    stem = Path(given).name.removesuffix(".py")
    own = sorted(p for p in folder.rglob("*.py") if "_base_" not in p.parts)
    found = next((p for p in own if p.stem == stem), None)
    if found is None:
        near = nearest(stem, [p.stem for p in own])
        hint = f"did you mean '{near}'?" if near else "give a path ending in .py, or a name like gfl_r50_fpn_1x_coco."
        raise CiodError(f"There is no config file {given}, nor a config of MMDetection of that name; {hint}")
    return found


def read(given: str) -> dict[str, Any]:
    """``model`` of a config file (see ``locate``), as plain values, with the test pipeline's ``input`` added.

    Raises:
        CiodError: the file does not exist, cannot be read, or has no model.
    """
    path = locate(given)
    require()
    from mmengine.config import Config

    try:
        content = Config.fromfile(str(path))
    except Exception as error:  # a config is code: any error
        raise CiodError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return of(content.to_dict(), str(path))


def of(content: dict[str, Any], source: str) -> dict[str, Any]:
    """The parts of a full config that a detector needs.

    Raises:
        CiodError: it has no model, or the model is not a supported detector.
    """
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("bbox_head"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise CiodError(
            f"{source} has no one-stage detector with a bbox_head{f' (its model is a {kind})' if kind else ''}; "
            "two-stage detectors and DETRs of MMDetection are not supported."
        )
    kept = {k: model[k] for k in KEPT if k in model}
    loader = content.get("test_dataloader") or content.get("val_dataloader") or {}
    dataset = loader.get("dataset") or {}
    steps = dataset.get("pipeline") or content.get("test_pipeline") or []
    return {**plain(kept), "input": _picture(steps)}


def plain(value: Any) -> Any:
    """Lists, dicts and scalars only; no file or address of weights (ciod loads weights itself)."""
    if isinstance(value, dict):
        dropped = {k for k, v in value.items() if k == "pretrained" or (k == "init_cfg" and _pretrained(v))}
        return {k: plain(v) for k, v in value.items() if k not in dropped}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CiodError(f"The config holds a {type(value).__name__} ({value!r}); only plain values can be kept in a model.")


def _pretrained(value: Any) -> bool:
    listed = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(v, dict) and v.get("type") == "Pretrained" for v in listed)


def pretrained(given: str) -> str | None:
    """``imagenet`` if the backbone of a config starts from torchvision's weights, else None."""
    require()
    from mmengine.config import Config

    backbone = Config.fromfile(str(locate(given))).to_dict().get("model", {}).get("backbone", {})
    address = str((backbone.get("init_cfg") or {}).get("checkpoint", ""))
    return "imagenet" if re.fullmatch(r"torchvision://resnet\d+", address) else None


def _picture(steps: Any) -> dict[str, Any]:
    """Longest side and border of the images that a test pipeline makes."""
    out: dict[str, Any] = {}
    for step in _dicts(steps):
        if step.get("type") in ("Resize", "mmdet.Resize") and step.get("scale"):
            scale = step["scale"]
            out["size"] = int(max(scale) if isinstance(scale, (list, tuple)) else scale)
        if step.get("type") in ("Pad", "mmdet.Pad") and isinstance(step.get("pad_val"), dict):
            value = step["pad_val"].get("img", 0)
            out["fill"] = float(value[0] if isinstance(value, (list, tuple)) else value)
    return out


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]  # no recursion, because a config from a stranger may be deeply nested
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            waiting += reversed(value)


def input_spec(model: dict[str, Any], size: int | None) -> Input:
    """The ``Input`` of a config: longest side, border, mean and standard deviation.

    MMDetection's mean and std are in the channel order of its network; ``Input`` has them in RGB. If the pipeline does
    not fill borders, they are 0 after normalising, so the border is the mean.
    """
    given = model.get("data_preprocessor") or {}
    wanted = model.get("input") or {}
    rgb = bool(given.get("bgr_to_rgb", False))
    mean, std = given.get("mean") or [0.0] * 3, given.get("std") or [1.0] * 3
    if not rgb:
        mean, std = mean[::-1], std[::-1]
    fill = wanted.get("fill", sum(mean) / 3 if given.get("mean") else 114.0)
    side = size or -(-int(wanted.get("size", 640)) // 32) * 32
    (a, b, c), (x, y, z) = map(float, mean), map(float, std)
    return Input(size=side, mean=(a, b, c), std=(x, y, z), bgr=not rgb, fill=float(fill))


def check_types(value: Any, source: str) -> None:
    """Refuses class names that are not registered ones, because a dotted name would be imported.

    Raises:
        CiodError: it has one; the message names it.
    """
    for entry in _dicts(value):
        kind = entry.get("type")
        if kind is not None and not (isinstance(kind, str) and re.fullmatch(r"\w+", kind)):
            raise CiodError(f"{source} names a class {kind!r} that is not one of MMDetection's; it is refused.")
        for key in ("_scope_", "custom_imports"):
            if key in entry:
                raise CiodError(f"{source} asks for imports ({key}); it is refused.")


def check_apart(model: dict[str, Any], source: str) -> None:
    """Refuses everything that would make MMDetection read another file when it builds the model: a teacher's config is
    code, and weights may be a pickle.

    Raises:
        CiodError: it has one; the message names it.
    """
    if more := sorted(set(map(str, model)) - {*KEPT, "input"}):
        raise CiodError(
            f"{source} holds a config of MMDetection with {more[0]!r}, which is refused: it could lead to other files, "
            "and so to code. Remove it from the config."
        )
    waiting: list[tuple[str, Any]] = [("", model)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(k), v) for k, v in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(key, v) for v in value]
        elif isinstance(value, str) and (
            key in _LEADING or _FILE.search(value) or (key, value) == ("type", "Pretrained")
        ):
            raise CiodError(
                f"{source} holds a config of MMDetection that names another file ({key}={value!r}); a model must not "
                "need other files, so it is refused."
            )


def loads(text: str, source: str) -> dict[str, Any]:
    """A model config from a model file.

    Raises:
        CiodError: not JSON, or not allowed.
    """
    try:
        model = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CiodError(
            f"{source} holds no readable config of MMDetection: {error}. Give its file: mmdet:CONFIG.py,CHECKPOINT"
        ) from error
    if not isinstance(model, dict) or not isinstance(model.get("bbox_head"), dict):
        raise CiodError(
            f"{source} holds no config of a one-stage detector of MMDetection (docs/mmdetection.md lists them)."
        )
    check_types(model, source)
    check_apart(model, source)
    return model


def literal(text: str, source: str) -> dict[str, Any]:
    """A full config from the text that MMDetection puts into its checkpoints, read without executing it.

    Raises:
        CiodError: it has anything other than assignments of plain values.
    """
    try:
        tree = ast.parse(text)
        out = {}
        for line in tree.body:
            if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
                raise ValueError(f"line {line.lineno} is not an assignment")
            out[line.targets[0].id] = _value(line.value)
        return out
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CiodError(
            f"The config inside {source} holds more than plain values ({error}) and is not executed; give the file: "
            f"mmdet:CONFIG.py,{source}"
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if any(k.arg is None for k in node.keywords):
            raise ValueError(f"line {node.lineno} unpacks a dict")
        return {str(k.arg): _value(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [None if k is None else ast.literal_eval(k) for k in node.keys]
        return {k: _value(v) for k, v in zip(keys, node.values, strict=True)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(v) for v in node.elts]
    return ast.literal_eval(node)
