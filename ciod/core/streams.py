"""Standard output and standard error of a command: any text can be written, and a device that is full is a sentence."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

from ciod.core.errors import CiodError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class OutputError(CiodError):
    """What a command prints cannot be written."""


@contextmanager
def streams() -> Generator[None, None, None]:
    """Around a command.

    Raises:
        OutputError: standard output goes to a device that is full or broken.
        BrokenPipeError: the reader has closed it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be text
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _FULL and not isinstance(error, CiodError):
            discard()
            raise OutputError(_full(error)) from error
        raise
    finally:
        _flush()


def _flush() -> None:
    """Now, since Python would only print "Exception ignored" when it ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard()
        raise
    except OSError as error:
        discard()
        raise OutputError(_full(error)) from error


def _full(error: OSError) -> str:
    return (
        f"What this command prints cannot be written ({error.strerror}); let standard output go to a place with room."
    )


def discard() -> None:
    """Lets what still waits to be printed go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
