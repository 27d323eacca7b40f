"""Keep decoded examples as one array in a memory-mapped file, which is built once.

A file is a head (magic, length and digest of a JSON text, the text) padded to a page, then the array, then the array's
SHA-256. It is written under another name in the same folder, flushed to the disk and renamed: under its own name it is
always complete. Name a table after what it is made from, so that a changed source is another file.

The head and the size are checked at each opening. The array is read and compared with its SHA-256, about a gigabyte a
second, at the first opening by a later process and after each change of the file; ``NAME.checked`` beside the table
notes the state in which it was right. Remove that file to have the table checked again.

Needs the extra ``kshot[tables]`` (filelock, platformdirs), for which a plugin that uses this module asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from attrs import frozen
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kshot._atomic import left_beside, writing

log = logging.getLogger("kshot.data.tables")

MAGIC = b"kshotTB2"  # the last byte is the version of this format
_WITHOUT_DIGEST = b"kshotTB1"  # the format without the array's digest, which is still read
_DIGEST = hashlib.sha256  # faster than BLAKE2b on processors with instructions for it
_HEAD = struct.Struct("<8sI16s")  # magic, length of the text, digest of the text
_PAGE = 4096
_TICK = 2_000_000_000  # nanoseconds; the coarsest clock of a usual file system
_PATIENCE = 600.0  # seconds to wait for another process that builds, before building without the lock


@frozen(eq=False)
class Table:
    """Store an array and what is known about it.

    Attributes:
        x: the array [num, *input]; writing to it never changes the file.
        facts: plain values that were stored with it, as JSON returns them: tuples are lists.
        file: the file that ``x`` is mapped from, or None if ``x`` is in memory.
    """

    x: NDArray[Any]
    facts: Mapping[str, Any]
    file: Path | None


@frozen(eq=False)
class Made:
    """Store what a table is built from.

    Attributes:
        facts: plain values, which JSON can represent.
        dtype: type of the array's numbers, such as ``uint8``.
        shape: shape of the complete array [num, *input].
        parts: arrays that make it up when they are put one after another along the first axis. They are written one
            by one, so they may be views, or a sequence that decodes them when it is iterated.
    """

    facts: Mapping[str, Any]
    dtype: str
    shape: tuple[int, ...]
    parts: Sequence[NDArray[Any]]


def cache_folder(name: str, cache: Path | str | None = None) -> Path:
    """Return the folder for a plugin's files: ``name`` in ``cache``, in ``KSHOT_CACHE``, or in the system's cache.

    Args:
        name: of the plugin.
        cache: the folder that a user chose, or None.

    Example:
        >>> cache_folder("omniglot", "/data/cache").parts[-2:]
        ('cache', 'omniglot')
    """
    base = cache or os.environ.get("KSHOT_CACHE") or platformdirs.user_cache_path("kshot", appauthor=False)
    return Path(base).expanduser().absolute() / name


def open_or_build(path: Path, make: Callable[[], Made], *, name: str, version: int) -> Table:
    """Return the table in ``path``, or build it and put it there.

    It is built if there is no file, or the file is damaged or of another name or version. Two processes that ask at the
    same time build it once. If the folder can't be used, the table is kept in memory, with a warning.

    Args:
        path: the table's file.
        make: a function that returns what to build from. Its exceptions propagate; its result may be discarded, if
            another process was quicker.
        name: of the plugin, for messages and to recognise its files.
        version: of the decoding; raise it when the decoding changes.

    Example:
        >>> import tempfile
        >>> def make() -> Made:
        ...     return Made({"names": ["a", "b"]}, "uint8", (2, 3), [np.zeros((1, 3)), np.ones((1, 3))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = open_or_build(Path(folder, "example.table"), make, name="example", version=1)
        >>> table.x.tolist(), table.facts
        ([[0, 0, 0], [1, 1, 1]], {'names': ['a', 'b']})
    """
    # 1. A table that is there.
    if table := open_table(path, name=name, version=version):
        return table
    source, making = None, False
    try:
        # 2. Build it, one process at a time.
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path) as locked:
            if table := open_table(path, name=name, version=version):  # built while this process waited
                return table
            if locked:
                _remove_leftovers(path)
            making = True  # until it is False again, an OSError is the source's and not the cache's
            source = make()
            making = False
            log.info("writing %s", path)
            chunks = (np.ascontiguousarray(part, np.dtype(source.dtype)).data for part in source.parts)
            write_whole(path, itertools.chain(_head(source, name, version), _with_digest(chunks)))
        if table := open_table(path, name=name, version=version, check=False):
            return table
        raise OSError(f"{path} can't be read back")
    except OSError as error:
        if making:
            raise
        reason = f"{type(error).__name__}: {error}"
    # 3. The cache can't be used: keep the array in memory.
    source = source or make()
    x = np.concatenate([np.asarray(part, np.dtype(source.dtype)) for part in source.parts]).reshape(source.shape)
    warnings.warn(
        f"{name}: got the cache folder {path.parent}, which can't be used ({reason}), expected one that can be "
        f"written: {x.nbytes >> 20} MB of examples are kept in memory and decoded again next time; name another folder "
        "by cache= or KSHOT_CACHE",
        UserWarning,
        stacklevel=2,
    )
    return Table(x, json.loads(json.dumps(dict(source.facts))), None)


def open_table(path: Path, *, name: str, version: int, check: bool = True) -> Table | None:
    """Return the table in a file, mapped; or None if there is no complete one of this name and version.

    Args:
        path: the table's file.
        name: of the plugin that built it.
        version: of the decoding.
        check: whether to compare the array with its digest, unless it was right before and the file has not changed.
    """
    try:
        with open(path, "rb") as file:
            magic, length, digest = _HEAD.unpack(file.read(_HEAD.size))
            stat = os.fstat(file.fileno())
            known = magic in (MAGIC, _WITHOUT_DIGEST) and length <= stat.st_size
            text = file.read(length) if known else b""
        if not known or hashlib.blake2b(text, digest_size=16).digest() != digest:
            log.warning("%s is damaged or of another format; it will be built again", path)
            return None
        head = json.loads(text)
        if (head["name"], head["version"]) != (name, version):
            log.info("%s is of %s, version %s; it will be built again", path, head["name"], head["version"])
            return None
        dtype, shape = np.dtype(head["dtype"]), tuple(head["shape"])
        if dtype.hasobject:  # the bytes of the file would be used as addresses in memory
            raise ValueError(f"got an array of {dtype}, expected numbers")
        offset = -(-(_HEAD.size + length) // _PAGE) * _PAGE  # the end of the head, rounded up to a page
        end = offset + math.prod(shape) * dtype.itemsize
        expected = end + (_DIGEST().digest_size if magic == MAGIC else 0)
        if stat.st_size != expected:
            log.warning("%s: got %d bytes, expected %d; it will be built again", path, stat.st_size, expected)
            return None
        if check and magic == MAGIC and not _is_right(path, stat, offset, end):
            log.warning("%s: got an array that has changed since it was written; it will be built again", path)
            return None
        # "c" is copy-on-write: torch needs memory that may be written, and nothing written may reach the file.
        x = np.memmap(path, dtype, "c", offset, shape)
    except FileNotFoundError:
        return None
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s can't be used (%s: %s); it will be built again", path, type(error).__name__, error)
        return None
    return Table(x, head["facts"], path)


def _is_right(path: Path, stat: os.stat_result, offset: int, end: int) -> bool:
    """Return whether the array at ``offset`` to ``end`` of a file has its digest; it is read once for each change."""
    noted = path.with_name(path.name + ".checked")
    # A user can set the time of modification but not the time of change, which Windows doesn't have.
    state = f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}".encode()
    settled = stat.st_ctime_ns < time.time_ns() - _TICK  # another change would have another time
    with contextlib.suppress(OSError):
        if settled and noted.read_bytes() == state:
            return True
    digest = _DIGEST()
    with open(path, "rb") as file:
        file.seek(offset)
        left = end - offset
        while left and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        if file.read() != digest.digest():
            return False
    if settled:
        with contextlib.suppress(OSError):  # in a read-only cache, the next opening checks it again
            write_whole(noted, [state])
    return True


def write_whole(path: Path, chunks: Iterable[Any]) -> None:
    """Write a file that appears complete under its name, or not at all.

    Args:
        path: the file.
        chunks: bytes, or what has a buffer of bytes, in the order of the file.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    with writing(path) as file:
        for chunk in chunks:
            file.write(chunk)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Let one process build at a time, and yield whether the lock was available.

    Without a lock the work may be done twice, and nothing worse happens.
    """
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=_PATIENCE)
    except (Timeout, NotImplementedError):  # another process takes too long, or the file system has no locks
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _remove_leftovers(path: Path) -> None:
    """Remove the files that killed builders of the same table have left. The caller has the lock: none is in use."""
    for leftover in left_beside(path):
        leftover.unlink(missing_ok=True)


def _with_digest(chunks: Iterable[Any]) -> Iterator[Any]:
    """Yield the bytes of the array, and then their digest."""
    digest = _DIGEST()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    yield digest.digest()


def _head(source: Made, name: str, version: int) -> list[bytes]:
    """Return the head of a table's file: magic, length and digest of the text, the text, and zeros up to a page."""
    head = {
        "name": name,
        "version": version,
        "dtype": np.dtype(source.dtype).str,
        "shape": list(source.shape),
        "facts": dict(source.facts),
    }
    text = json.dumps(head).encode()
    packed = _HEAD.pack(MAGIC, len(text), hashlib.blake2b(text, digest_size=16).digest())
    return [packed, text, bytes(-(len(packed) + len(text)) % _PAGE)]
