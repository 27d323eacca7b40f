"""All drawings as one uint8 table in a memory-mapped file, built once.

The pixels are ``[turns, num, 1, size, size]``: first all drawings as they are, then all of them turned by 90 degrees,
and so on, so that an episode with rotated classes is a single index gather. The file is a table of
``kshot.data.tables``, named by what it is made from, so a changed source is another file.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.data import tables
from kshot.errors import DataError
from kshot_omniglot import files
from kshot_omniglot.decode import EX_DATAERR, Job, decode
from kshot_omniglot.files import Character

log = logging.getLogger("kshot_omniglot")

VERSION = 2  # of the decoding: raise it when it changes
_FEW = 2000  # drawings that one process decodes in less time than a worker needs to start

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
    if alias and (known := _read_alias(alias)):
        found = tables.open_table(folder / known, name="omniglot", version=VERSION)
        if found:
            table = _table(found)
            check(table.characters)
            return table
    key = source.content_key()
    check(source.characters())
    path = folder / f"drawings-{key[:20]}-{size}px-{turns}.u8"
    make = partial(_make, source, size, turns, workers)
    table = _table(tables.open_or_build(path, make, name="omniglot", version=VERSION))
    if alias and table.file:
        with contextlib.suppress(OSError):  # the cache may be readable only; then the next load looks again
            tables.write_whole(alias, [json.dumps({"table": path.name}).encode()])
    return table


def _make(source: Source, size: int, turns: int, workers: int | None) -> tables.Made:
    pixels = source.pixels(size, workers)
    characters = source.characters()
    if len(pixels) != sum(c.drawings for c in characters):
        raise DataError(f"{source.where}: the drawings changed while they were read; try again")
    told = [list(attrs.astuple(c)) for c in characters]
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    facts = {"characters": told, "digest": digest.hexdigest()}
    return tables.Made(facts, "uint8", (turns * len(pixels), 1, size, size), _turned(pixels, turns))


def _turned(pixels: NDArray[np.uint8], turns: int) -> list[NDArray[np.uint8]]:
    """``pixels`` [num, size, size] turned anticlockwise by 0, 90, .. degrees, each a view [num, 1, size, size]."""
    return [np.rot90(pixels, r, axes=(1, 2))[:, None] for r in range(turns)]


def _table(made: tables.Table) -> Table:
    return Table(made.x, tuple(Character(*c) for c in made.facts["characters"]), made.facts["digest"], made.file)


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
