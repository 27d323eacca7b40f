"""A folder of class folders: its classes and files, and splits of them; ``folder_tasks`` has the tasks.

What is in the files is the plugins' business: they say which files they take, and how one becomes an array.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import unicodedata
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.errors import DataError
from kshot.randomness import purpose_key

log = logging.getLogger("kshot.data.folders")

Accept = Collection[str] | Callable[[Path], bool]
"""Which files count: suffixes such as ``{".png"}`` in lower case, or a predicate of the path."""

Fractions = tuple[float, float, float]
"""Shares of train, val and test; they sum to 1, and a split of 0 is left out."""

Listed = Mapping[str, Sequence[str] | Path | str] | Path | str
"""Split -> class names, or a text file of them, a name a line; or a folder with train.txt, val.txt and test.txt."""

Splits = Mapping[str, Mapping[str, NDArray[np.int64]]]
"""Split -> class -> its rows, numbers of files in the order of ``Folder.files``."""

_LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "$recycle.bin"}


# --- What is there ---------------------------------------------------------------------------------------------------


@frozen(eq=False)
class Folder:
    """Classes and their files, as ``scan`` found them.

    Attributes:
        root: the folder.
        classes: name (in Unicode's form NFC) -> its files, relative to ``root``, with ``/``; both in order of names.
        ignored: files in class folders that aren't of the kind that was asked for.
    """

    root: Path
    classes: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All files, class by class."""
        return tuple(file for files in self.classes.values() for file in files)

    @property
    def paths(self) -> list[Path]:
        """Those of ``files``."""
        return [self.root / file for file in self.files]

    def key(self) -> str:
        """A hash of classes, names, sizes and times of all files: it changes when any of them does, and reads none.

        Raises:
            DataError: a file is gone.
        """
        made = hashlib.blake2b(digest_size=16)
        for name, files in self.classes.items():
            for file in files:
                try:
                    stat = os.stat(self.root / file)
                except OSError as error:
                    raise DataError(f"{self.root / file}: can't be read any more ({error.strerror})") from error
                made.update(f"{name}\0{_nfc(file)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return made.hexdigest()


def scan(root: Path | str, accept: Accept, *, least: int = 2, what: str = "files") -> Folder:
    """The classes of a folder: each folder in it is one, named after it, and has all the files below it.

    Folders within a class folder only sort its files: ``cats/2019/a.png`` is of the class ``cats``. What begins with a
    dot, and what file managers leave (Thumbs.db, desktop.ini, __MACOSX), is passed over. Links are followed, wherever
    they lead. Other files than those asked for are ignored: in class folders they are counted and logged.

    Args:
        accept: suffixes in lower case, or a predicate of the path.
        least: the fewest classes that will do.
        what: is looked for, in words for messages, such as ``images``.

    Raises:
        DataError: no such folder, one that can't be read, a file of the kind beside the class folders, an empty class,
            fewer than ``least`` classes, two names that are the same in NFC, or a link that leads nowhere or to a
            folder above it. Names what it is about.
    """
    root = Path(root).expanduser().absolute()
    expected = f"expected a folder that has a folder of {what} for each class"
    if not root.is_dir():
        raise DataError(f"{root}: {'is a file' if root.is_file() else 'there is no such folder'}; {expected}")
    taken: Callable[[Path], bool] = accept if callable(accept) else lambda path: path.suffix.lower() in accept
    folders: dict[str, Path] = {}
    for path in _entries(root):
        if not path.is_dir():
            if taken(path):
                raise DataError(f"{path}: lies beside the class folders; {expected}: move it into one, or away")
            continue
        name = _nfc(path.name)
        if name in folders:
            raise DataError(
                f"{root}: the folders {folders[name].name!a} and {path.name!a} have the same name {name!r} in "
                "Unicode's form NFC; rename one of them or put them together"
            )
        folders[name] = path
    classes: dict[str, tuple[str, ...]] = {}
    ignored: list[str] = []
    for name in sorted(folders):
        found = [(path, taken(path)) for path in _below(folders[name], (_identity(root),))]
        others = [path.relative_to(root).as_posix() for path, wanted in found if not wanted]
        held = [path.relative_to(root).as_posix() for path, wanted in found if wanted]
        if not held:
            there = f"it has {len(others)} other files, such as {others[0]}" if others else "it is empty"
            raise DataError(f"{folders[name]}: the class has no {what}; {there}: fill the folder or remove it")
        classes[name] = tuple(sorted(held, key=lambda file: (_nfc(file), file)))
        ignored += others
    if len(classes) < least:
        named = f" ({', '.join(classes)})" if classes else ""
        told = f"{root}: has {len(classes)} class folders{named}, expected at least {least}; {expected}"
        for only in folders.values() if len(folders) == 1 else ():
            if inner := [path.name for path in _entries(only) if path.is_dir()]:
                told += f"; if {_some(inner)} are the classes, give {only}"
        raise DataError(told)
    if ignored:
        log.warning("%s: %d files in class folders are no %s, such as %s", root, len(ignored), what, ignored[0])
    return Folder(root, classes, tuple(ignored))


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _identity(folder: Path) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _entries(folder: Path) -> list[Path]:
    """Files and folders in a folder, links followed, without the hidden ones; in order of names."""
    try:
        found = [p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in _LEFT_BY_SYSTEMS]
    except OSError as error:
        raise DataError(f"{folder}: can't be read ({error.strerror})") from error
    for path in found:
        try:
            path.name.encode()
            os.stat(path)
        except UnicodeEncodeError:
            raise DataError(f"{folder}: the name {path.name!a} in it is no Unicode text; rename it") from None
        except OSError as error:
            circle = error.errno == errno.ELOOP
            why = "is a link that leads to itself" if circle else f"can't be read ({error.strerror})"
            if path.is_symlink() and not circle:
                why = f"is a link to {os.readlink(path)}, which isn't there or can't be read"
            raise DataError(f"{path}: {why}; mend or remove it") from error
    return sorted(found, key=lambda path: (_nfc(path.name), path.name))


def _below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """All files in a folder and its folders. ``above``: the identities of those on the way to it."""
    identity = _identity(folder)
    if identity in above:
        raise DataError(f"{folder}: is a link to a folder above it, so it would never end; remove it")
    for path in _entries(folder):
        if path.is_dir():
            yield from _below(path, (*above, identity))
        elif path.is_file():
            yield path


# --- What is in it ---------------------------------------------------------------------------------------------------


@frozen
class Contents:
    """What the bytes of a folder's files say.

    Attributes:
        digest: of classes, names and bytes: the same on every machine.
        copies: groups of files with the same bytes.
    """

    digest: str
    copies: tuple[tuple[str, ...], ...]


def contents(folder: Folder, workers: int | None = None) -> Contents:
    """Reads all files once.

    Raises:
        DataError: a file can't be read; names it.
    """

    def digest(path: Path) -> NDArray[np.uint8]:
        try:
            with open(path, "rb") as file:
                made = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror})") from error
        return np.frombuffer(made.digest(), np.uint8)

    groups: dict[bytes, list[str]] = {}
    whole = hashlib.blake2b(digest_size=16)
    class_of = [name for name, files in folder.classes.items() for _ in files]
    for name, file, own in zip(class_of, folder.files, Decoded(folder.paths, digest, workers), strict=True):
        groups.setdefault(own.tobytes(), []).append(file)
        whole.update(f"{name}\0{_nfc(file)}\0{own.tobytes().hex()}\n".encode())
    return Contents(whole.hexdigest(), tuple(tuple(g) for g in groups.values() if len(g) > 1))


