"""The results of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ciod.core.errors import CiodError
from ciod.core.plural import counted
from ciod.core.user_code import UserCodeError, describe, user_errors

State = Literal["kept", "broken", "not checked"]
S = TypeVar("S")
Check = Callable[[S], Iterator[str]]
"""Yields a sentence for each thing that breaks; its docstring is the promise."""


class NotChecked(Exception):
    """A check does not apply, or something is missing for it: the reason."""


@dataclass(frozen=True)
class Found:
    """The result of one check."""

    name: str
    promise: str
    state: State
    sentences: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Report:
    """The results of all checks of one class."""

    name: str
    kind: Literal["detector", "method"]
    checks: list[Found]

    @property
    def broken(self) -> bool:
        return any(c.state == "broken" for c in self.checks)

    def lines(self) -> list[str]:
        """Text for the terminal: one line per check, and below it what breaks."""
        width = max(len(c.state) for c in self.checks)
        lines = [line for c in self.checks for line in (f"{c.state:{width}}  {c.promise}", *_below(c, width))]
        wrong = sum(c.state == "broken" for c in self.checks)
        end = f"{counted(wrong, 'check')} of {len(self.checks)} broken." if wrong else "It keeps the contract."
        return [*lines, f"{self.name}: {end}"]

    def content(self) -> list[dict[str, Any]]:
        """The entries for ``--json``."""
        return [{"name": c.name, "state": c.state, "sentences": c.sentences} for c in self.checks]


def _below(found: Found, width: int) -> list[str]:
    return [f"{'':{width}}  - {sentence}" for sentence in found.sentences]


def run(
    name: str, kind: Literal["detector", "method"], checks: Mapping[str, Check[S]], subject: S, left_out: dict[str, str]
) -> Report:
    """Runs checks one after the other; an exception of the user's code is among the sentences.

    Args:
        left_out: checks that the user does not want → the reason.
    """
    found = []
    for key, check in checks.items():
        promise = (check.__doc__ or key).partition("\n")[0].rstrip(".")
        if key in left_out:
            found.append(Found(key, promise, "not checked", [left_out[key]]))
            continue
        try:
            sentences = sentences_of(check, subject, name, kind)
        except NotChecked as reason:
            found.append(Found(key, promise, "not checked", [str(reason)]))
            continue
        found.append(Found(key, promise, "broken" if sentences else "kept", sentences))
    return Report(name, kind, found)


def sentences_of(check: Check[S], subject: S, name: str, kind: str) -> list[str]:
    """What one check finds.

    Raises:
        NotChecked: it does not apply.
    """
    found: list[str] = []
    try:
        with user_errors(name, kind):
            for sentence in check(subject):
                if sentence not in found:
                    found.append(sentence)
    except NotChecked:
        raise
    except UserCodeError as error:
        found.append(str(error))
    except CiodError as error:
        found.append(f"ciod refuses it: {error}")
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        if found:  # it follows from what was found before
            return found
        found.append(f"ciod cannot work with what it returns: {describe(error)}.")
    return found
