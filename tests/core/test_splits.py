"""Dividing classes, or the examples of each class, into splits."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kshot.data.folders import Folder
from kshot.data.splits import default_shares, listed_classes, rows_of, split_classes, split_examples, splits_of
from kshot.errors import DataError

NAMES = [f"class{i:02d}" for i in range(20)]


def test_classes_are_divided_by_shares() -> None:
    """Splits don't overlap, are in the order of the names and the same every time; trainval is train and val."""
    held = split_classes(NAMES, (0.6, 0.2, 0.2))
    assert {split: len(names) for split, names in held.items()} == {"train": 12, "val": 4, "test": 4, "trainval": 16}
    assert sorted(held["train"] + held["val"] + held["test"]) == NAMES
    assert list(held["train"]) == sorted(held["train"])
    assert set(held["trainval"]) == {*held["train"], *held["val"]}
    assert split_classes(NAMES, (0.6, 0.2, 0.2)) == held
    assert split_classes(NAMES, (0.6, 0.2, 0.2), 1) != held


def test_the_split_is_pinned() -> None:
    """Another release must divide a user's classes in the same way."""
    held = split_classes(list("abcdefgh"), (0.5, 0.25, 0.25))
    assert (held["test"], held["val"], held["train"]) == (("b", "d"), ("e", "f"), ("a", "c", "g", "h"))


@pytest.mark.parametrize("seed", range(5))
def test_a_new_class_moves_at_most_one_across_each_border(seed: int) -> None:
    """So a folder that grows keeps nearly the same splits. Each class takes its turn as the new one."""
    fractions = (0.6, 0.2, 0.2)
    after = {name: s for s, names in split_classes(NAMES, fractions, seed).items() if s != "trainval" for name in names}
    for new in NAMES:
        rest = [name for name in NAMES if name != new]
        before = split_classes(rest, fractions, seed)
        moved = [(split, after[n]) for split in ("train", "val", "test") for n in before[split] if after[n] != split]
        assert len(moved) == len({frozenset(move) for move in moved}) <= 2
        assert frozenset(("train", "test")) not in {frozenset(move) for move in moved}


@pytest.mark.parametrize("n", range(3, 12))
def test_no_split_of_a_few_classes_is_empty(n: int) -> None:
    """Rounding must not take the last class from a split with a small share."""
    for fractions in ((0.98, 0.01, 0.01), (0.01, 0.01, 0.98), (0.2, 0.7, 0.1)):
        held = split_classes(NAMES[:n], fractions)
        assert min(len(held[split]) for split in ("train", "val", "test")) >= 1
        assert sum(len(held[split]) for split in ("train", "val", "test")) == n


def test_a_share_of_0_leaves_a_split_out() -> None:
    """All classes may be the test's, to try a learner that was trained on other data."""
    assert list(split_classes(NAMES, (0.8, 0, 0.2))) == ["train", "test"]
    assert split_classes(NAMES, (0, 0, 1)) == {"test": tuple(NAMES)}


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5), (float("nan"), 0, 1)])
def test_impossible_shares_are_refused(fractions: Any) -> None:
    """Shares are three, none is negative, and they sum to 1."""
    with pytest.raises(DataError, match="expected shares of train, val and test that sum to 1"):
        split_classes(NAMES, fractions)


def test_fewer_classes_or_examples_than_splits_are_refused() -> None:
    """Each split needs at least one."""
    with pytest.raises(
        DataError, match="got 2 classes in the folder, expected at least 3, one for each split; add classes, at least 6"
    ):
        split_classes(["a", "b"], (0.6, 0.2, 0.2))
    with pytest.raises(DataError, match="got 2 examples in class 'b', expected at least 3"):
        split_examples({"a": list("123"), "b": list("12")}, (0.6, 0.2, 0.2))


