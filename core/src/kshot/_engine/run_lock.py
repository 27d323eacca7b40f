"""Let only one training at a time write to a run folder, and remove what a killed one has left there."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kshot._atomic import SUFFIX
from kshot.errors import RunError

_holders: dict[Path, int] = {}
"""Run folders that this process trains in, with the number of the thread that does."""

_OLD = 3600.0
"""Age in seconds of an incomplete file that no living process is writing, if not only trainings write such files."""


@contextlib.contextmanager
def only_training(run: Path) -> Iterator[None]:
    """Hold a run folder's lock within a ``with`` block; the same thread may hold it several times.

    The system releases the lock of a process that is killed. On a file system without locks nothing is locked.

    Raises:
        RunError: another process or thread trains in this folder.
    """
    path = run.resolve()
    if _holders.get(path) == threading.get_ident():
        yield
        return
    # The lock is on config.json, which every run has and which is never replaced.
    with _opened(path / "config.json") as file:
        if not _lock(file):
            raise RunError(
                f"{run}: got a run that another process is training at this moment, expected one that is not in use; "
                "wait until it has finished, or stop it, then resume the run"
            )
        _holders[path] = threading.get_ident()
        try:
            remove_leftovers(path)
            yield
        finally:
            del _holders[path]
            _unlock(file)


def remove_leftovers(run: Path) -> None:
    """Remove the incomplete files that killed processes have left in a run folder whose lock is held.

    Only trainings write checkpoints and metrics, so none of those is being written now. An evaluation may be writing
    another file, which is removed only if it is old.
    """
    with contextlib.suppress(OSError):
        for path in (*(run / "checkpoints").glob(f".*.pt-*{SUFFIX}"), *run.glob(f".metrics.jsonl-*{SUFFIX}")):
            path.unlink(missing_ok=True)
        for path in run.glob(f".*{SUFFIX}"):
            if path.is_file() and time.time() - path.stat().st_mtime > _OLD:
                path.unlink(missing_ok=True)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb+")  # some network file systems lock only files that are open for writing
    except PermissionError:
        return path.open("rb")


if sys.platform == "win32":
    import msvcrt

    _BEYOND = 1 << 30
    """Position of the locked byte, behind the end of the file: a locked byte can't be read by others."""

    def _lock(file: IO[bytes]) -> bool:
        file.seek(_BEYOND)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        file.seek(_BEYOND)
        with contextlib.suppress(OSError):
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # the file system has no locks
            return True
        return True

    def _unlock(file: IO[bytes]) -> None:
        # Processes that were forked meanwhile share the lock, so closing the file would not release it.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
