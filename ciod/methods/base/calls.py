"""The functions of a method that ciod calls, and whether those of a user's class can be called like them."""

from __future__ import annotations

import inspect

from ciod.core.user_code import UserCodeError, overrides, where
from ciod.methods.base.method import Method

# Functions of a method, and the number of arguments with which ciod calls them.
CALLS = {"loss": 1, "begin_task": 1, "end_task": 1, "before_step": 0, "state": 0, "load_state": 1, "attach": 3,
          "grow": 3, "draw": 2, "fresh": 0, "check": 0, "requires": 0, "learn_background": 1}  # fmt: skip


def check_calls(cls: type[Method]) -> None:
    """Checks the functions of a class by their signatures.

    Raises:
        UserCodeError: one cannot be called as ciod calls it, is a coroutine, or is replaced by a setting.
    """
    for name, count in CALLS.items():
        if name in cls.model_fields:
            raise UserCodeError(
                f"{where(cls)} has a setting called {name}, which is a function of ciod.Method; rename it."
            )
        function = overrides(cls, name)
        if function is None:
            continue
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise UserCodeError(
                f"{where(cls, name)} must be a plain function, without async or yield; it would not run."
            )
        try:
            inspect.signature(getattr(cls, name)).bind(*[None] * (count + 1))
        except TypeError as e:
            wanted = ["self", *list(inspect.signature(getattr(Method, name)).parameters)[1:]]
            raise UserCodeError(f"{where(cls, name)} must take ({', '.join(wanted)}): {e}.") from None