def tell_copies(who: str, copies: Sequence[Sequence[str]]) -> None:
    """Warns of files with the same bytes, those of several classes first."""
    if copies:
        order = sorted(copies, key=lambda group: len({file.split("/")[0] for file in group}) == 1)
        some = "; ".join(" = ".join(group[:3]) for group in order[:3]) + ("; ..." if len(copies) > 3 else "")
        warnings.warn(
            f"{who}: {sum(map(len, copies)) - len(copies)} files are copies of others ({some}): an example may meet "
            "its own copy among the queries, and scores come out too high; remove the copies",
            UserWarning,
            stacklevel=2,
        )


class Decoded(Sequence[NDArray[Any]]):
    """Files as arrays, decoded by threads a few ahead of who asks, never all in memory: as ``tables.Made.parts``.

    Args:
        decode: a path -> its array; raises DataError where it can't.
        workers: threads; by default one a processor, at most 8.

    Raises:
        DataError: while it is gone through, at the end: some files can't be decoded; names the first five.
    """

    def __init__(
        self, paths: Sequence[Path], decode: Callable[[Path], NDArray[Any]], workers: int | None = None
    ) -> None:
        self._paths, self._decode = paths, decode
        self._workers = min(8, os.cpu_count() or 1) if workers is None else workers

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return self._decode(self._paths[index])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        failed: list[DataError] = []
        waiting: deque[Future[NDArray[Any]]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="kshot-decode")
        try:
            for path in (*self._paths, *([None] * 4 * self._workers)):
                if path is not None:
                    waiting.append(pool.submit(self._decode, path))
                if waiting and (path is None or len(waiting) > 4 * self._workers):
                    try:
                        made = waiting.popleft().result()
                    except DataError as error:
                        failed.append(error)
                    else:
                        if not failed:
                            yield made
        finally:
            pool.shutdown(cancel_futures=True)
        if len(failed) == 1:
            raise failed[0]
        if failed:
            more = f"\n... and {len(failed) - 5} more" if len(failed) > 5 else ""
            raise DataError(f"{len(failed)} files can't be used:\n" + "\n".join(map(str, failed[:5])) + more)


