"""Write files that appear complete or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SUFFIX = ".part"
"""Suffix of files that are not complete yet, or that a killed process has left: see ``beside``."""


def beside(path: Path) -> Path:
    """Return a new hidden name in the same folder, under which to write the file that will become ``path``."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex}{SUFFIX}")


def left_beside(path: Path) -> list[Path]:
    """List the incomplete files of ``path`` that killed processes have left."""
    # The length tells them from those of another file whose name begins with this one's and a hyphen.
    length = len(beside(path).name)
    return [p for p in path.parent.glob(f".{path.name}-*{SUFFIX}") if len(p.name) == length]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file under a hidden name in the same folder, and rename it to ``path`` when the block ends.

    If the block raises, the file is removed, and what was at ``path`` stays as it was. The file is flushed to the disk
    before it is renamed. Until then its ``name`` is the hidden one.

    Raises:
        OSError: the disk is full, or the folder can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with writing(Path(folder, "a.txt")) as file:
        ...         _ = file.write(b"complete")
        ...     Path(folder, "a.txt").read_text()
        'complete'
    """
    temporary = beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the name without the contents
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a file renamed in it keeps its name after a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
