"""Code of the user, a method or a detector: its class is read from a file, and errors in it are reported as the user's,
with file and line."""

from __future__ import annotations

import importlib.util
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

from ciod.core.errors import CiodError, did_you_mean
from ciod.core.files import is_file

_OURS = ("ciod", "torch", "pydantic", "typing", "abc", "builtins")
_OWN_FILE = re.compile(r"(?!mmdet:|hf:)(.*\.py)(?::(.*))?", re.S)


class UserCodeError(CiodError):
    """An error in a file of the user."""


def split(name: str) -> tuple[str, str]:
    """``folder/mine.py:Mine`` → file and class; the class is "" if it is not named. The file is "" if it is the
    name of something else."""
    found = _OWN_FILE.fullmatch(name)
    return (found[1], found[2] or "") if found else ("", name)


def class_of(file: str, cls: str, base: type, *, kind: str) -> type[Any]:
    """The class ``cls`` of a file, which is run.

    Args:
        base: what it derives from.
        kind: ``method`` or ``detector``, as the setting is called.

    Raises:
        UserCodeError: the file cannot be imported.
        CiodError: there is no such file, or it has no such class of its own.
    """
    path = Path(file)
    if not is_file(path):
        raise CiodError(f"{kind}: there is no file {file}; write {kind}=PATH/FILE.py:Class.")
    spec = importlib.util.spec_from_file_location(f"ciod_{kind}_file.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks up the names in annotations there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        raise UserCodeError(f"{kind}: {file} cannot be imported: {import_fault(e, file)}") from e
    found = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, base) and v is not base}
    own = {k: v for k, v in found.items() if is_users(v)}
    if cls in found and cls not in own:
        raise CiodError(
            f"{kind}: {file} only imports '{cls}' from ciod; {did_you_mean(cls, own)} (write FILE.py:Class for a class "
            "of your own)"
        )
    if not cls and own:
        raise CiodError(f"{kind}: name the class in {file}, too: {kind}={file}:{next(iter(own))}")
    if cls not in found:
        why = _no_class(cls, vars(module).get(cls), base)
        known = did_you_mean(cls, own)
        what = "class" if base is object else base.__name__
        raise CiodError(f"{kind}: {file} has no {what} '{cls}'{why}; {known} (write FILE.py:Class)")
    return found[cls]


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
def user_errors(name: str, kind: str = "method") -> Generator[None, None, None]:
    """Turns exceptions from the file of ``name`` (``path.py:Class``) into a UserCodeError; others are not changed.

    Raises:
        UserCodeError: the exception, with the last line of the file in its traceback.
    """
    file = split(name)[0]
    if not file:
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
        raise UserCodeError(f"{kind} {name}: {describe(error)} in {at[1]} ({file}, line {at[0]}).") from error


def describe(error: BaseException) -> str:
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
    reason = f"{type(error).__name__}: {error.msg}" if isinstance(error, SyntaxError) else describe(error)
    return f"{reason}{f' (line {line})' if line else ''}"


def _no_class(name: str, found: object, base: type) -> str:
    """Why an object of a file is not what is wanted, to append to its name; "" if there is no such object."""
    if found is None:
        return ""
    if not isinstance(found, type):
        return f" ({name} is not a class)"
    return f" (the class {name} does not derive from ciod.{base.__name__})"


def _is_ours(cls: type) -> bool:
    return cls is object or cls.__module__.partition(".")[0] in _OURS


def _last_line(trace: TracebackType | None, file: str) -> tuple[int, str] | None:
    """Line and function of the last frame in ``file``."""
    path = Path(file).resolve()
    own = [f for f in traceback.extract_tb(trace) if Path(f.filename).name == path.name]
    own = [f for f in own if Path(f.filename).resolve() == path]
    return (own[-1].lineno or 0, own[-1].name) if own else None
