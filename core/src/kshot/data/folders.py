"""A folder of class folders: its classes, its files and their duplicates.

``kshot.data.splits`` divides the classes, ``kshot.data.folder_tables`` decodes the files into a cached table, and
``kshot.data.folder_tasks`` makes tasks of them. What is in a file is the plugin's business: the plugin says which files
to accept and how one becomes an array.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.data._names import nfc, shortened
from kshot.data.decoding import Decoded
from kshot.data.files import check_regular
from kshot.errors import DataError
from kshot.preparing import Preparation

log = logging.getLogger("kshot.data.folders")

Accept = Collection[str] | Callable[[Path], bool]
"""Which files count: suffixes such as ``{".png"}`` in lower case, or a predicate of the path."""

_Function = TypeVar("_Function", bound=Callable[..., Any])
_TICK = 2_000_000_000  # nanoseconds; the coarsest clock of a usual file system

_LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}


# --- Which files -----------------------------------------------------------------------------------------------------


def reads(suffixes: Callable[[], Collection[str]], *, texts: bool = False) -> Callable[[_Function], _Function]:
    """Note on a function that prepares inputs which files it reads, so that other files in a folder are ignored.

    Args:
        suffixes: a function that returns suffixes in lower case; it is called when a folder is scanned.
        texts: whether a ``str`` is a text, and not the path of a file.

    Example:
        >>> @reads(lambda: {".txt"})
        ... def prepare(raw):
        ...     return raw
        >>> accepted_by(prepare)
        {'.txt'}
    """

    def note(function: _Function) -> _Function:
        function.suffixes, function.texts = suffixes, texts  # type: ignore[attr-defined]
        return function

    return note


def accepted_by(prepare: Any) -> Accept:
    """Return which files of a folder ``prepare`` reads, as ``reads`` has noted it; all files, if nothing is noted.

    Args:
        prepare: a function, a ``kshot.preparing.Preparation``, perhaps with another one among its options, or None.
    """
    suffixes = getattr(_reading(prepare), "suffixes", None)
    return (lambda path: True) if suffixes is None else set(suffixes())


def takes_texts(prepare: Any) -> bool:
    """Return whether ``prepare`` takes a ``str`` as a text, as ``reads`` has noted it; else it is the path of a file.

    Args:
        prepare: see ``accepted_by``.

    Example:
        >>> takes_texts(None)
        False
    """
    return bool(getattr(_reading(prepare), "texts", False))


def _reading(prepare: Any) -> Any:
    """Return the function that reads files: ``prepare``, or that of a preparation or of the only one in its options."""
    if not isinstance(prepare, Preparation):
        return prepare
    inner = [option for option in prepare.options.values() if isinstance(option, Preparation)]
    if hasattr(prepare.function, "suffixes") or len(inner) != 1:
        return prepare.function
    return _reading(inner[0])


# --- Classes and files -----------------------------------------------------------------------------------------------


@frozen(eq=False)
class Folder:
    """Store the classes of a folder and their files, as ``scan`` returns them.

    Attributes:
        root: the folder.
        classes: class name (in Unicode's form NFC) -> its files, relative to ``root``, with ``/``. Classes and files
            are in the order of their names.
        ignored: files in class folders that were not accepted.

    Example:
        >>> folder = Folder(Path("pictures"), {"cat": ("cat/1.png", "cat/2.png"), "dog": ("dog/1.png",)})
        >>> folder.files
        ('cat/1.png', 'cat/2.png', 'dog/1.png')
    """

    root: Path
    classes: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All files, class by class, relative to ``root``."""
        return tuple(file for files in self.classes.values() for file in files)

    @property
    def paths(self) -> list[Path]:
        """The paths of ``files``, in the same order."""
        return [self.root / file for file in self.files]

    def key(self) -> str:
        """Return a key of the files as they are on this disk, without reading any.

        It is a hash of the classes and, for each file, of its name, size, inode, and times of modification and of
        change. A user can set a file's time of modification, but not its time of change. So a file with other contents
        gives another key, with the exceptions that ``settled`` names.

        Raises:
            DataError: a file no longer exists.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, file, stat in self._stats():
            state = (stat.st_size, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
            digest.update(f"{name}\0{nfc(file)}\0{state}\n".encode())
        return digest.hexdigest()

    def settled(self) -> bool:
        """Return whether another change of a file would change ``key``.

        It would not if a file was changed less than two seconds ago, because the new time may be of the same tick of
        the file system's clock; nor on Windows, which has no time of change.

        Raises:
            DataError: a file no longer exists.
        """
        before = time.time_ns() - _TICK
        return os.name == "posix" and all(stat.st_ctime_ns < before for *_, stat in self._stats())

    def _stats(self) -> Iterator[tuple[str, str, os.stat_result]]:
        """Yield class, name and state of each file."""
        for name, files in self.classes.items():
            for file in files:
                try:
                    yield name, file, os.stat(self.root / file)
                except OSError as error:
                    raise DataError(
                        f"{self.root / file}: got a file that can't be read any more ({error.strerror}), expected it "
                        "unchanged since the folder was scanned; scan the folder again"
                    ) from error


def scan(root: Path | str, accept: Accept, *, least: int = 2, what: str = "files") -> Folder:
    """Find the classes of a folder: each folder in it is a class, named after the folder, with all files below it.

    Folders within a class folder only sort its files: ``cats/2019/a.png`` is of the class ``cats``. Names that begin
    with a dot, and files that file managers leave (Thumbs.db, desktop.ini, __MACOSX), are skipped. Links are followed,
    wherever they lead. Files that are not accepted are ignored; those in class folders are counted and logged.

    Args:
        root: the folder of class folders.
        accept: suffixes in lower case, or a predicate of the path.
        least: the smallest number of classes that is accepted.
        what: the kind of file, in words for messages, such as ``images``.

    Raises:
        DataError: the folder does not exist or can't be read, an accepted file lies beside the class folders, a class
            is empty, there are fewer than ``least`` classes, two names are the same in NFC, or a link leads nowhere or
            to a folder above it. The message names the file or folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("cat", "dog"):
        ...         Path(root, name).mkdir()
        ...         Path(root, name, "1.txt").touch()
        ...     scan(root, {".txt"}).files
        ('cat/1.txt', 'dog/1.txt')
    """
    root = Path(root).expanduser().absolute()
    expected = f"a folder that has a folder of {what} for each class"
    if not root.is_dir():
        given = "a file" if root.is_file() else "a path that does not exist"
        raise DataError(f"{root}: got {given}, expected {expected}; give such a folder")
    accepts: Callable[[Path], bool] = accept if callable(accept) else lambda path: path.suffix.lower() in accept

    # 1. The class folders, by their names in NFC.
    folders: dict[str, Path] = {}
    for path in _entries(root):
        if not path.is_dir():
            if accepts(path):
                raise DataError(
                    f"{path}: got a file beside the class folders, expected {expected}; move it into a class folder, "
                    "or out of this one"
                )
            continue
        name = nfc(path.name)
        if name in folders:
            raise DataError(
                f"{root}: got the folders {folders[name].name!a} and {path.name!a}, which both have the name {name!r} "
                "in Unicode's form NFC, expected different names; rename one of them or merge them"
            )
        folders[name] = path

    # 2. The files of each class.
    classes: dict[str, tuple[str, ...]] = {}
    ignored: list[str] = []
    for name in sorted(folders):
        accepted: list[str] = []
        others: list[str] = []
        for path in _files_below(folders[name], (_identity(root),)):
            if accepts(path):
                check_regular(path, f"one of the {what}")
            (accepted if accepts(path) else others).append(path.relative_to(root).as_posix())
        if not accepted:
            content = f"only {len(others)} other files, such as {others[0]}" if others else "an empty folder"
            raise DataError(f"{folders[name]}: got {content}, expected {what} of this class; add some or remove it")
        classes[name] = tuple(sorted(accepted, key=lambda file: (nfc(file), file)))
        ignored += others

    # 3. Enough classes? If not, perhaps the folder above the right one was given.
    if len(classes) < least:
        named = f" ({', '.join(classes)})" if classes else ""
        message = f"{root}: got {len(classes)} class folders{named}, expected at least {least}: {expected}"
        for only in folders.values() if len(folders) == 1 else ():
            if inner := [path.name for path in _entries(only) if path.is_dir()]:
                message += f"; if {shortened(inner)} are the classes, give {only}"
        raise DataError(message)
    if ignored:
        log.warning(
            "%s: ignored %d files in class folders that are not %s, such as %s", root, len(ignored), what, ignored[0]
        )
    return Folder(root, classes, tuple(ignored))


def _identity(folder: Path) -> tuple[int, int]:
    """Return what identifies a folder, whatever path or link leads to it."""
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _entries(folder: Path) -> list[Path]:
    """List the files and folders in a folder, in the order of names, without hidden ones. Links are followed."""
    try:
        paths = [p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in _LEFT_BY_SYSTEMS]
    except OSError as error:
        raise DataError(
            f"{folder}: got a folder that can't be read ({error.strerror}), expected a readable one; change its "
            "permissions or remove it"
        ) from error
    for path in paths:
        try:
            path.name.encode()
            os.stat(path)  # fails for a link that leads nowhere
        except UnicodeEncodeError:
            raise DataError(
                f"{folder}: got the name {path.name!a} in it, which is not Unicode text, expected one that is; rename "
                "the file or folder"
            ) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                given = "a link that leads to itself"
            elif path.is_symlink():
                given = f"a link to {os.readlink(path)}, which does not exist or can't be read"
            else:
                given = f"a path that can't be read ({error.strerror})"
            raise DataError(f"{path}: got {given}, expected a readable file or folder; fix or remove it") from error
    return sorted(paths, key=lambda path: (nfc(path.name), path.name))


def _files_below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield all files in a folder and in the folders below it.

    Args:
        folder: the folder.
        above: the identities of the folders that lead to it, by which a circle of links is recognised.
    """
    identity = _identity(folder)
    if identity in above:
        raise DataError(f"{folder}: got a link to a folder above it, expected no circle of links; remove the link")
    for path in _entries(folder):
        if path.is_dir():
            yield from _files_below(path, (*above, identity))
        else:
            yield path


# --- Contents and duplicates -----------------------------------------------------------------------------------------


@frozen
class Contents:
    """Store what the bytes of a folder's files are.

    Attributes:
        digest: a hash of class names, file names and bytes, the same on every machine.
        copies: groups of files with the same bytes.
    """

    digest: str
    copies: tuple[tuple[str, ...], ...]


def contents(folder: Folder, workers: int | None = None) -> Contents:
    """Read all files once, and return the hash of their contents and their duplicates.

    Args:
        folder: the folder, as ``scan`` returns it.
        workers: number of threads; by default one for each processor, at most 8.

    Raises:
        DataError: a file can't be read. The message names it.
    """

    def digest(path: Path) -> NDArray[np.uint8]:
        check_regular(path)
        try:
            with open(path, "rb") as file:
                hashed = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        except OSError as error:
            raise DataError(
                f"{path}: got a file that can't be read ({error.strerror}), expected a readable one; fix or remove it"
            ) from error
        return np.frombuffer(hashed.digest(), np.uint8)

    groups: dict[bytes, list[str]] = {}
    total = hashlib.blake2b(digest_size=16)
    class_of = [name for name, files in folder.classes.items() for _ in files]
    for name, file, own in zip(class_of, folder.files, Decoded(folder.paths, digest, workers), strict=True):
        groups.setdefault(own.tobytes(), []).append(file)
        total.update(f"{name}\0{nfc(file)}\0{own.tobytes().hex()}\n".encode())
    return Contents(total.hexdigest(), tuple(tuple(g) for g in groups.values() if len(g) > 1))


def tell_copies(who: str, copies: Sequence[Sequence[str]], what: str = "files") -> None:
    """Warn of files with the same bytes; groups that span several classes are named first.

    Args:
        who: the plugin and its folder, which begin the message.
        copies: see ``Contents``.
        what: what they are, in words for the message.
    """
    if copies:
        # A copy in another class is worse: one of its two labels is wrong.
        order = sorted(copies, key=lambda group: len({file.split("/")[0] for file in group}) == 1)
        some = "; ".join(" = ".join(group[:3]) for group in order[:3]) + ("; ..." if len(copies) > 3 else "")
        warnings.warn(
            f"{who}: got {sum(map(len, copies)) - len(copies)} {what} that are copies of others ({some}), expected "
            f"different {what}: an example may meet its own copy among the queries, and scores come out too high; "
            "remove the copies",
            UserWarning,
            stacklevel=2,
        )
