"""pydantic errors as sentences: the setting, its value, the allowed values, the nearest correct spelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from ciod.core.errors import did_you_mean
from ciod.core.limits import LARGEST


def problems_of(model: type[BaseModel], content: dict[str, Any], *, where: str = "") -> list[str]:
    """One sentence per value in ``content`` that ``model`` refuses."""
    try:
        model.model_validate(content)
        return []
    except ValidationError as e:
        return problems_in(model, e.errors(), where=where)


def problems_in(model: type[BaseModel], errors: Sequence[Any], *, where: str = "") -> list[str]:
    """One sentence per value of pydantic's ``errors`` about ``model``."""
    return [_sentence(model, err, where) for err in _distinct(errors)]


def _distinct(errors: Sequence[Any]) -> list[Any]:
    """One error per setting: for a union pydantic reports every member; the error deepest inside the value is kept."""
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
        if err["type"] == "extra_forbidden":  # its last part is a name that the user wrote, whatever it looks like
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
    if err["type"] == "missing":
        return f"{key}= is needed."
    given: Any = err.get("input")
    shown = "" if isinstance(err.get("input"), dict) else f" (got {given!r})"
    if err["type"] == "literal_error":
        expected = err["ctx"]["expected"].replace("'", "")
        options = [w.strip() for w in expected.replace(" or ", ", ").split(",")]
        return f"{key}: '{given}' is not allowed; {did_you_mean(str(given), options, listing=len(options))}"
    message = err["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    message = message.partition(", unable to")[0].partition(", got a number")[0]
    if err["type"] == "multiple_of":
        step = err["ctx"]["multiple_of"]
        shown += f"; try {min(LARGEST, max(step, round(err['input'] / step) * step))}"
    if err["type"].startswith("bool"):
        message = "should be true or false"
    if err["type"] in ("too_short", "string_too_short"):
        message = "should not be empty"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        f = model.model_fields.get(part)
        kind = f.annotation if f else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return list(model.model_fields)
