"""What every command has in common: ``--json``, ``--quiet``, and PyTorch, which is imported when a command runs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, get_type_hints

import typer

from ciod.core.errors import CiodError, ConfigError
from ciod.core.gc_pause import uncollected

JSON_HELP = "Print one JSON object and nothing else; see docs/scripts.md."
QUIET_HELP = "Print only warnings and errors."


def command(name: str, *, heavy: bool = True) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Makes a command of a function that returns what it did as JSON-ready values; ``exit_code`` in them, if it is not
    0, ends the process with that code.

    Args:
        name: as it is typed.
        heavy: the command needs PyTorch, which is imported when it runs, so that ``ciod --help`` answers at once.
    """

    def made(function: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, wants_json: bool = False, wants_quiet: bool = False, **kwargs: Any) -> None:
            out = sys.stdout
            try:
                with _printing(wants_json, wants_quiet):
                    if heavy:
                        with uncollected():
                            importlib.import_module("torchvision")
                    content = function(*args, **kwargs) or {}
            except BaseException as error:
                if wants_json and (message := _failure(error)):
                    _write(out, name, message)
                raise
            if wants_json:
                _write(out, name, content)
            if code := content.get("exit_code"):
                raise typer.Exit(code)

        hints = {**get_type_hints(function, include_extras=True), **_SWITCHES}
        kind = inspect.Parameter.KEYWORD_ONLY
        own = [p.replace(annotation=hints[n]) for n, p in inspect.signature(function).parameters.items()]
        more = [inspect.Parameter(n, kind, default=False, annotation=hint) for n, hint in _SWITCHES.items()]
        run.__dict__["__signature__"] = inspect.Signature([*own, *more])
        run.__annotations__ = hints
        return run

    return made


_SWITCHES: dict[str, Any] = {
    "wants_json": Annotated[bool, typer.Option("--json", help=JSON_HELP)],
    "wants_quiet": Annotated[bool, typer.Option("--quiet", help=QUIET_HELP)],
}


@contextmanager
def interruptible(then: str = "run the same command again to resume from the last epoch") -> Iterator[None]:
    """Ctrl-C prints how to resume; typer would only say "Aborted"."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"ciod: interrupted; {then}.", file=sys.stderr)
        raise typer.Exit(130) from None


def _failure(error: BaseException) -> dict[str, Any] | None:
    """The message about an error; None: it is a bug of ciod, which gets a traceback."""
    if isinstance(error, CiodError):
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        return {"error": str(error), "problems": problems, "exit_code": getattr(error, "exit_code", 2)}
    if isinstance(error, typer.Exit):
        return {"error": "interrupted", "problems": [], "exit_code": error.exit_code}
    return None


def _write(out: Any, command: str, content: Mapping[str, Any]) -> None:
    """One object with the command first; only of the first process of several."""
    if os.environ.get("RANK", "0") != "0":
        return
    text = json.dumps({"command": command, "exit_code": 0, **content}, ensure_ascii=False, indent=1, default=_plain)
    out.write(text + "\n")
    out.flush()


def _plain(value: Any) -> Any:
    """Paths and numpy's numbers as JSON has them."""
    return value.item() if hasattr(value, "item") else str(value)


class _Warnings(io.TextIOBase):
    """Passes on the lines that are warnings, and drops the others."""

    def __init__(self, to: Any) -> None:
        self.to, self.line = to, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            if line.startswith("warning"):
                self.to.write(line + "\n")
        return len(text)


@contextmanager
def _printing(wants_json: bool, quiet: bool) -> Generator[None, None, None]:
    """Standard output while a command runs: as it is; with JSON, all that is printed goes to standard error; quiet, of
    this only the warnings."""
    if not (wants_json or quiet):
        yield
        return
    shown: Any = _Warnings(sys.stderr) if quiet else sys.stderr
    with _processes(), contextlib.redirect_stdout(shown):
        yield


@contextmanager
def _processes() -> Generator[None, None, None]:
    """Standard output of processes that are started meanwhile is this one's standard error."""
    try:
        if sys.stdout.fileno() != 1:
            raise OSError
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError):  # a test, or a notebook: not the process's own
        yield
        return
    own = sys.stdout
    try:
        os.dup2(2, 1)
        yield
    finally:
        own.flush()
        os.dup2(kept, 1)
        os.close(kept)
