"""Keep all drawings as one uint8 table in a memory-mapped file, which is built once.

The pixels are ``[turns, num, 1, size, size]``: first all drawings upright, then all of them turned by 90 degrees,
and so on, so that an episode with rotated classes is read by one indexing operation. The file is a table of
``kshot.data.tables``, named after what it is made from, so a changed source is another file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
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
from kshot_omniglot.files import Character
from kshot_omniglot.workers import decode_all

log = logging.getLogger("kshot_omniglot")

VERSION = 2  # of the decoding; raise it when the decoding changes

Check = Callable[[Sequence[Character]], None]


@frozen(eq=False)
class Table:
    """Store the drawings of a source.

    Attributes:
        x: ink, 0 to 255, [turns * num, 1, size, size]; drawing i turned by r * 90 degrees anticlockwise is row
            r * num + i.
        characters: in the order of their drawings.
        digest: a hash of names and pixels, the same however they were packed.
        file: the file that ``x`` is mapped from, or None if ``x`` is in memory.
    """

    x: NDArray[np.uint8]
    characters: tuple[Character, ...]
    digest: str
    file: Path | None

    @property
    def drawings(self) -> int:
        """Number of drawings (num), without their rotations."""
        return sum(c.drawings for c in self.characters)


class Source(Protocol):
    """Describe what drawings can be read from."""

    @property
    def where(self) -> str:
        """Its name, for messages."""

    def place_key(self) -> str | None:
        """Return a key that can be computed quickly, or None if the source has no such key."""

    def content_key(self) -> str:
        """Return a key of the contents. Raises ``DataError`` if they are malformed."""

    def characters(self) -> tuple[Character, ...]:
        """Return the characters in the order of their drawings, without decoding any."""

    def pixels(self, size: int, workers: int | None) -> NDArray[np.uint8]:
        """Return the ink of all drawings [num, size, size]."""


@attrs.define(eq=False)
class Originals:
    """Represent Omniglot's two parts, as zips or folders, as a source of drawings.

    Args:
        parts: part -> its zip or folder, see ``files.locate``.
    """

    parts: Mapping[str, Path]
    _listing: files.Listing | None = None

    @property
    def where(self) -> str:
        """The paths of the parts, for messages."""
        return " and ".join(map(str, self.parts.values()))

    def listing(self) -> files.Listing:
        """Return the list of all drawings, which is made once."""
        if self._listing is None:
            self._listing = files.look_through(self.parts)
        return self._listing

    def place_key(self) -> str | None:
        """Return a key of zips by path, size and times, or None for folders."""
        return files.place_key(self.parts)

    def content_key(self) -> str:
        """Return a key of the names and contents of all drawings. Raises ``DataError`` if they are malformed."""
        return self.listing().key

    def characters(self) -> tuple[Character, ...]:
        """Return the characters in the order of their drawings, without decoding any."""
        return self.listing().characters

    def pixels(self, size: int, workers: int | None) -> NDArray[np.uint8]:
        """Return the ink of all drawings [num, size, size]."""
        return decode_all(self.listing().job, size, workers)


def load(source: Source, *, size: int, turns: int, folder: Path, check: Check, workers: int | None = None) -> Table:
    """Return the table of a source, from the cache or built and put there.

    Args:
        source: what the drawings are read from.
        size: pixels per side.
        turns: 1, or 4 for all rotations.
        folder: of the cache; if it can't be written, the table is kept in memory, with a warning.
        check: a function that raises ``DataError`` if the characters are not the expected ones; it is called before
            anything is decoded.
        workers: number of processes that decode; by default one for each processor that this process may use, at
            most 8.

    Raises:
        DataError: the source is malformed.
    """
    # 1. A small file, named after the place of the zips, leads to their table without opening them.
    place = source.place_key()
    alias = folder / f"place-{place}-{size}px-{turns}.json" if place else None
    if alias and (known := _read_alias(alias)):
        opened = tables.open_table(folder / known, name="omniglot", version=VERSION)
        if opened:
            table = _table(opened)
            check(table.characters)
            return table
    # 2. Else the table is named after the contents.
    key = source.content_key()
    check(source.characters())
    path = folder / f"drawings-{key[:20]}-{size}px-{turns}.u8"
    make = partial(_make, source, size, turns, workers)
    table = _table(tables.open_or_build(path, make, name="omniglot", version=VERSION))
    if alias and table.file:
        with contextlib.suppress(OSError):  # in a read-only cache, the next load lists the drawings again
            tables.write_whole(alias, [json.dumps({"table": path.name}).encode()])
    return table


def _make(source: Source, size: int, turns: int, workers: int | None) -> tables.Made:
    """Decode all drawings of a source into what a table is built from."""
    pixels = source.pixels(size, workers)
    characters = source.characters()
    if len(pixels) != sum(c.drawings for c in characters):
        raise DataError(
            f"{source.where}: got drawings that changed while they were read, expected them to stay; try again"
        )
    listed = [list(attrs.astuple(c)) for c in characters]
    digest = hashlib.blake2b(json.dumps(listed).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    facts = {"characters": listed, "digest": digest.hexdigest()}
    return tables.Made(facts, "uint8", (turns * len(pixels), 1, size, size), _turned(pixels, turns))


def _turned(pixels: NDArray[np.uint8], turns: int) -> list[NDArray[np.uint8]]:
    """Return views [num, 1, size, size] of ``pixels`` [num, size, size], turned anticlockwise by 0, 90, ... degrees."""
    return [np.rot90(pixels, r, axes=(1, 2))[:, None] for r in range(turns)]


def _table(stored: tables.Table) -> Table:
    """Return a stored table with its facts as values."""
    characters = tuple(Character(*c) for c in stored.facts["characters"])
    return Table(stored.x, characters, stored.facts["digest"], stored.file)


def _read_alias(path: Path) -> str | None:
    """Return the name of the table to which a small file leads, or None if there is no such file."""
    try:
        return str(json.loads(path.read_bytes())["table"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
