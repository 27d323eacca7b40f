"""Tables of class vectors, read from a file or a dict: a name and A numbers for each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.data.archives import Archive
from kshot.data.files import check_regular
from kshot.errors import DataError

SUFFIXES = (".csv", ".npz")
_LARGEST = 1 << 28
"""The greatest number of bytes of an array in an npz file, decompressed."""


@frozen(eq=False)
class Table:
    """Store class vectors by the names of the classes.

    Attributes:
        rows: for the name of each class, its row in ``vectors``.
        vectors: the class vectors [C, A].
        where: the source of the table, for messages.
    """

    rows: Mapping[str, int]
    vectors: NDArray[np.float64]
    where: str

    @classmethod
    def of(cls, names: Sequence[str], vectors: Sequence[Any] | NDArray[Any], where: str) -> Table:
        """Make a table from C names and C vectors of A numbers.

        Raises:
            DataError: there are no names, the numbers of names and vectors differ, a name occurs twice, or a vector
                has entries that are not finite numbers.
        """
        if len(names) != len(vectors) or not len(names):
            raise DataError(
                f"{where}: got {len(names)} names and {len(vectors)} vectors, expected one of each per class"
            )
        rows = {name: i for i, name in enumerate(names)}
        if len(rows) < len(names):
            twice = next(name for i, name in enumerate(names) if rows[name] != i)
            raise DataError(f"{where}: got class {twice!r} twice, expected one vector per class")
        try:
            arrays = [np.asarray(vector, np.float64) for vector in vectors]
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{where}: got a vector that is not of numbers ({error}), expected A numbers") from error
        for name, vector in zip(names, arrays, strict=True):
            if vector.ndim != 1 or not len(vector) or vector.shape != arrays[0].shape:
                raise DataError(
                    f"{where}: got a vector of shape {vector.shape} for class {name!r} and of shape "
                    f"{arrays[0].shape} for {names[0]!r}, expected A numbers for each class, with the same A >= 1"
                )
            if not np.isfinite(vector).all():
                raise DataError(f"{where}: got NaN or infinite values for class {name!r}, expected finite numbers")
        return cls(rows, np.stack(arrays), where)

    def take(self, names: Sequence[str], split: str) -> NDArray[np.float64]:
        """Return the vectors of the classes ``names``, in this order [len(names), A].

        Raises:
            DataError: the classes have no names, or some are missing from the table; the message names them.
        """
        if not len(names):
            raise DataError(
                f"semantics: got classes without names in split {split!r}, expected names to look up in {self.where}; "
                "name the classes, e.g. kshot.Pool.of(x, y, names=...)"
            )
        missing = [name for name in names if name not in self.rows]
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise DataError(
                f"semantics: got {len(missing)} of {len(names)} classes of split {split!r} that are not in "
                f"{self.where}: {shown}; expected names such as {next(iter(self.rows))!r}; add these classes to the "
                "table"
            )
        return self.vectors[[self.rows[name] for name in names]]


def read(source: Path | str | Mapping[str, Any]) -> Table:
    """Read a table from a dict of names and vectors, a CSV file or an npz file.

    A CSV file has a header line, and then one line per class: its name and A numbers. An npz file has the arrays
    ``names`` [C] and ``vectors`` [C, A].

    Raises:
        DataError: the file does not exist, or is not such a table.
    """
    if isinstance(source, Mapping):
        return Table.of(list(source), list(source.values()), "the table given as a dict")
    path = Path(source)
    where = f"the table {path}"
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{where}: got a file name ending in {path.suffix!r}, expected .csv or .npz; or give 'drawings' or a dict"
        )
    check_regular(path, "a table")
    try:
        return _csv(path, where) if path.suffix.lower() == ".csv" else _npz(path, where)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # the latter if the path has a zero
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{where}: got an error when reading it ({reason}), expected a readable file") from error


def _csv(path: Path, where: str) -> Table:
    """Read a table from a CSV file, and check every value with its place in the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = [line for line in csv.reader(file) if line] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where}: got an unreadable line ({error}), expected CSV in UTF-8") from error
    if len(header) < 2 or not lines:
        raise DataError(
            f"{where}: got {len(header)} columns and {len(lines)} classes, expected a header (name and attributes), "
            "then a line for each class"
        )
    for name, *values in lines:
        if len(values) != len(header) - 1:
            raise DataError(
                f"{where}: got {len(values)} values for class {name!r}, expected {len(header) - 1} as in the header"
            )
        for attribute, value in zip(header[1:], values, strict=True):
            try:
                float(value)
            except ValueError:
                raise DataError(
                    f"{where}: got {value!r} for attribute {attribute!r} of class {name!r}, expected a number"
                ) from None
    return Table.of([line[0] for line in lines], [[float(value) for value in line[1:]] for line in lines], where)


def _array(data: bytes, where: str) -> NDArray[Any]:
    """Return the array in an npy file, without unpickling anything."""
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (Exception, MemoryError) as error:  # numpy reads the header as Python, and believes the size in it
        raise DataError(
            f"{where}: got an array that can't be read ({type(error).__name__}: {error}), expected a plain array; "
            "save it by numpy.savez"
        ) from error
    return np.asarray(array)


def _npz(path: Path, where: str) -> Table:
    """Read a table from an npz file, without unpickling anything."""
    with Archive(path, largest=_LARGEST, what="an array") as archive:
        files = {entry.filename.removesuffix(".npy") for entry in archive.entries(lambda name: True)}
        if not {"names", "vectors"} <= files:
            raise DataError(
                f"{where}: got the arrays {', '.join(sorted(files))}, expected names [C] and vectors [C, A]"
            )
        names, vectors = (_array(archive.read(f"{name}.npy"), f"{where}: {name}") for name in ("names", "vectors"))
    if names.ndim != 1 or vectors.ndim != 2:
        raise DataError(
            f"{where}: got names of shape {names.shape} and vectors of shape {vectors.shape}, expected [C] and [C, A]"
        )
    return Table.of([str(name) for name in names], vectors, where)
