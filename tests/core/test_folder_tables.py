"""The files of a folder are decoded once, into a table that is named after them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kshot.data import folder_tables
from kshot.data.folder_tables import load_folder
from kshot.data.folders import contents, scan
from kshot.errors import DataError

TXT = {".txt"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a folder of two classes with files of 1 to 3 bytes."""
    for name, text in (("a/1", "x"), ("a/2", "xy"), ("b/1", "xyz")):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / f"{name}.txt").write_text(text)
    return tmp_path / "root"


def load(root: Path, decoded: list[str] | None = None, **more: Any) -> tuple[list[Any], str]:
    def length(path: Path) -> NDArray[np.float32]:
        if decoded is not None:
            decoded.append(path.name)
        return np.array([[len(path.read_bytes())]], np.float32)

    options = {"name": "lengths", "form": "plain", "version": 1, "dtype": "float32", "input_shape": (1,), **more}
    x, fingerprint = load_folder(scan(root, TXT), length, cache=root.parent / "cache", **options)
    return x.tolist(), fingerprint


def test_files_are_decoded_once_in_order(root: Path) -> None:
    """The second load opens the table, whose name is of the files and the form."""
    decoded: list[str] = []
    for _ in range(2):
        x, fingerprint = load(root, decoded)
        assert x == [[1], [2], [3]]
        assert fingerprint.startswith("lengths-plain-")
    assert len(decoded) == 3
    (table,) = (root.parent / "cache" / "lengths").glob("*.table")
    assert table.name == f"{contents(scan(root, TXT)).digest[:20]}-plain.table"


def test_a_changed_folder_form_or_version_is_another_table(root: Path) -> None:
    """Table and fingerprint are of contents and form, not of times: a touched file is not decoded again."""
    decoded: list[str] = []
    first = load(root, decoded)
    os.utime(root / "a" / "1.txt", ns=(1, 1))
    assert load(root, decoded) == first
    assert load(root, decoded, form="other")[1] != first[1]
    assert load(root, decoded, version=2) == first
    (root / "a" / "1.txt").write_text("1234")
    assert load(root, decoded)[1] != first[1]
    assert len(decoded) == 4 * 3


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute go by, after which files count as settled."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 60 * 10**9)


@pytest.mark.parametrize("settled", [False, True])
def test_files_of_one_size_and_time_that_change_places_are_seen(
    root: Path, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of one size, unpacked with one time, are swapped to correct two wrong labels."""
    for name, text in (("a/1.txt", "x"), ("b/1.txt", "y")):
        (root / name).write_text(text)
        os.utime(root / name, ns=(10**18, 10**18))
    if settled:
        later(monkeypatch)

    def first(path: Path) -> NDArray[np.float32]:
        return np.array([[path.read_bytes()[0]]], np.float32)

    def loaded() -> tuple[Any, str]:
        options = {"name": "first", "form": "f", "version": 1, "dtype": "float32", "input_shape": (1,)}
        x, fingerprint = load_folder(scan(root, TXT), first, cache=root.parent / "cache", **options)
        return x[:, 0].tolist(), fingerprint

    before = loaded()
    assert loaded() == before
    (root / "a/1.txt").rename(root / "c.tmp")
    (root / "b/1.txt").rename(root / "a/1.txt")
    (root / "c.tmp").rename(root / "b/1.txt")
    after = loaded()
    assert before[0][0] == ord("x")
    assert after[0][0] == ord("y")
    assert after[1] != before[1]
    with open(root / "a/1.txt", "r+b") as file:  # and one that is written in its place
        file.write(b"z")
    os.utime(root / "a/1.txt", ns=(10**18, 10**18))
    assert loaded()[0][0] == ord("z")


def test_settled_files_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large folder is not read at each start."""
    later(monkeypatch)
    expected = load(root)
    with monkeypatch.context() as patch:
        patch.setattr(folder_tables, "contents", None)
        assert load(root) == expected


def test_files_that_change_while_they_are_decoded_are_refused(root: Path) -> None:
    """The table would be named after bytes that it is not made of."""

    def change(path: Path) -> NDArray[np.float32]:
        path.write_text("changed")
        return np.zeros((1, 1), np.float32)

    folder, cache = scan(root, TXT), root.parent / "cache"
    with pytest.raises(DataError, match="files that changed while they were decoded, expected them to stay"):
        load_folder(folder, change, name="x", form="f", version=1, dtype="float32", input_shape=(1,), cache=cache)
    assert list(cache.rglob("*.table")) == []


def test_copies_are_warned_of_at_each_load(root: Path) -> None:
    """The warning names the plugin, the folder and the files, also if the table is in the cache."""
    (root / "b" / "1.txt").write_text("x")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"lengths: .*root: got 1 files that are copies .*a/1\.txt = b/1\.txt"):
            load(root)


def test_a_file_that_cannot_be_decoded_leaves_no_table(root: Path) -> None:
    """The next load tries again."""

    def fail(path: Path) -> NDArray[np.float32]:
        raise DataError(f"{path.name}: got text, expected numbers")

    folder, cache = scan(root, TXT), root.parent / "cache"
    with pytest.raises(DataError, match="got 3 files that can't be used"):
        load_folder(folder, fail, name="x", form="f", version=1, dtype="float32", input_shape=(1,), cache=cache)
    assert list(cache.rglob("*.table")) == []
