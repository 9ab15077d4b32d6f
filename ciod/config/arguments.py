"""Words of a command, ``key=value``, as values of the types it takes, with every problem in one message."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ciod.config.load import parse_overrides
from ciod.config.settings import MANY
from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.files import exists


def whole(value: Any) -> int:
    """A whole number, also where it is written as 1e2."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value % 1:
        raise ValueError("a whole number")
    return int(value)


def count(value: Any) -> int:
    """A whole number from 1 to MANY: of pictures in a batch, of detections in a picture."""
    if not 1 <= (found := whole(value)) <= MANY:
        raise ValueError(f"a whole number from 1 to {MANY:,}")
    return found


def share(value: Any) -> float:
    """A number in 0..1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1")
    return float(value)


def switch(value: Any) -> bool:
    """Also yes, no, on and off, as the settings of a run take them."""
    found = {"yes": True, "on": True, "no": False, "off": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ValueError("true or false")
    return found


def text(value: Any) -> str:
    if value is None or isinstance(value, (list, dict, bool)):
        raise ValueError("a name")
    return str(value)


def names(value: Any) -> list[str]:
    """``a,b`` or ``[a, b]``."""
    found = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    found = [str(n).strip() for n in found if not isinstance(n, (list, dict)) and n is not None]
    if not found or not all(found):
        raise ValueError("a list of names, such as cat,dog or '[cat, dog]'")
    return found


def listed(value: Any) -> str:
    """``a,b`` or ``[a, b]``, also of numbers, as the text ``a,b``."""
    return ",".join(map(str, value)) if isinstance(value, list) else text(value)


def split(words: list[str] | None) -> tuple[list[str], dict[str, Any], list[str]]:
    """Plain words; key=value ones with their values read as YAML; and values that cannot be read. For commands whose
    settings are checked elsewhere."""
    return [w for w in words or [] if "=" not in w], *parse_overrides([w for w in words or [] if "=" in w])


def alone(plain: list[str], takes: str) -> None:
    """Raises CiodError where there are plain words; ``takes`` begins the sentence: "eval takes one model"."""
    if plain:
        raise CiodError(f"{takes}; '{plain[0]}' is neither a setting nor needed.")


def read(
    words: list[str] | None, kinds: Mapping[str, Callable[[Any], Any]], *, needed: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, Any]]:
    """Plain words (also a file whose name has a "="), and settings.

    Args:
        kinds: for every setting of the command what checks its value; a ValueError says what is allowed.

    Raises:
        ConfigError: unknown and missing settings and unfit values, all at once.
    """
    plain = [w for w in words or [] if "=" not in w or (w.partition("=")[0] not in kinds and exists(w))]
    flat, problems = parse_overrides([w for w in words or [] if w not in plain])
    problems += [f"{k}: there is no such setting here; {did_you_mean(k, kinds)}" for k in flat if k not in kinds]
    problems += [f"{k}= is needed." for k in needed if k not in flat]
    found = {}
    for key, value in flat.items():
        if key in kinds:
            try:
                found[key] = kinds[key](value)
            except (ValueError, OverflowError) as error:
                problems.append(f"{key}: {value!r} is not {error}.")
    if problems:
        raise ConfigError(problems)
    return plain, found
