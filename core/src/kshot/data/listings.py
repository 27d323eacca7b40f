"""A CSV file of examples and their labels, in place of a folder of class folders.

Each row has an example in one column, the path of a file or a text, and its label in another. The first row has the
names of the columns. Further columns are ignored.
"""

from __future__ import annotations

import csv as csv_format
import io
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from kshot.data._names import nfc, shortened
from kshot.data.files import check_regular
from kshot.data.folders import Accept, Folder, scan
from kshot.data.texts import read_text
from kshot.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Suffix of a file -> what separates its columns."""

_LONGEST = 1 << 24  # characters of one field


@frozen
class Listing:
    """Store the examples of a CSV file by their labels, as ``read_listing`` returns them.

    Attributes:
        path: the file.
        classes: label (in Unicode's form NFC) -> its examples. Labels are in the order of their names, and the examples
            of a label in the order of the file.
        lines: label -> the number of the line on which each of its examples begins.

    Example:
        >>> listing = Listing(Path("a.csv"), {"no": ("Stop.",), "yes": ("Go.",)}, {"no": (3,), "yes": (2,)})
        >>> listing.examples, listing.names
        (('Stop.', 'Go.'), ('no/line 3', 'yes/line 2'))
    """

    path: Path
    classes: Mapping[str, tuple[str, ...]]
    lines: Mapping[str, tuple[int, ...]]

    @property
    def examples(self) -> tuple[str, ...]:
        """All examples, class by class."""
        return tuple(example for examples in self.classes.values() for example in examples)

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each of ``examples``, in the same order: its label and its line."""
        return tuple(f"{label}/line {line}" for label, lines in self.lines.items() for line in lines)

    def copies(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of examples that are the same, in groups."""
        groups: dict[str, list[str]] = {}
        for example, name in zip(self.examples, self.names, strict=True):
            groups.setdefault(example, []).append(name)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def is_listing(path: Path | str) -> bool:
    """Return whether a path is a file whose suffix is one of ``DELIMITERS``.

    Example:
        >>> is_listing("photos")
        False
    """
    return Path(path).suffix.lower() in DELIMITERS and Path(path).is_file()


def read_listing(path: Path | str, column: str, label: str = "label", *, least: int = 2) -> Listing:
    """Read a CSV file in UTF-8: the examples in one column, their labels in another. The first row names the columns.

    Columns are separated by commas, or by tabs if the name ends in .tsv. Fields may be quoted, as spreadsheets write
    them, and then have commas and line breaks. Blank lines are skipped.

    Args:
        path: the file.
        column: name of the column with the examples.
        label: name of the column with the labels.
        least: the smallest number of labels that is accepted.

    Raises:
        DataError: the file can't be read, is not UTF-8 or not well-formed, has no such columns, or a row has another
            number of fields than the header, or no example or label; or there are too few labels. The message names the
            file and the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.csv")
        ...     _ = path.write_text('text,label\\n"Go, now.",yes\\nStop.,no\\n')
        ...     read_listing(path, "text").classes
        {'no': ('Stop.',), 'yes': ('Go, now.',)}
    """
    path = Path(path).expanduser().absolute()
    rows = _rows(path)
    header = [name.strip() for name in rows[0][1]]
    places = [_place(path, rows[0][0], header, name, option) for name, option in ((column, "column"), (label, "label"))]
    return _by_label(path, rows, len(header), places, (column, label), least)


def columns_of(path: Path | str) -> dict[str, tuple[str, ...]]:
    """Return the columns of a CSV file by their names, with the fields of the rows that have as many as the header.

    Raises:
        DataError: the file can't be read, is not UTF-8, is not well-formed or is empty. The message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.csv")
        ...     _ = path.write_text("text,label\\nGo.,yes\\nStop.,no\\n")
        ...     columns_of(path)
        {'text': ('Go.', 'Stop.'), 'label': ('yes', 'no')}
    """
    (_, header), *rows = _rows(Path(path).expanduser().absolute())
    complete = [row for _, row in rows if len(row) == len(header)]
    return {name.strip(): tuple(row[i] for row in complete) for i, name in enumerate(header)}


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV file that are not blank, each with the number of its first line; the header first.

    Raises:
        DataError: the file can't be read, is not UTF-8, is not well-formed or is empty.
    """
    if not path.is_file():
        given = "a folder" if path.is_dir() else "a path that does not exist"
        check_regular(path, "a CSV file")
        raise DataError(f"{path}: got {given}, expected a CSV file of examples and labels; give such a file")
    delimiter = DELIMITERS.get(path.suffix.lower(), ",")
    reader = csv_format.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    before, limit = 0, csv_format.field_size_limit(_LONGEST)
    try:
        for row in reader:
            if row:
                rows.append((before + 1, row))
            before = reader.line_num
    except csv_format.Error as error:
        raise DataError(
            f"{path}, line {before + 1}: got a row that is not well-formed CSV ({error}), expected fields in double "
            "quotes if they have quotes, commas or line breaks, and quotes in them written twice; fix this row"
        ) from error
    finally:
        csv_format.field_size_limit(limit)
    if not rows:
        raise DataError(f"{path}: got an empty file, expected a first row with the names of the columns; add it")
    return rows


def _place(path: Path, line: int, header: list[str], name: str, option: str) -> int:
    """Return the place of a column.

    Raises:
        DataError: no column has this name, or several have it.
    """
    if header.count(name) == 1:
        return header.index(name)
    found = f"{header.count(name)} columns {name!r}" if name in header else f"the columns {shortened(header)}"
    hint = f"rename one, or name another by {option}="
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        hint = "separate the columns by commas, or by tabs in a file NAME.tsv"
    raise DataError(f"{path}, line {line}: got {found}, expected one column {name!r}; {hint}")


def _by_label(
    path: Path,
    rows: list[tuple[int, list[str]]],
    width: int,
    places: list[int],
    columns: tuple[str, str],
    least: int,
) -> Listing:
    """Return the rows below the header by their labels.

    Raises:
        DataError: a row is incomplete, or there are too few labels.
    """
    classes: dict[str, list[str]] = {}
    lines: dict[str, list[int]] = {}
    for line, row in rows[1:]:
        if len(row) != width:
            raise DataError(
                f"{path}, line {line}: got {len(row)} fields, expected {width} as in the header; put fields that have "
                "commas or line breaks in double quotes"
            )
        example, label = row[places[0]], nfc(row[places[1]].strip())
        for value, column in ((example.strip(), columns[0]), (label, columns[1])):
            if not value:
                raise DataError(
                    f"{path}, line {line}: got nothing in the column {column!r}, expected a value; add it or remove "
                    "the row"
                )
        classes.setdefault(label, []).append(example)
        lines.setdefault(label, []).append(line)
    if len(classes) < least:
        named = f" ({', '.join(classes)})" if classes else ""
        raise DataError(
            f"{path}: got {len(classes)} labels in the column {columns[1]!r}{named}, expected at least {least}; add "
            "examples of other classes"
        )
    order = sorted(classes)
    return Listing(path, {name: tuple(classes[name]) for name in order}, {name: tuple(lines[name]) for name in order})


def listed_files(listing: Listing, accept: Accept, *, root: Path | str | None = None, what: str = "files") -> Folder:
    """Return the files whose paths a CSV file has, as ``kshot.data.folders.scan`` returns those of a folder.

    Args:
        listing: whose examples are paths.
        accept: suffixes in lower case, or a predicate of the path.
        root: the folder to which the paths are relative; by default that of the CSV file.
        what: the kind of file, in words for messages, such as ``images``.

    Raises:
        DataError: a file is missing or not accepted, or is in two rows. The message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "1.png").touch(), Path(folder, "2.png").touch()
        ...     _ = Path(folder, "a.csv").write_text("path,label\\n1.png,cat\\n2.png,dog\\n")
        ...     listed_files(read_listing(Path(folder, "a.csv"), "path"), {".png"}).classes
        {'cat': ('1.png',), 'dog': ('2.png',)}
    """
    root = listing.path.parent if root is None else Path(root).expanduser().absolute()
    accepts = accept if callable(accept) else lambda path: path.suffix.lower() in accept
    seen: dict[Path, int] = {}
    for label, files in listing.classes.items():
        for file, line in zip(files, listing.lines[label], strict=True):
            path, where = root / file, f"{listing.path}, line {line}"
            check_regular(path, f"one of the {what}")
            if not path.is_file():
                given = "a folder" if path.is_dir() else "a path that does not exist"
                raise DataError(f"{where}: got {given}, {path}, expected one of the {what}; correct or remove the row")
            if not accepts(path):
                raise DataError(f"{where}: got {file}, expected one of the {what}; convert the file or remove the row")
            if (same := seen.setdefault(path, line)) != line:
                raise DataError(
                    f"{where}: got {file}, which is on line {same} already, expected each file once; remove one row"
                )
    return Folder(root, listing.classes)


def labelled_files(
    root: Path | str | None,
    csv: Path | str | None,
    accept: Accept,
    *,
    column: str = "path",
    label: str = "label",
    what: str = "files",
    who: str,
) -> Folder:
    """Return the files of a folder of class folders, or those of a CSV file, by the options that plugins offer.

    Args:
        root: the folder of class folders; with ``csv``, the folder to which its paths are relative.
        csv: the CSV file, or None.
        accept: suffixes in lower case, or a predicate of the path.
        column, label: see ``read_listing``.
        what: the kind of file, in words for messages.
        who: the plugin, for messages.

    Raises:
        DataError: both are None, or see ``scan``, ``read_listing`` and ``listed_files``.
    """
    if csv is not None:
        return listed_files(read_listing(csv, column, label), accept, root=root, what=what)
    if root is None:
        raise DataError(
            f"{who}: got neither root nor csv, expected a folder that has a folder of {what} for each class (root=), "
            "or a CSV file of paths and labels (csv=)"
        )
    return scan(root, accept, what=what)
