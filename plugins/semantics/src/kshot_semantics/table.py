"""Tables of class vectors: a name and A numbers for each class, from a file or from code."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.errors import DataError

SUFFIXES = (".csv", ".npz")


@frozen(eq=False)
class Table:
    """Class vectors.

    Attributes:
        rows: of each class's name, its row of ``vectors``.
        vectors: [C, A].
        where: what the table was made from, for messages.
    """

    rows: Mapping[str, int]
    vectors: NDArray[np.float64]
    where: str

    @classmethod
    def of(cls, names: Sequence[str], vectors: Sequence[Any] | NDArray[Any], where: str) -> Table:
        """A table of C names and as many vectors of A numbers.

        Raises:
            DataError: nothing came, lengths differ, a name comes twice, or a vector is not of finite numbers.
        """
        if len(names) != len(vectors) or not len(names):
            raise DataError(f"{where}: {len(names)} names and {len(vectors)} vectors; expected one of each a class")
        rows = {name: i for i, name in enumerate(names)}
        if len(rows) < len(names):
            twice = next(name for i, name in enumerate(names) if rows[name] != i)
            raise DataError(f"{where}: class {twice!r} comes twice; expected one vector a class")
        try:
            made = [np.asarray(vector, np.float64) for vector in vectors]
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: a vector is not of numbers ({error})") from error
        for name, vector in zip(names, made, strict=True):
            if vector.ndim != 1 or not len(vector) or vector.shape != made[0].shape:
                raise DataError(
                    f"{where}: the vector of class {name!r} has shape {vector.shape}, that of {names[0]!r} "
                    f"{made[0].shape}; expected A numbers for each class, A the same and at least 1"
                )
            if not np.isfinite(vector).all():
                raise DataError(f"{where}: the vector of class {name!r} has values that are NaN or infinite")
        return cls(rows, np.stack(made), where)

    def take(self, names: Sequence[str], split: str) -> NDArray[np.float64]:
        """The vectors of classes, in their order: [len(names), A].

        Raises:
            DataError: classes have no names, or are missing from the table: says which.
        """
        if not len(names):
            raise DataError(
                f"semantics: the classes of split {split!r} have no names to look up in {self.where}; give them, e.g. "
                "kshot.Pool.of(x, y, names=...)"
            )
        missing = [name for name in names if name not in self.rows]
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise DataError(
                f"semantics: {len(missing)} of {len(names)} classes of split {split!r} are not in {self.where}: "
                f"{shown}; its names are such as {next(iter(self.rows))!r}: add these classes to the table"
            )
        return self.vectors[[self.rows[name] for name in names]]


def read(source: Path | str | Mapping[str, Any]) -> Table:
    """A table from a dict of name and vector, a CSV or an npz file.

    A CSV file has a header, and then a line for each class: its name and A numbers. An npz file has the arrays
    ``names`` [C] and ``vectors`` [C, A].

    Raises:
        DataError: the file isn't there, or not such a table.
    """
    if isinstance(source, Mapping):
        return Table.of(list(source), list(source.values()), "the table given as a dict")
    path = Path(source)
    where = f"the table {path}"
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{where}: expected a file that ends in .csv or .npz, 'drawings', or a dict")
    try:
        return _csv(path, where) if path.suffix.lower() == ".csv" else _npz(path, where)
    except OSError as error:
        raise DataError(f"{where} can't be read: {error.strerror or error}") from error


def _csv(path: Path, where: str) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *lines = [line for line in csv.reader(file) if line] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where} is not CSV in UTF-8: {error}") from error
    if len(header) < 2 or not lines:
        raise DataError(f"{where}: expected a header (name and attributes), then a line for each class")
    for name, *values in lines:
        if len(values) != len(header) - 1:
            raise DataError(f"{where}: class {name!r} has {len(values)} values, the header {len(header) - 1}")
        for attribute, value in zip(header[1:], values, strict=True):
            try:
                float(value)
            except ValueError:
                raise DataError(f"{where}: class {name!r} has {value!r} for {attribute!r}, expected a number") from None
    return Table.of([line[0] for line in lines], [[float(value) for value in line[1:]] for line in lines], where)


def _npz(path: Path, where: str) -> Table:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"names", "vectors"} <= set(file.files):
                raise DataError(f"{where} has the arrays {', '.join(file.files)}; expected names [C], vectors [C, A]")
            names, vectors = file["names"], file["vectors"]
    except (ValueError, BadZipFile, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} is no npz file of plain arrays: {error}") from error
    if names.ndim != 1 or vectors.ndim != 2:
        raise DataError(f"{where}: names have shape {names.shape} and vectors {vectors.shape}; expected [C] and [C, A]")
    return Table.of([str(name) for name in names], vectors, where)
