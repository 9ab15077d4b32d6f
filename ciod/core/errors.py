"""Errors for users: messages that say what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 40  # problems in one message


class CiodError(Exception):
    """A problem that the user can fix. The command line prints only the message and exits with code 2."""


class ConfigError(CiodError):
    """Every problem of a configuration in one message.

    Args:
        problems: one message each; they are numbered if there are several.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        if len(self.problems) == 1:
            text = self.problems[0]
        else:
            lines = [f"  {i}. {p}" for i, p in enumerate(self.problems[:SHOWN], 1)]
            if len(self.problems) > SHOWN:
                lines.append(f"  … and {len(self.problems) - SHOWN} more")
            text = f"{len(self.problems)} problems:\n" + "\n".join(lines)
        super().__init__(text)


class DataError(CiodError):
    """A data set that cannot be read or has no usable content."""


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The nearest correct spelling, if one is similar."""
    options = [str(a) for a in allowed]
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    # a case difference alone is below difflib's cut-off for short words
    return next(iter(near), None) or next((o for o in options if o.lower() == word.lower()), None)


def did_you_mean(word: str, allowed: Iterable[str], *, listing: int = 12) -> str:
    """The end of an error message: the nearest correct spelling, or the allowed values.

    >>> did_you_mean("epoch", ["epochs", "batch"])
    "did you mean 'epochs'?"
    """
    options = [str(a) for a in allowed]
    near = nearest(word, options)
    if near is not None:
        return f"did you mean '{near}'?"
    shown = ", ".join(options[:listing]) + (", …" if len(options) > listing else "")
    return f"allowed: {shown}" if shown else "nothing is allowed here"
