"""Decoded examples as one array in a memory-mapped file, built once: what plugins of real data keep in a cache.

A file is a head (magic, length and digest of a JSON text, the text) padded to a page, then the array. It is written
beside its place under another name, flushed to the disk and renamed: under its own name it is always whole. Name it by
what it is made from, so that a changed source is another file.

Needs the extra ``kshot[tables]`` (filelock, platformdirs), which a plugin that uses it asks for.
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

MAGIC = b"kshotTB1"  # the last byte is the version of this format
_HEAD = struct.Struct("<8sI16s")  # magic, length of the text, digest of the text
_PAGE = 4096
_PATIENCE = 600.0  # seconds to wait for another builder before building without the lock


@frozen(eq=False)
class Table:
    """An array and what is known of it.

    Attributes:
        x: the array, its first axis the examples; writing to it never reaches the file.
        facts: plain values that came with it, as JSON gives them back.
        file: that ``x`` is mapped from, or None where it is held in memory.
    """

    x: NDArray[Any]
    facts: Mapping[str, Any]
    file: Path | None


@frozen(eq=False)
class Made:
    """What a table is built from.

    Attributes:
        facts: plain values.
        dtype: of the array, such as ``uint8``.
        shape: of the whole array.
        parts: arrays that make it up, one after another along the first axis; views are copied one by one.
    """

    facts: Mapping[str, Any]
    dtype: str
    shape: tuple[int, ...]
    parts: Sequence[NDArray[Any]]


def cache_folder(name: str, cache: Path | str | None = None) -> Path:
    """Where a plugin keeps its files: ``name`` in ``cache``, else in ``KSHOT_CACHE``, else in the system's cache."""
    base = cache or os.environ.get("KSHOT_CACHE") or platformdirs.user_cache_path("kshot", appauthor=False)
    return Path(base).expanduser().absolute() / name


def open_or_build(path: Path, make: Callable[[], Made], *, name: str, version: int) -> Table:
    """The table in ``path``; built and put there if it isn't there whole, or is of another name or version.

    Two processes that ask at once build it once. Where the folder can't be used the table is held in memory, with a
    warning.

    Args:
        make: builds it; whatever it raises comes out. It may be called in vain, where another has been quicker.
        name: of the plugin, for messages and to tell its files from others'.
        version: of the decoding; raise it when it changes.
    """
    if table := open_table(path, name=name, version=version):
        return table
    made, making = None, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path) as alone:
            if table := open_table(path, name=name, version=version):  # built while this process waited
                return table
            if alone:
                _sweep(path)
            making = True
            made = make()
            making = False
            log.info("writing %s", path)
            bytes_of = (np.ascontiguousarray(part, np.dtype(made.dtype)).data for part in made.parts)
            write_whole(path, itertools.chain(_head(made, name, version), bytes_of))
        if table := open_table(path, name=name, version=version):
            return table
        raise OSError(f"{path} can't be read back")
    except OSError as error:
        if making:
            raise
        reason = f"{type(error).__name__}: {error}"
    made = made or make()
    x = np.concatenate([np.asarray(part, np.dtype(made.dtype)) for part in made.parts]).reshape(made.shape)
    warnings.warn(
        f"{name}: the cache folder {path.parent} can't be used ({reason}), so {x.nbytes >> 20} MB of examples are held "
        "in memory and decoded anew next time; name a folder that can be written by cache= or KSHOT_CACHE",
        UserWarning,
        stacklevel=2,
    )
    return Table(x, json.loads(json.dumps(dict(made.facts))), None)


def open_table(path: Path, *, name: str, version: int) -> Table | None:
    """The table in a file, mapped and not read; None where there is none that is whole, of this name and version."""
    try:
        with open(path, "rb") as file:
            magic, length, digest = _HEAD.unpack(file.read(_HEAD.size))
            text = file.read(length) if magic == MAGIC else b""
            have = os.fstat(file.fileno()).st_size
        if magic != MAGIC or hashlib.blake2b(text, digest_size=16).digest() != digest:
            log.warning("%s is damaged or of another version; it is built anew", path)
            return None
        head = json.loads(text)
        if (head["name"], head["version"]) != (name, version):
            log.info("%s is of %s, version %s; it is built anew", path, head["name"], head["version"])
            return None
        dtype, shape = np.dtype(head["dtype"]), tuple(head["shape"])
        offset = -(-(_HEAD.size + length) // _PAGE) * _PAGE
        want = offset + math.prod(shape) * dtype.itemsize
        if have != want:
            log.warning("%s has %d bytes, expected %d; it is built anew", path, have, want)
            return None
        # Copy-on-write: torch wants memory that may be written, and nothing written may reach the file.
        x = np.memmap(path, dtype, "c", offset, shape)
    except FileNotFoundError:
        return None
    except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
        log.warning("%s can't be used (%s)", path, error)
        return None
    return Table(x, head["facts"], path)


def write_whole(path: Path, chunks: Iterable[Any]) -> None:
    """Puts a file in its place at once: whole under its name, or not at all.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    with writing(path) as file:
        for chunk in chunks:
            file.write(chunk)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Lets one process build at a time, and says whether it could. If not, the work is done twice, nothing worse."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=_PATIENCE)
    except (Timeout, NotImplementedError):  # a file system without locks
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _sweep(path: Path) -> None:
    """Removes what a killed builder of the same table has left. Called under the lock: nobody is writing it."""
    for left in left_beside(path):
        left.unlink(missing_ok=True)


def _head(made: Made, name: str, version: int) -> list[bytes]:
    head = {
        "name": name,
        "version": version,
        "dtype": np.dtype(made.dtype).str,
        "shape": list(made.shape),
        "facts": dict(made.facts),
    }
    text = json.dumps(head).encode()
    packed = _HEAD.pack(MAGIC, len(text), hashlib.blake2b(text, digest_size=16).digest())
    return [packed, text, bytes(-(len(packed) + len(text)) % _PAGE)]