def test_lists_choose_the_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are a dict of names or of files, or a folder; blank lines, a BOM and either form of Unicode don't matter."""
    expected = {"train": ("b", "é"), "val": ("a",), "test": ("c",), "trainval": ("b", "é", "a")}
    names = ["a", "b", "c", "d", "é"]
    with caplog.at_level(logging.WARNING, "kshot.data.splits"):
        assert listed_classes(names, {"train": ["b", "é"], "val": ["a"], "test": ["c"]}) == expected
    assert "left out 1 classes that are in no split: d" in caplog.text
    decomposed = unicodedata.normalize("NFD", "é")
    (tmp_path / "train.txt").write_bytes(f"\ufeffb\r\n\r\n{decomposed}  \r\n".encode())
    (tmp_path / "val.txt").write_text("a")
    (tmp_path / "test.txt").write_text("c\n")
    (tmp_path / "notes.txt").write_text("nothing")
    assert listed_classes(names, tmp_path) == expected
    assert listed_classes(names, {s: str(tmp_path / f"{s}.txt") for s in ("train", "val", "test")}) == expected
    assert list(listed_classes(names, {"train": ["a"], "rest": ["b"]})) == ["train", "rest"]


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ({"train": ["a", "x"]}, r"split 'train': got the class 'x', expected one of a, b, c$"),
        (
            {"train": ["a"], "test": ["b/rot090"]},
            r"got the class 'b/rot090', expected one of a, b, c; .*name has no slash",
        ),
        ({"train": ["a"], "test": ["b", "a"]}, r"split 'test': got the class 'a', which is in split 'train' already"),
        ({"train": ["a", "a"]}, r"split 'train': got the class 'a', which is in split 'train' already"),
        ({"train": []}, r"split 'train': got no class names"),
        ({}, "got no lists, expected lists for train, val or test"),
        ({"train": ["a"], "trainval": ["a"]}, "leave out trainval"),
        ({"train": "no/such/list.txt"}, r"list\.txt: got a list of classes that can't be read \(FileNotFoundError"),
        ("no/such/folder", r"no/such/folder: got no lists, expected train\.txt, val\.txt or test\.txt"),
    ],
)
def test_lists_that_are_wrong_are_refused(listed: Any, told: str) -> None:
    """The message names the list and the class."""
    with pytest.raises(DataError, match=told):
        listed_classes(["a", "b", "c"], listed)


