"""A file that is there whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SUFFIX = ".part"
"""Of what is not whole yet, or was left by a killed process: see ``beside``."""


def beside(path: Path) -> Path:
    """A new hidden name in the same folder, for what will be ``path``."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}{SUFFIX}")


def left_beside(path: Path) -> list[Path]:
    """What killed processes have left of ``path``."""
    return [p for p in path.parent.glob(f".{path.name}-*{SUFFIX}") if len(p.name) == len(beside(path).name)]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, under a hidden name in the same folder, to write in; it becomes ``path`` where the block ends well.

    Else it is removed, and what was at ``path`` stays as it was. It is on the disk before it gets its name. The file's
    ``name`` is where it is meanwhile.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    temporary = beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """What was renamed in a folder outlives a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