# --- Who goes where --------------------------------------------------------------------------------------------------


def split_classes(names: Sequence[str], fractions: Fractions, split_seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Classes of each split: by a hash of name and seed the first are the test's, the next val's, then train's.

    A class that is added or removed moves at most one other over each border. Each split is in the order of ``names``
    and has at least one class; ``trainval`` is train and val together.

    Raises:
        DataError: impossible fractions, or fewer classes than splits.
    """
    sizes = _sizes(len(names), fractions, "the folder", "classes")
    order = sorted(names, key=lambda name: (purpose_key(f"folders/{split_seed}/{name}"), name))
    cut = np.cumsum([0, *(sizes[split] for split in ("test", "val", "train"))])
    held = {split: set(order[a:b]) for split, a, b in zip(("test", "val", "train"), cut, cut[1:], strict=False)}
    return _with_trainval(
        {split: tuple(n for n in names if n in held[split]) for split in ("train", "val", "test") if held[split]}
    )


def listed_classes(names: Sequence[str], listed: Listed) -> dict[str, tuple[str, ...]]:
    """Classes of each split by name. Classes that no list has are left out.

    Raises:
        DataError: a list can't be read or is empty, has a name that isn't among ``names``, or one that it or another
            has already. Says which, and where.
    """
    if isinstance(listed, Path | str):
        folder = Path(listed).expanduser()
        listed = {s: folder / f"{s}.txt" for s in ("train", "val", "test") if (folder / f"{s}.txt").is_file()}
        if not listed:
            raise DataError(f"{folder}: has no train.txt, val.txt or test.txt with a class name a line")
    if "trainval" in listed or not listed:
        raise DataError(f"split: has {', '.join(listed) or 'no lists'}; expected train, val, test; trainval is made")
    known, used = set(names), dict[str, str]()
    made: dict[str, tuple[str, ...]] = {}
    for split, given in listed.items():
        where = f"split {split!r}" if not isinstance(given, Path | str) else str(given)
        wanted = [_nfc(name) for name in (_lines(Path(given)) if isinstance(given, Path | str) else given)]
        if not wanted:
            raise DataError(f"{where}: has no class names; expected one a line")
        for name in wanted:
            if name not in known:
                why = "; a class is a folder of the first level, whose name has no slash" if "/" in name else ""
                raise DataError(f"{where}: there is no class {name!r} among {_some(names)}{why}")
            if name in used:
                raise DataError(f"{where}: the class {name!r} is in {used[name]} already; expected each once")
            used[name] = where
        made[split] = tuple(wanted)
    if left := [name for name in names if name not in used]:
        log.warning("%d classes are in no split and are left out: %s", len(left), _some(left))
    return _with_trainval(made)


def split_examples(classes: Mapping[str, Sequence[str]], fractions: Fractions, split_seed: int = 0) -> Splits:
    """Every split has all classes; the examples of each class are divided, in the order of a hash of name and seed.

    What it can tell is how well new examples of *known* classes are recognised, not how well new classes are learned.

    Raises:
        DataError: impossible fractions, or a class with fewer examples than there are splits.
    """
    made: dict[str, dict[str, list[int]]] = {}
    number = 0
    for name, files in classes.items():
        sizes = _sizes(len(files), fractions, f"class {name!r}", "examples")
        order = sorted(range(len(files)), key=lambda i: (purpose_key(f"folders/{split_seed}/{_nfc(files[i])}"), i))
        start = 0
        for split in ("test", "val", "train"):
            if sizes[split]:
                made.setdefault(split, {})[name] = sorted(number + i for i in order[start : start + sizes[split]])
            start += sizes[split]
        number += len(files)
    if "train" in made and "val" in made:
        made["trainval"] = {name: sorted(made["train"][name] + made["val"][name]) for name in classes}
    return {
        split: {name: np.array(rows, np.int64) for name, rows in made[split].items()}
        for split in ("train", "val", "test", "trainval")
        if split in made
    }


def rows_of(classes: Mapping[str, Sequence[str]], held: Mapping[str, Sequence[str]]) -> Splits:
    """Classes of each split as rows: each class has all its files."""
    starts = np.cumsum([0, *(len(files) for files in classes.values())])
    rows = {name: np.arange(a, b) for name, a, b in zip(classes, starts, starts[1:], strict=False)}
    return {split: {name: rows[name] for name in names} for split, names in held.items()}


def splits_of(
    folder: Folder, split: Fractions | Listed, split_by: Literal["class", "example"] = "class", split_seed: int = 0
) -> Splits:
    """The splits of a folder by the options that plugins have: see ``split_classes``, ``listed_classes`` and
    ``split_examples``.

    Raises:
        DataError: see there; or lists where examples are divided.
    """
    if split_by not in ("class", "example"):
        raise DataError(f"split_by: is {split_by!r}, expected 'class' or 'example'")
    names = tuple(folder.classes)
    if isinstance(split, Mapping | Path | str):
        if split_by == "example":
            raise DataError("split: lists classes, but split_by is 'example'; give fractions such as (.6, .2, .2)")
        return rows_of(folder.classes, listed_classes(names, split))
    if split_by == "example":
        return split_examples(folder.classes, split, split_seed)
    return rows_of(folder.classes, split_classes(names, split, split_seed))


def _sizes(n: int, fractions: Fractions, who: str, what: str) -> dict[str, int]:
    """How many of ``n`` each split gets: borders at the rounded cumulative shares, and at least one each."""
    shares = [float(share) for share in fractions]
    if len(shares) != 3 or not all(0 <= s <= 1 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise DataError(
            f"split: is {fractions}, expected shares of train, val and test that sum to 1, such as (.6, .2, .2)"
        )
    train, val, test = (int(share > 0) for share in shares)
    if n < train + val + test:
        raise DataError(
            f"split: {who} has {n} {what}, too few for {train + val + test} splits; make a share 0, such as val's"
        )
    first = max(int(shares[2] * n + 0.5 + 1e-9), test)
    second = max(int((shares[2] + shares[1]) * n + 0.5 + 1e-9), first + val)
    second = min(second, n - train)
    first = min(first, second - val)
    return {"train": n - second, "val": second - first, "test": first}


def _with_trainval(made: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if made.get("train") and made.get("val"):
        made["trainval"] = (*made["train"], *made["val"])
    return made


def _lines(path: Path) -> list[str]:
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: can't be read as a list of classes ({type(error).__name__}: {error}); expected UTF-8 text with a "
            "name a line"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
