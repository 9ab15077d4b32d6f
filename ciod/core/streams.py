"""Standard output and standard error of a command: any text can be written, and a full device is an error."""

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
    """The output of a command cannot be written."""


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
    """Flushes now; at exit Python would only print "Exception ignored"."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard()
        raise
    except OSError as error:
        discard()
        raise OutputError(_full(error)) from error


def _full(error: OSError) -> str:
    return f"The output of this command cannot be written ({error.strerror}); redirect it to a disk with free space."


def discard() -> None:
    """Discards output that is not printed yet."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
