"""Divide the classes of a folder, or the examples of each class, into train, val and test.

Every choice is a hash of a name and a seed, so it is the same on every machine and changes little if a class is added.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from kshot.data._names import nfc, shortened
from kshot.data.folders import Folder
from kshot.errors import DataError
from kshot.randomness import purpose_key

log = logging.getLogger("kshot.data.splits")

_T = TypeVar("_T")

Fractions = tuple[float, float, float]
"""Shares of train, val and test. They sum to 1; a split whose share is 0 is left out."""

Fold = tuple[int, int]
"""Number i of a division and the number n of all: the i-th of n divisions, whose test splits are evenly spread."""

Listed = Mapping[str, Sequence[str] | Path | str] | Path | str
"""Split -> class names, or a text file with one name per line; or a folder with train.txt, val.txt and test.txt."""

Splits = Mapping[str, Mapping[str, NDArray[np.int64]]]
"""Split -> class -> its rows: the numbers of its files in the order of ``Folder.files``."""


def default_shares(number: int, split_by: Literal["class", "example"] = "class") -> Fractions:
    """Return the shares of train, val and test that are used if a user gives none.

    They are 0.6, 0.2 and 0.2. Fewer than 24 classes are divided so that the test has 5, or half of them: with two test
    classes all episodes would be of these two. Validation has 5 classes, or none where training would have fewer than
    10. Fewer than 10 examples of a class are divided into halves for training and test.

    Args:
        number: of classes, or of the examples of the smallest class.
        split_by: which of the two it is.

    Example:
        >>> [round(share * 10) for share in default_shares(10)]
        [5, 0, 5]
    """
    if split_by == "example":
        return (0.6, 0.2, 0.2) if number >= 10 else (0.5, 0.0, 0.5)
    if number >= 24 or number < 2:
        return (0.6, 0.2, 0.2)
    test, val = min(5, number // 2), 5 if number >= 20 else 0
    return ((number - test - val) / number, val / number, test / number)


def _turned(order: list[_T], fold: Fold | None) -> list[_T]:
    """Return a list that begins at the i-th of n evenly spread places, and goes round.

    Raises:
        DataError: there is no such place.
    """
    if fold is None:
        return order
    i, n = int(fold[0]), int(fold[1])
    if not 0 <= i < n:
        raise DataError(f"fold: got {list(fold)}, expected [i, n] with i from 0 to n - 1")
    first = i * len(order) // n
    return order[first:] + order[:first]


def split_classes(
    names: Sequence[str], fractions: Fractions, split_seed: int = 0, fold: Fold | None = None
) -> dict[str, tuple[str, ...]]:
    """Divide classes into splits by a hash of name and seed: the first are the test's, the next val's, then train's.

    A class that is added or removed moves at most one other class across each border. Each split is in the order of
    ``names`` and has at least one class; ``trainval`` is train and val together.

    Args:
        names: the classes.
        fractions: shares of train, val and test.
        split_seed: another seed gives another division.
        fold: the number i of a division and the number n of divisions. The test classes of the n divisions are evenly
            spread: with shares of 1 / n for the test, each class is a test class in exactly one of them.

    Raises:
        DataError: the fractions or the fold are impossible, or there are fewer classes than splits.

    Example:
        >>> split_classes(list("abcdefgh"), (0.5, 0.25, 0.25))["test"]
        ('b', 'd')
    """
    sizes = _sizes(len(names), fractions, "the folder", "classes")
    order = _turned(sorted(names, key=lambda name: (purpose_key(f"folders/{split_seed}/{name}"), name)), fold)
    borders = np.cumsum([0, *(sizes[split] for split in ("test", "val", "train"))])
    chosen = {
        split: set(order[a:b]) for split, a, b in zip(("test", "val", "train"), borders, borders[1:], strict=False)
    }
    return _with_trainval(
        {split: tuple(n for n in names if n in chosen[split]) for split in ("train", "val", "test") if chosen[split]}
    )


def listed_classes(names: Sequence[str], listed: Listed) -> dict[str, tuple[str, ...]]:
    """Return the classes of each split as lists name them. Classes that no list names are left out, and logged.

    Args:
        names: the classes that exist.
        listed: the lists.

    Raises:
        DataError: a list can't be read or is empty, or names a class that does not exist or was listed already. The
            message names the class and the list.

    Example:
        >>> listed_classes(["ant", "bee", "cat"], {"train": ["bee", "cat"], "test": ["ant"]})
        {'train': ('bee', 'cat'), 'test': ('ant',)}
    """
    if isinstance(listed, Path | str):
        folder = Path(listed).expanduser()
        listed = {s: folder / f"{s}.txt" for s in ("train", "val", "test") if (folder / f"{s}.txt").is_file()}
        if not listed:
            raise DataError(
                f"{folder}: got no lists, expected train.txt, val.txt or test.txt with one class name per line; add "
                "them or give another folder"
            )
    if "trainval" in listed or not listed:
        raise DataError(
            f"split: got {', '.join(listed) or 'no lists'}, expected lists for train, val or test; leave out trainval, "
            "which is train and val together"
        )
    known, used = set(names), dict[str, str]()
    splits: dict[str, tuple[str, ...]] = {}
    for split, given in listed.items():
        where = f"split {split!r}" if not isinstance(given, Path | str) else str(given)
        wanted = [nfc(name) for name in (_lines(Path(given)) if isinstance(given, Path | str) else given)]
        if not wanted:
            raise DataError(f"{where}: got no class names, expected one per line; add some or leave the split out")
        for name in wanted:
            if name not in known:
                hint = "; a class is a folder of the first level, whose name has no slash" if "/" in name else ""
                raise DataError(f"{where}: got the class {name!r}, expected one of {shortened(names)}{hint}")
            if name in used:
                raise DataError(
                    f"{where}: got the class {name!r}, which is in {used[name]} already, expected each class once; "
                    "remove it from one of them"
                )
            used[name] = where
        splits[split] = tuple(wanted)
    if unused := [name for name in names if name not in used]:
        log.warning("left out %d classes that are in no split: %s", len(unused), shortened(unused))
    return _with_trainval(splits)


def split_examples(
    classes: Mapping[str, Sequence[str]], fractions: Fractions, split_seed: int = 0, fold: Fold | None = None
) -> Splits:
    """Divide the examples of each class by a hash of name and seed: every split has all classes.

    Scores on such splits say how well new examples of *known* classes are recognised, not how well new classes are
    learned.

    Args:
        classes: class -> the names of its examples.
        fractions: shares of train, val and test.
        split_seed: another seed gives another division.

    Raises:
        DataError: the fractions are impossible, or a class has fewer examples than there are splits.

    Example:
        >>> splits = split_examples({"cat": ["1", "2", "3"], "dog": ["4", "5"]}, (0.5, 0, 0.5))
        >>> {split: sum(map(len, rows.values())) for split, rows in splits.items()}
        {'train': 2, 'test': 3}
    """
    rows: dict[str, dict[str, list[int]]] = {}
    first = 0  # row of the class's first example
    for name, files in classes.items():
        sizes = _sizes(len(files), fractions, f"class {name!r}", "examples")
        chance = {i: purpose_key(f"folders/{split_seed}/{nfc(files[i])}") for i in range(len(files))}
        order = _turned(sorted(chance, key=lambda i: (chance[i], i)), fold)
        start = 0
        for split in ("test", "val", "train"):
            if sizes[split]:
                rows.setdefault(split, {})[name] = sorted(first + i for i in order[start : start + sizes[split]])
            start += sizes[split]
        first += len(files)
    if "train" in rows and "val" in rows:
        rows["trainval"] = {name: sorted(rows["train"][name] + rows["val"][name]) for name in classes}
    return {
        split: {name: np.array(numbers, np.int64) for name, numbers in rows[split].items()}
        for split in ("train", "val", "test", "trainval")
        if split in rows
    }


def rows_of(classes: Mapping[str, Sequence[str]], held: Mapping[str, Sequence[str]]) -> Splits:
    """Return the classes of each split as rows, with all examples of each class.

    Args:
        classes: class -> the names of its examples.
        held: split -> the names of its classes.

    Example:
        >>> splits = rows_of({"cat": ["1", "2", "3"], "dog": ["4", "5"]}, {"test": ["dog"]})
        >>> splits["test"]["dog"].tolist()
        [3, 4]
    """
    starts = np.cumsum([0, *(len(files) for files in classes.values())])
    rows = {name: np.arange(a, b) for name, a, b in zip(classes, starts, starts[1:], strict=False)}
    return {split: {name: rows[name] for name in names} for split, names in held.items()}


def splits_of(
    folder: Folder,
    split: Fractions | Listed | None = None,
    split_by: Literal["class", "example"] = "class",
    split_seed: int = 0,
    fold: Fold | None = None,
) -> Splits:
    """Divide a folder by the options that plugins offer to their users.

    Args:
        folder: the folder, as ``kshot.data.folders.scan`` returns it.
        split: shares of train, val and test, or lists of class names; by default see ``default_shares``.
        split_by: ``"class"``, see ``split_classes`` and ``listed_classes``; or ``"example"``, see ``split_examples``.
        split_seed: another seed gives another division by shares.
        fold: see ``split_classes``; only for shares.

    Raises:
        DataError: see the three functions; or lists were given together with ``split_by="example"``.

    Example:
        >>> folder = Folder(Path("pictures"), {"cat": ("cat/1.png",), "dog": ("dog/1.png",)})
        >>> list(splits_of(folder, {"train": ["cat"], "test": ["dog"]}))
        ['train', 'test']
    """
    if split_by not in ("class", "example"):
        raise DataError(f"split_by: got {split_by!r}, expected 'class' or 'example'")
    names = tuple(folder.classes)
    if split is None:
        number = len(names) if split_by == "class" else min(map(len, folder.classes.values()))
        split = default_shares(number, split_by)
    if isinstance(split, Mapping | Path | str):
        if fold is not None:
            raise DataError("fold: got lists of classes and a fold, expected one of them; give shares, or no fold")
        if split_by == "example":
            raise DataError(
                "split: got lists of classes while split_by is 'example', expected shares; give shares such as "
                "(.6, .2, .2)"
            )
        return rows_of(folder.classes, listed_classes(names, split))
    if split_by == "example":
        return split_examples(folder.classes, split, split_seed, fold)
    return rows_of(folder.classes, split_classes(names, split, split_seed, fold))


def _sizes(n: int, fractions: Fractions, who: str, what: str) -> dict[str, int]:
    """Return how many of ``n`` each split gets: the rounded cumulative shares are the borders, with at least one each.

    Args:
        n: the number of classes or examples.
        fractions: shares of train, val and test.
        who: whose they are, for messages.
        what: what they are, for messages.
    """
    shares = [float(share) for share in fractions]
    if len(shares) != 3 or not all(0 <= s <= 1 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise DataError(
            f"split: got {fractions}, expected shares of train, val and test that sum to 1; give some such as "
            "(.6, .2, .2)"
        )
    train, val, test = (int(share > 0) for share in shares)  # the least that each must get
    if n < train + val + test:
        otherwise = (
            ", or divide the examples of each class: split_by='example'" if what == "classes" else ", or remove it"
        )
        raise DataError(
            f"split: got {n} {what} in {who}, expected at least {train + val + test}, one for each split; add {what}, "
            f"at least {2 * (train + val + test)} in all{otherwise}"
        )
    # Borders in the order test, val, train; 1e-9 makes a half round up in spite of the shares' own rounding.
    first = max(int(shares[2] * n + 0.5 + 1e-9), test)
    second = max(int((shares[2] + shares[1]) * n + 0.5 + 1e-9), first + val)
    # Where rounding left nothing to a later split, move the borders back.
    second = min(second, n - train)
    first = min(first, second - val)
    return {"train": n - second, "val": second - first, "test": first}


def _with_trainval(splits: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Add ``trainval``, train and val together, if there are both."""
    if splits.get("train") and splits.get("val"):
        splits["trainval"] = (*splits["train"], *splits["val"])
    return splits


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, without surrounding space."""
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: got a list of classes that can't be read ({type(error).__name__}: {error}), expected UTF-8 text "
            "with one name per line; fix the file or give another"
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