def test_a_list_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Lists are UTF-8."""
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.txt: got a list of classes that can't be read \(UnicodeDecodeError"):
        listed_classes(["a"], tmp_path)


def test_examples_are_divided_within_each_class() -> None:
    """Every split has all classes, every example is in one split, and other classes have no influence."""
    classes = {"a": [f"a/{i}" for i in range(10)], "b": [f"b/{i}" for i in range(5)]}
    splits = split_examples(classes, (0.6, 0.2, 0.2))
    assert {split: [len(rows) for rows in held.values()] for split, held in splits.items()} == {
        "train": [6, 3], "val": [2, 1], "test": [2, 1], "trainval": [8, 4],
    }  # fmt: skip
    for name, rows in (("a", range(10)), ("b", range(10, 15))):
        assert sorted(np.concatenate([splits[s][name] for s in ("train", "val", "test")])) == list(rows)
        assert sorted(np.concatenate([splits[s][name] for s in ("train", "val")])) == list(splits["trainval"][name])
    alone = split_examples({"a": classes["a"]}, (0.6, 0.2, 0.2))
    assert all(np.array_equal(alone[s]["a"], splits[s]["a"]) for s in splits)
    other = split_examples(classes, (0.6, 0.2, 0.2), 1)
    assert any(not np.array_equal(other[s]["a"], splits[s]["a"]) for s in splits)


def test_rows_are_numbers_of_files() -> None:
    """They count the files of all classes in order."""
    rows = rows_of({"a": "123", "b": "12", "c": "1"}, {"train": ["c", "a"], "test": ["b"]})
    assert {s: {n: r.tolist() for n, r in held.items()} for s, held in rows.items()} == {
        "train": {"c": [5], "a": [0, 1, 2]}, "test": {"b": [3, 4]},
    }  # fmt: skip


def test_options_choose_how_to_split() -> None:
    """The options of plugins lead to one of the three ways of dividing."""
    folder = Folder(Path("."), {name: (f"{name}/1", f"{name}/2", f"{name}/3") for name in NAMES})
    fractions = (0.6, 0.2, 0.2)
    by_class = splits_of(folder, fractions)
    assert {split: tuple(held) for split, held in by_class.items()} == split_classes(NAMES, fractions)
    assert splits_of(folder, [0.6, 0.2, 0.2])["val"].keys() == by_class["val"].keys()  # type: ignore[arg-type]
    assert list(splits_of(folder, {"test": NAMES[:5]})["test"]) == NAMES[:5]
    assert list(splits_of(folder, fractions, "example")["val"]) == NAMES
    with pytest.raises(DataError, match="got lists of classes while split_by is 'example'"):
        splits_of(folder, {"test": NAMES}, "example")
    with pytest.raises(DataError, match="split_by: got 'alphabet', expected 'class' or 'example'"):
        splits_of(folder, fractions, "alphabet")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "sizes"),
    [(4, (2, 0, 2)), (5, (3, 0, 2)), (7, (4, 0, 3)), (10, (5, 0, 5)), (19, (14, 0, 5)), (20, (10, 5, 5)),
     (23, (13, 5, 5)), (24, (14, 5, 5)), (50, (30, 10, 10))],
)  # fmt: skip
def test_few_classes_are_divided_so_that_the_test_has_several(number: int, sizes: tuple[int, ...]) -> None:
    """With two test classes all episodes would be of the same two."""
    folder = Folder(Path("pictures"), {name: (f"{name}/1.png",) for name in [f"k{i}" for i in range(number)]})
    held = splits_of(folder)
    assert tuple(len(held.get(split, ())) for split in ("train", "val", "test")) == sizes
    assert held.keys() == split_classes(tuple(folder.classes), default_shares(number)).keys()


@pytest.mark.parametrize(("number", "sizes"), [(4, (2, 0, 2)), (5, (2, 0, 3)), (9, (4, 0, 5)), (10, (6, 2, 2))])
def test_few_examples_are_divided_in_two_halves(number: int, sizes: tuple[int, ...]) -> None:
    """Each half has at least two of each class."""
    names = {name: tuple(f"{name}/{i}.png" for i in range(number)) for name in "abc"}
    held = splits_of(Folder(Path("pictures"), names), split_by="example")
    assert tuple(len(held[s]["a"]) if s in held else 0 for s in ("train", "val", "test")) == sizes


@pytest.mark.parametrize("seed", [0, 1])
def test_each_class_is_a_test_class_in_one_of_n_folds(seed: int) -> None:
    """And a validation class in one; the first fold is the division without folds."""
    folds = [split_classes(NAMES, (0.6, 0.2, 0.2), seed, (i, 5)) for i in range(5)]
    assert folds[0] == split_classes(NAMES, (0.6, 0.2, 0.2), seed)
    for split in ("test", "val"):
        assert sorted(name for fold in folds for name in fold[split]) == NAMES
    halves = [split_classes(NAMES[:10], (0.5, 0, 0.5), seed, (i, 5))["test"] for i in range(5)]
    assert {sum(name in half for half in halves) for name in NAMES[:10]} <= {2, 3}


def test_examples_are_test_examples_in_one_of_n_folds() -> None:
    """Of each class."""
    classes = {"a": list("0123456789")}
    folds = [split_examples(classes, (0.6, 0.2, 0.2), 0, (i, 5))["test"]["a"] for i in range(5)]
    assert sorted(np.concatenate(folds)) == list(range(10))


def test_impossible_folds_are_refused() -> None:
    """So are folds of lists, which say themselves what is tested."""
    folder = Folder(Path("pictures"), {name: (f"{name}/1.png",) for name in NAMES})
    for fold in ((5, 5), (-1, 5), (0, 0)):
        with pytest.raises(DataError, match="expected \\[i, n\\] with i from 0"):
            splits_of(folder, fold=fold)
    with pytest.raises(DataError, match="got lists of classes and a fold"):
        splits_of(folder, {"test": NAMES[:5]}, fold=(0, 5))
