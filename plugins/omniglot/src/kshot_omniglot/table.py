"""All drawings as one uint8 table in a memory-mapped file, built once.

A file is a header (magic, length and digest of a JSON text, the text) padded to a page, then the pixels
``[turns, num, 1, size, size]``: first all drawings as they are, then all of them turned by 90 degrees, and so on, so
that an episode with rotated classes is a single index gather. It is written beside its place under another name,
flushed to the disk and renamed: under its own name it is always whole. It is named by what it is made from, so a
changed source is another file.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
import platformdirs
from attrs import frozen
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kshot.errors import DataError
from kshot_omniglot import files
from kshot_omniglot.decode import EX_DATAERR, Job, decode
from kshot_omniglot.files import Character

log = logging.getLogger("kshot_omniglot")

MAGIC = b"kshotOM1"  # the last byte is the version of file and decoding: raise it when either changes
_HEAD = struct.Struct("<8sI16s")  # magic, length of the text, digest of the text
_PAGE = 4096
_FEW = 2000  # drawings that one process decodes in less time than a worker needs to start
_PATIENCE = 600.0  # seconds to wait for another builder before building without the lock

Check = Callable[[Sequence[Character]], None]


@frozen(eq=False)
class Table:
    """The drawings.

    Attributes:
        x: ink, 0 to 255 [turns * num, 1, size, size]; drawing i turned by r * 90 degrees anticlockwise is row
            r * num + i.
        characters: in the order of their drawings.
        digest: of names and pixels, however they were packed.
        file: that ``x`` is mapped from, or None where it is held in memory.
    """

    x: NDArray[np.uint8]
    characters: tuple[Character, ...]
    digest: str
    file: Path | None

    @property
    def drawings(self) -> int:
        """num, the number of drawings, each counted once."""
        return sum(c.drawings for c in self.characters)


class Source(Protocol):
    """Something that drawings can be read from."""

    @property
    def where(self) -> str:
        """Its name, for people."""

    def place_key(self) -> str | None:
        """A key that costs next to nothing, or None."""

    def content_key(self) -> str:
        """A key of the contents. Raises DataError where they are malformed."""

    def characters(self) -> tuple[Character, ...]:
        """The characters, before anything is decoded."""

    def pixels(self, size: int, workers: int | None) -> NDArray[np.uint8]:
        """The ink of all drawings [num, size, size]."""


@attrs.define(eq=False)
class Originals:
    """Omniglot's two parts, as zips or folders."""

    parts: Mapping[str, Path]
    _listing: files.Listing | None = None

    @property
    def where(self) -> str:
        return " and ".join(map(str, self.parts.values()))

    def listing(self) -> files.Listing:
        if self._listing is None:
            self._listing = files.look_through(self.parts)
        return self._listing

    def place_key(self) -> str | None:
        return files.place_key(self.parts)

    def content_key(self) -> str:
        return self.listing().key

    def characters(self) -> tuple[Character, ...]:
        return self.listing().characters

    def pixels(self, size: int, workers: int | None) -> NDArray[np.uint8]:
        return decode_all(self.listing().job, size, workers)


def cache_folder(cache: Path | str | None = None) -> Path:
    """Where tables are kept: ``omniglot`` in ``cache``, else ``KSHOT_CACHE``, else the system's cache for kshot."""
    base = cache or os.environ.get("KSHOT_CACHE") or platformdirs.user_cache_path("kshot", appauthor=False)
    return Path(base).expanduser().absolute() / "omniglot"


def load(source: Source, *, size: int, turns: int, folder: Path, check: Check, workers: int | None = None) -> Table:
    """The table of a source: from the cache, or built and put there.

    Args:
        turns: 1, or 4 for all rotations.
        folder: of the cache; where it can't be written the table is held in memory, with a warning.
        check: raises DataError where these characters won't do; called before anything is decoded.
        workers: processes that decode; by default as many as this process may use processors, at most 8.

    Raises:
        DataError: the source is malformed.
    """
    place = source.place_key()
    alias = folder / f"place-{place}-{size}px-{turns}.json" if place else None
    if alias and (known := _read_alias(alias)) and (table := open_table(folder / known)):
        check(table.characters)
        return table
    key = source.content_key()
    check(source.characters())
    path = folder / f"drawings-{key[:20]}-{size}px-{turns}.u8"
    table = open_table(path)
    if table is None:
        table = _build(source, path, size, turns, workers)
    if alias and table.file:
        with contextlib.suppress(OSError):  # the cache may be readable only; then the next load looks again
            _write_whole(alias, [json.dumps({"table": path.name}).encode()])
    return table


