"""Read the entries of a zip by name, each checked before a byte of it is read; nothing is ever unpacked to the disk.

A zip that was fetched from somewhere is not to be trusted: a name in it may lead out of its folder, an entry may be a
link, or may fill the memory when it is decompressed. Reading into memory is not in danger of the first two, but a zip
that tries is not the file that the user believes it is, so it is refused as a whole.

This module imports neither torch nor numpy, so that a worker process that uses it starts quickly.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from kshot.data._names import nfc
from kshot.data.files import check_regular
from kshot.errors import DataError

LARGEST_IN_ALL = 1 << 30
"""Bytes of all entries that are read from one archive, decompressed, unless a plugin allows others."""

_LONGEST = 255  # bytes of a file's name, and ...
_LONGEST_PATH = 4096  # ... of a path, beyond which no usual file system can store it
_DRIVE = re.compile(r"[A-Za-z]:")
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.I | re.S)
_ICON = "Icon\r"  # which macOS puts into folders that have an icon
_ENCRYPTED = 0x1  # the bit of a zip entry's flags
# The others, such as LZMA, take as much memory as an entry's header says, up to 4 GiB.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


class Archive:
    """Represent a zip whose entries can be read by name, as a context manager that closes it.

    Args:
        path: the zip.
        largest: the greatest number of bytes that an entry may have, decompressed.
        what: an entry, in words for messages, such as ``"a picture"``.
        largest_in_all: the greatest number of bytes of all requested entries together.

    Raises:
        DataError: the file can't be read as a zip, or any of its entries is a link or a device, or has a name that
            leads out of the archive's folder or can't be unpacked on every system: control characters, backslashes,
            drives, names that Windows reserves, or very long ones. The message names the zip and the entry.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with zipfile.ZipFile(Path(folder, "a.zip"), "w") as file:
        ...         file.writestr("cat/1.txt", "meow")
        ...     with Archive(Path(folder, "a.zip"), largest=100, what="a text") as archive:
        ...         [(entry.filename, archive.read(entry.filename)) for entry in archive.entries(lambda _: True)]
        [('cat/1.txt', b'meow')]
    """

    def __init__(self, path: Path, *, largest: int, what: str, largest_in_all: int = LARGEST_IN_ALL) -> None:
        self.path, self.largest, self.what, self.largest_in_all = path, largest, what, largest_in_all
        check_regular(path, "a zip")
        with self._damage("got a file that can't be read as a zip"):
            self._zip = zipfile.ZipFile(path)
        try:
            for info in self._zip.infolist():
                self._check_harmless(info)
        except DataError:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def entries(self, accept: Callable[[str], bool]) -> list[zipfile.ZipInfo]:
        """Return the files in the archive whose names are accepted, in the order of the archive.

        Args:
            accept: a predicate of an entry's name.

        Raises:
            DataError: an accepted entry is too large, encrypted or compressed by an unusual method, two have the same
                name (in Unicode's form NFC, and without ``.`` and empty parts), or all together are too large. The
                message names the zip and the entry.
        """
        infos = [info for info in self._zip.infolist() if not info.is_dir() and accept(info.filename)]
        seen: set[str] = set()
        for info in infos:
            self._check_readable(info)
            name = _normalised(info.filename)
            if name in seen:
                raise DataError(
                    f"{self.path}: got two entries with the same name {name!r}, expected each once; don't use this "
                    "file, fetch the original"
                )
            seen.add(name)
        if (total := sum(info.file_size for info in infos)) > self.largest_in_all:
            raise DataError(
                f"{self.path}: got {len(infos)} entries of {total} bytes in all, expected at most "
                f"{self.largest_in_all}; don't use this file, fetch the original"
            )
        return infos

    def read(self, name: str) -> bytes:
        """Return the contents of an entry.

        Raises:
            DataError: there is no such entry, or it is too large, encrypted, compressed by an unusual method or
                damaged. The message names the zip and the entry.
        """
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise DataError(
                f"{self.path}: got no entry {name!r}, expected one; the file was changed or is another: fetch it again"
            ) from None
        self._check_readable(info)  # this also bounds what zipfile decompresses, whatever the entry's data are
        with self._damage(f"got the entry {name}, which can't be read"):
            return self._zip.read(info)

    def _check_harmless(self, info: zipfile.ZipInfo) -> None:
        """Refuse an entry that would be dangerous to unpack, whether or not it is ever read."""
        unix_mode = info.external_attr >> 16  # 0 if the zip was made on another system
        # zipfile cuts a name at its first zero, and turns backslashes into slashes on Windows: look at the original.
        why = _harm(info.orig_filename)
        if stat.S_IFMT(unix_mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "link" if stat.S_ISLNK(unix_mode) else "device, a pipe or a socket"
            why = f"which is a {kind}, expected files only"
        if why:
            shown = info.orig_filename[:200]
            raise DataError(f"{self.path}: got the entry {shown!r}, {why}; don't use this file, fetch the original")

    def _check_readable(self, info: zipfile.ZipInfo) -> None:
        """Refuse an entry that is too large, or needs a password or much memory."""
        check_size(f"{self.path}: {info.filename}", info.file_size, self.largest, self.what)
        if info.flag_bits & _ENCRYPTED:
            raise DataError(
                f"{self.path}: got the entry {info.filename!r}, which is encrypted, expected {self.what} that can be "
                "read without a password; decrypt the file or fetch the original"
            )
        if info.compress_type not in _METHODS:
            raise DataError(
                f"{self.path}: got the entry {info.filename!r}, which is compressed by method {info.compress_type}, "
                "expected it stored, deflated or compressed by bzip2; pack the file again or fetch the original"
            )

    @contextlib.contextmanager
    def _damage(self, given: str) -> Iterator[None]:
        """Turn whatever zipfile raises into a ``DataError`` that says what was given."""
        try:
            yield
        except (DataError, MemoryError):
            raise
        except Exception as error:  # each of zipfile's decoders raises something else on damage
            raise DataError(
                f"{self.path}: {given} ({type(error).__name__}: {error}), expected an undamaged zip; it is damaged or "
                "was cut off: delete it and fetch it again"
            ) from error


def _harm(name: str) -> str:
    """Return why an entry's name must not be unpacked, as a clause for messages; "" if it may be."""
    out = "which leads out of the archive's folder, expected names within it"
    parts = re.split(r"[/\\]", name)
    # 1. Absolute, on a drive, or upwards. Windows drops spaces and dots at the end of a part, and some programs at its
    #    beginning, so a part of two or more dots and spaces may mean the folder above.
    if not parts[0] or any(_DRIVE.match(part.strip()) for part in parts):
        return out
    if any(part not in ("", ".") and not part.strip(" .") for part in parts):
        return out
    if parts[-1] == ".":
        return "which is the name of a folder, expected the name of a file"
    # 2. Other names that unpack differently on different systems, or not at all.
    if "\\" in name:
        return "which has a backslash, expected / between folders"
    plain = name.removesuffix(_ICON) if parts[-1] == _ICON else name
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in plain):
        return "which has a control character, expected printable ones"
    if any(_RESERVED.fullmatch(part) for part in parts):
        return "which is a name that Windows reserves for devices, expected the name of a file"
    if len(name.encode(errors="replace")) > _LONGEST_PATH or any(
        len(part.encode(errors="replace")) > _LONGEST for part in parts
    ):
        return f"which is too long, expected at most {_LONGEST} bytes for each file and folder"
    return ""


def _normalised(name: str) -> str:
    """Return an entry's name as file systems compare it: in Unicode's form NFC, without ``.`` and empty parts."""
    return posixpath.normpath(nfc(name))


def check_size(where: str, size: int, largest: int, what: str) -> None:
    """Refuse a file or an entry that is larger than such data can be.

    Args:
        where: the file, for the message.
        size: its bytes.
        largest: the greatest number of bytes.
        what: what it should be, such as ``"a picture"``.

    Raises:
        DataError: it is larger.
    """
    if size > largest:
        raise DataError(
            f"{where}: got {size} bytes, expected {what} of at most {largest}; don't use this file, fetch the original"
        )


def is_left_by_macos(name: str) -> bool:
    """Return whether this is the name of an entry or a file that macOS adds to zips and folders.

    Example:
        >>> [name for name in ("a/1.png", "__MACOSX/a/1.png", "a/._1.png") if not is_left_by_macos(name)]
        ['a/1.png']
    """
    return name.startswith("__MACOSX/") or "/._" in name
