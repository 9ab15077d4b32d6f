"""Scripts without a main guard: where processes are not forked (macOS, Windows), each new one runs the script again."""

from __future__ import annotations

import ast
import inspect
import multiprocessing
import sys
from multiprocessing import process
from pathlib import Path
from types import FrameType

from ciod.core.errors import CiodError

ADVICE = 'put the call under `if __name__ == "__main__":`, or use train.workers=0'


def forks() -> bool:
    """Whether new processes are copies of this one, which run nothing again."""
    return multiprocessing.get_start_method() == "fork"


def check() -> None:
    """Before loader processes are started.

    Raises:
        CiodError: they would run the user's script again; names its file and line.
    """
    if forks():
        return
    at = _unguarded()
    if at is not None or getattr(process.current_process(), "_inheriting", False):
        where = f"{at[0]}, line {at[1]}" if at else "the script"
        raise CiodError(
            f"{where}: the loader processes import the script again on this system and would train, too; {ADVICE}."
        )


def _unguarded() -> tuple[str, int] | None:
    """File and line of the script that this call comes from, if no condition on ``__name__`` is around it."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            break
        frame = frame.f_back
    file = getattr(sys.modules.get("__main__"), "__file__", None)  # None: a notebook or python -c, not imported again
    if frame is None or file is None or Path(file).absolute() != Path(frame.f_code.co_filename).absolute():
        return None
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):  # changed since it was started
        return None
    line = frame.f_lineno
    return None if any(_guards(node, line) for node in ast.walk(tree)) else (file, line)


def _guards(node: ast.AST, line: int) -> bool:
    """Whether ``node`` is a condition on ``__name__``, or on being a child process, at or before ``line``.

    A condition before the line may exit the script. If it does not, the loader processes raise the error themselves.
    """
    if not isinstance(node, ast.If) or node.lineno > line:
        return False
    named = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
    asked = {n.attr for n in ast.walk(node.test) if isinstance(n, ast.Attribute)}
    return bool({"__name__", "parent_process", "current_process"} & (named | asked))
