"""Code of the user: errors in it are reported as the user's, with method, file and line."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from ciod.core.errors import CiodError

PREFIX = "ciod_method_file."  # of the module names of imported method files


class UserCodeError(CiodError):
    """An error in a file of the user."""


def is_users(cls: type) -> bool:
    """Whether a class, or one that it derives from, is not part of ciod."""
    return any(not _is_ours(c) for c in cls.__mro__)


def overrides(cls: type, name: str) -> Any | None:
    """What replaces ciod's ``name`` in the user's classes, or None."""
    for c in cls.__mro__:
        if name in vars(c):
            return None if _is_ours(c) else vars(c)[name]
    return None


def where(cls: type, name: str | None = None) -> str:
    """``Mine of mine.py``, or where ``name`` of it is defined: ``Mine.loss (mine.py, line 12)``."""
    found = overrides(cls, name) if name else None
    function = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    if code is not None:
        return f"{cls.__name__}.{name} ({Path(code.co_filename).name}, line {code.co_firstlineno})"
    file = inspect.getsourcefile(cls) if cls.__module__ in sys.modules else None
    at = f" of {Path(file).name}" if file else ""
    return f"{cls.__name__}{'.' + name if name else ''}{at}"


@contextmanager
def told(name: str) -> Generator[None, None, None]:
    """Turns exceptions from the file of ``name`` (``path.py:Class``) into a UserCodeError; others are not changed.

    Raises:
        UserCodeError: the exception, with the last line of the file in its traceback.
    """
    file = name.rpartition(":")[0] if ":" in name else name
    if ".py" not in file:
        yield
        return
    try:
        yield
    except CiodError:
        raise
    except BaseException as error:
        at = _last_line(error.__traceback__, file)
        if at is None or not (isinstance(error, Exception) or type(error) is SystemExit):
            raise
        raise UserCodeError(f"method {name}: {told_of(error)} in {at[1]} ({file}, line {at[0]}).") from error


def told_of(error: BaseException) -> str:
    """A description of an exception: type and message in one line, with advice for pydantic errors."""
    if type(error) is SystemExit:
        return "sys.exit() was called; it ends the whole program"
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    details: Any = error.errors()[0] if isinstance(error, ValidationError) else {}
    if details.get("type") == "no_such_attribute":
        name = details["loc"][-1]
        return (
            f"the attribute {name} is not declared; write _{name}: TYPE = PrivateAttr(…) in the class, and self._{name}"
        )
    if details:
        message = f"{'.'.join(map(str, details['loc']))}: {details['msg']}"
    if found := re.match(r"A non-annotated attribute was detected: `(\w+) = ([^`]*)`", message):
        return (
            f"{found[1]} has no type; write {found[1]}: TYPE = {found[2]} for a setting, or _{found[1]}: TYPE = "
            f"PrivateAttr({found[2]}) for what the method keeps"
        )
    return f"{type(error).__name__}: {message[:300].rstrip('.')}" if message else type(error).__name__


def import_fault(error: BaseException, file: str) -> str:
    """Why a file cannot be imported, with the line if it is known."""
    line = error.lineno if isinstance(error, SyntaxError) else (_last_line(error.__traceback__, file) or (None,))[0]
    return f"{told_of(error)}{f' (line {line})' if line else ''}"


def no_method(name: str, found: object) -> str:
    """Why an object of a file is not a method, to append to its name; "" if there is no such object."""
    if found is None:
        return ""
    if not isinstance(found, type):
        return f" ({name} is not a class)"
    return f" (the class {name} does not derive from ciod.Method)"


def _is_ours(cls: type) -> bool:
    return cls is object or cls.__module__.partition(".")[0] in ("ciod", "pydantic", "typing", "abc", "builtins")


def _last_line(trace: TracebackType | None, file: str) -> tuple[int, str] | None:
    """Line and function of the last frame in ``file``."""
    path = Path(file).resolve()
    own = [f for f in traceback.extract_tb(trace) if Path(f.filename).name == path.name]
    own = [f for f in own if Path(f.filename).resolve() == path]
    return (own[-1].lineno or 0, own[-1].name) if own else None