def _build(source: Source, path: Path, size: int, turns: int, workers: int | None) -> Table:
    made = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path) as alone:
            if table := open_table(path):  # someone else has built it while this process waited
                return table
            if alone:
                _sweep(path)
            made = header, pixels = _make(source, size, turns, workers)
            log.info("writing %s", path)
            _write_whole(path, itertools.chain(_head(header), _turned(pixels, turns)))
        if table := open_table(path):
            return table
        raise OSError(f"{path} can't be read back")
    except OSError as error:
        reason = f"{type(error).__name__}: {error}"
    header, pixels = made or _make(source, size, turns, workers)
    x = np.concatenate(list(_turned(pixels, turns)))
    warnings.warn(
        f"omniglot: the cache folder {path.parent} can't be used ({reason}), so {x.nbytes >> 20} MB of drawings are "
        "held in memory and decoded anew next time; name a folder that can be written by cache= or KSHOT_CACHE",
        UserWarning,
        stacklevel=4,
    )
    return _table(header, x, None)


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
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def _make(source: Source, size: int, turns: int, workers: int | None) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    pixels = source.pixels(size, workers)
    characters = source.characters()
    if len(pixels) != sum(c.drawings for c in characters):
        raise DataError(f"{source.where}: the drawings changed while they were read; try again")
    told = [list(attrs.astuple(c)) for c in characters]
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    header = {"characters": told, "digest": digest.hexdigest(), "shape": [turns * len(pixels), 1, size, size]}
    return header, pixels


def _turned(pixels: NDArray[np.uint8], turns: int) -> Iterator[NDArray[np.uint8]]:
    """``pixels`` [num, size, size] turned anticlockwise by 0, 90, .. degrees, each [num, 1, size, size]."""
    for r in range(turns):
        yield np.ascontiguousarray(np.rot90(pixels, r, axes=(1, 2)))[:, None]


def _head(header: dict[str, Any]) -> list[bytes]:
    text = json.dumps(header).encode()
    head = _HEAD.pack(MAGIC, len(text), hashlib.blake2b(text, digest_size=16).digest())
    return [head, text, bytes(-(len(head) + len(text)) % _PAGE)]


def _write_whole(path: Path, chunks: Iterable[Any]) -> None:
    """Puts a file in its place at once: whole under its name, or not at all."""
    number, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # a cache may be shared; mkstemp's files are their owner's only
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def open_table(path: Path) -> Table | None:
    """The table in a file, mapped and not read; None where there is none or not a whole one."""
    try:
        with open(path, "rb") as file:
            magic, length, digest = _HEAD.unpack(file.read(_HEAD.size))
            text = file.read(length) if magic == MAGIC else b""
            have = os.fstat(file.fileno()).st_size
        if magic != MAGIC or hashlib.blake2b(text, digest_size=16).digest() != digest:
            log.warning("%s is damaged or of another version; it is built anew", path)
            return None
        header = json.loads(text)
        shape = tuple(header["shape"])
        offset = -(-(_HEAD.size + length) // _PAGE) * _PAGE
        if have != offset + int(np.prod(shape)):
            log.warning("%s has %d bytes, expected %d; it is built anew", path, have, offset + int(np.prod(shape)))
            return None
        # Copy-on-write: torch wants memory that may be written, and nothing written may reach the file.
        x = np.memmap(path, np.uint8, "c", offset, shape)
    except FileNotFoundError:
        return None
    except (OSError, struct.error, ValueError) as error:
        log.warning("%s can't be used (%s)", path, error)
        return None
    return _table(header, x, path)


def _table(header: dict[str, Any], x: NDArray[np.uint8], file: Path | None) -> Table:
    return Table(x, tuple(Character(*c) for c in header["characters"]), header["digest"], file)


def _read_alias(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_bytes())["table"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# -------------------- decoding in parallel


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_all(job: Job, size: int, workers: int | None = None) -> NDArray[np.uint8]:
    """The ink of all drawings [num, size, size], by several processes where there are many drawings.

    Raises:
        DataError: a drawing is missing or damaged.
    """
    number = sum(len(names) for _, names in job)
    workers = min(processors(), 8) if workers is None else workers
    shares = 1 if number < _FEW else min(workers, number)
    if shares <= 1:
        made = decode(job, size)
    else:
        with ThreadPoolExecutor(shares) as pool:
            made = b"".join(pool.map(lambda share: _decode_outside(share, size), _shares(job, number, shares)))
    return np.frombuffer(made, np.uint8).reshape(-1, size, size)


def _shares(job: Job, number: int, shares: int) -> list[Job]:
    """The job in ``shares`` parts of equal length, in order."""
    bounds = [number * s // shares for s in range(shares + 1)]
    made: list[Job] = []
    for first, last in itertools.pairwise(bounds):
        share, start = [], 0
        for place, names in job:
            if cut := names[max(first - start, 0) : max(last - start, 0)]:
                share.append((place, cut))
            start += len(names)
        made.append(share)
    return made


def _decode_outside(job: Job, size: int) -> bytes:
    """A job done by a worker; by this process where workers can't be had (a frozen program, a strict sandbox)."""
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "kshot_omniglot.decode"]
    request = json.dumps({"job": job, "size": size}).encode()
    try:
        done = subprocess.run(command, input=request, capture_output=True, env=environment, check=False)
    except OSError as error:
        log.warning("no worker could be started (%s); decoding in this process", error)
        return decode(job, size)
    told = done.stderr.decode(errors="replace").strip()
    if done.returncode == EX_DATAERR:
        raise DataError(told)
    if done.returncode or len(done.stdout) != size * size * sum(len(names) for _, names in job):
        log.warning("a worker failed with status %d (%s); decoding in this process", done.returncode, told[-500:])
        return decode(job, size)
    return done.stdout
