"""Check what a path is before it is opened for reading, and name the file in what a decoder raises.

This module imports neither torch nor numpy, so that a worker process that uses it starts quickly.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kshot.errors import DataError

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextlib.contextmanager
def named(name: Path | str, problem: str = "can't be decoded", expected: str = "one that can") -> Iterator[None]:
    """Turn whatever decoding a file raises into a ``DataError`` that names the file.

    Args:
        name: the file, or where its content is from.
        problem, expected: what the message says of the file, and what it says was expected.

    Example:
        >>> with named("a.wav"):
        ...     raise ValueError("cut off")
        Traceback (most recent call last):
        kshot.errors.DataError: a.wav: got a file that can't be decoded (ValueError: cut off), expected one that can; \
fix or remove it
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # on damaged or odd bytes, each decoder raises something else
        raise DataError(
            f"{name}: got a file that {problem} ({type(error).__name__}: {error}), expected {expected}; "
            "fix or remove it"
        ) from error


def check_regular(path: Path | str, what: str = "a file") -> None:
    """Raise DataError if a path is a pipe, a socket or a device: reading one may wait or go on for ever.

    A missing path and a folder are not refused here, because opening them fails at once.

    Args:
        path: the path.
        what: what is expected, in words for messages, such as ``"an image"``.

    Raises:
        DataError: it is something else than a file or a folder. The message names it.

    Example:
        >>> check_regular(os.devnull)
        Traceback (most recent call last):
        kshot.errors.DataError: /dev/null: got a device, expected a file; give a regular file or remove it
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if kind := next((name for test, name in _KINDS if test(mode)), None):
        raise DataError(f"{path}: got {kind}, expected {what}; give a regular file or remove it")
