"""Scanning a folder of class folders: classes, files, refusals, hashes and duplicates."""

from __future__ import annotations

import logging
import os
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from kshot.data.folders import accepted_by, contents, reads, scan, tell_copies
from kshot.errors import DataError
from kshot.preparing import Preparation

TXT = {".txt"}


def make(root: Path, files: Iterable[str]) -> Path:
    """Write files whose text is their own name."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file, encoding="utf-8")
    return root


def test_each_folder_is_a_class_with_all_files_below_it(tmp_path: Path) -> None:
    """They are in the order of names, whatever the file system's order; folders within a class only sort its files."""
    make(tmp_path, ["b/2.txt", "b/10.TXT", "a/z.txt", "a/2019/spring/y.txt", "b/1.txt"])
    folder = scan(tmp_path, TXT)
    assert folder.classes == {"a": ("a/2019/spring/y.txt", "a/z.txt"), "b": ("b/1.txt", "b/10.TXT", "b/2.txt")}
    assert folder.files == ("a/2019/spring/y.txt", "a/z.txt", "b/1.txt", "b/10.TXT", "b/2.txt")
    assert folder.paths[0].read_text() == "a/2019/spring/y.txt"
    assert folder.ignored == ()


def test_hidden_files_and_those_of_file_managers_are_skipped(tmp_path: Path) -> None:
    """This holds for files and folders at both levels, and nothing is logged of them."""
    files = ["a/1.txt", "b/1.txt"]
    left = [".DS_Store", "Thumbs.db", "a/.DS_Store", "a/Thumbs.db", "b/desktop.ini", ".git/x.txt", "__MACOSX/b/2.txt"]
    make(tmp_path, [*files, *left, "a/.hidden.txt", "a/@eaDir/2.txt", "b/._1.txt"])
    folder = scan(tmp_path, lambda path: True)
    assert folder.files == tuple(files)


def test_other_files_are_ignored_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A README beside the class folders is normal; a file in one of them may be a picture with a wrong suffix."""
    make(tmp_path, ["a/1.txt", "a/2.text", "b/1.txt", "README.md"])
    with caplog.at_level(logging.WARNING, "kshot.data.folders"):
        folder = scan(tmp_path, TXT, what="texts")
    assert folder.ignored == ("a/2.text",)
    assert "ignored 1 files in class folders that are not texts, such as a/2.text" in caplog.text


def test_a_predicate_chooses_files(tmp_path: Path) -> None:
    """Any rule about a path can take the place of a set of suffixes."""
    make(tmp_path, ["a/1.txt", "a/2.txt", "b/2.txt"])
    assert scan(tmp_path, lambda path: path.stem == "2").files == ("a/2.txt", "b/2.txt")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], r"got 0 class folders, expected at least 2"),
        (["a/1.txt"], r"got 1 class folders \(a\), expected at least 2"),
        (["data/a/1.txt", "data/b/1.txt"], r"got 1 class folders \(data\).* if a, b are the classes, give .*data"),
        (
            ["a/1.txt", "b/1.txt", "1.txt"],
            r"1\.txt: got a file beside the class folders, expected a folder that has a folder of texts for each class",
        ),
        (["a/1.txt", "b/x.md"], r"b: got only 1 other files, such as b/x\.md, expected texts of this class"),
    ],
)
def test_a_folder_without_proper_classes_is_refused(tmp_path: Path, files: list[str], told: str) -> None:
    """The message says what is there, what was expected and, if it can be seen, which folder to give instead."""
    make(tmp_path, files)
    with pytest.raises(DataError, match=told):
        scan(tmp_path, TXT, what="texts")


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    """Perhaps its files were forgotten."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"c: got an empty folder, expected files of this class; add some or remove it"):
        scan(tmp_path, TXT)


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    """A wrong path is the most frequent mistake."""
    with pytest.raises(
        DataError, match=r"nowhere: got a path that does not exist, expected a folder that has a folder of"
    ):
        scan(tmp_path / "nowhere", TXT)
    make(tmp_path, ["file"])
    with pytest.raises(DataError, match=r"file: got a file, expected a folder"):
        scan(tmp_path / "file", TXT)


def test_names_are_the_same_in_either_form_of_unicode(tmp_path: Path) -> None:
    """Systems write é as one character or as two; lists, runs and other machines must recognise the class."""
    decomposed = unicodedata.normalize("NFD", "é")
    make(tmp_path, [f"{decomposed}/{decomposed}.txt", "日本/1.txt"])
    folder = scan(tmp_path, TXT)
    assert tuple(folder.classes) == ("é", "日本")
    assert folder.paths[0].is_file()


def test_two_names_that_are_the_same_in_unicode_are_refused(tmp_path: Path) -> None:
    """They would be one class on another system."""
    decomposed = unicodedata.normalize("NFD", "é")
    make(tmp_path, [f"{decomposed}/1.txt", "é/1.txt"])
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system treats them as one")
    with pytest.raises(DataError, match=r"got the folders 'e\\u0301' and '\\xe9', which both have the name 'é'"):
        scan(tmp_path, TXT)


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Such names can't be printed, listed or stored in a result."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/c\xff")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match=r"got the name 'c\\udcff' in it, which is not Unicode text"):
        scan(tmp_path, TXT)


def test_links_are_followed(tmp_path: Path) -> None:
    """They may lead to files and folders anywhere, and several to the same."""
    elsewhere = make(tmp_path / "elsewhere", ["x/1.txt", "2.txt"])
    root = make(tmp_path / "root", ["a/1.txt"])
    (root / "b").symlink_to(elsewhere / "x")
    (root / "c").mkdir()
    (root / "c" / "3.txt").symlink_to(elsewhere / "2.txt")
    (root / "c" / "more").symlink_to(elsewhere / "x")
    assert scan(root, TXT).files == ("a/1.txt", "b/1.txt", "c/3.txt", "c/more/1.txt")


@pytest.mark.parametrize(
    ("target", "told"),
    [("..", "got a link to a folder above it"), (".", "got a link to a folder above it"),
     ("gone", "got a link to gone, which does not exist"), ("link", "got a link that leads to itself")],
)  # fmt: skip
def test_links_that_lead_nowhere_or_back_are_refused(tmp_path: Path, target: str, told: str) -> None:
    """A circle of links would never end."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    (tmp_path / "b" / "link").symlink_to(target)
    with pytest.raises(DataError, match=rf"link: {told}"):
        scan(tmp_path, TXT)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its class would silently be missing."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    original = Path.iterdir

    def denied(self: Path) -> Any:
        if self.name == "b":
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(DataError, match=r"b: got a folder that can't be read \(Permission denied\)"):
        scan(tmp_path, TXT)


def test_the_key_changes_with_any_file(tmp_path: Path) -> None:
    """A time, a size, a name or a class changes it; the place of the folder does not."""
    make(tmp_path / "one", ["a/1.txt", "b/1.txt"])

    def key(folder: str = "one") -> str:
        return scan(tmp_path / folder, TXT).key()

    keys = [key()]
    assert key() == keys[0]
    (tmp_path / "one").rename(tmp_path / "two")
    assert key("two") == keys[0]
    for change in (
        lambda: os.utime(tmp_path / "two/a/1.txt", ns=(1, 1)),
        lambda: ((tmp_path / "two/a/1.txt").write_text("more"), os.utime(tmp_path / "two/a/1.txt", ns=(1, 1))),
        lambda: (tmp_path / "two/a/1.txt").rename(tmp_path / "two/a/2.txt"),
        lambda: (tmp_path / "two/a").rename(tmp_path / "two/c"),
    ):
        change()
        keys.append(key("two"))
    assert len(set(keys)) == 5


def test_a_file_that_no_longer_exists_is_refused(tmp_path: Path) -> None:
    """It may be removed between scanning and reading."""
    folder = scan(make(tmp_path, ["a/1.txt", "b/1.txt"]), TXT)
    (tmp_path / "b/1.txt").unlink()
    for use in (folder.key, lambda: contents(folder)):
        with pytest.raises(DataError, match=r"1\.txt: got a file that can't be read"):
            use()


def test_copies_are_found_and_warned_of(tmp_path: Path) -> None:
    """Copies in two classes are named first, because one of the two labels is wrong."""
    make(tmp_path, ["a/1.txt", "a/2.txt", "a/3.txt", "b/1.txt", "b/2.txt"])
    for one, other in (("a/1.txt", "a/2.txt"), ("a/3.txt", "b/1.txt")):
        (tmp_path / other).write_bytes((tmp_path / one).read_bytes())
    read = contents(scan(tmp_path, TXT))
    assert read.copies == (("a/1.txt", "a/2.txt"), ("a/3.txt", "b/1.txt"))
    with pytest.warns(
        UserWarning, match=r"me: got 2 files that are copies of others \(a/3\.txt = b/1\.txt; a/1\.txt = a/2\.txt\)"
    ):
        tell_copies("me", read.copies)
    tell_copies("me", ())


def test_the_digest_is_of_bytes_and_names_only(tmp_path: Path) -> None:
    """So the same data have the same fingerprint on two machines."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    first = contents(scan(tmp_path, TXT)).digest
    os.utime(tmp_path / "a/1.txt", ns=(1, 1))
    assert contents(scan(tmp_path, TXT)).digest == first
    (tmp_path / "a/1.txt").write_text("a/2.txt")
    assert contents(scan(tmp_path, TXT)).digest != first


def test_a_pipe_among_the_files_is_refused(tmp_path: Path) -> None:
    """Reading it waits for somebody who writes; a pipe that would be ignored anyway does no harm."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    os.mkfifo(tmp_path / "a/pipe")
    assert scan(tmp_path, TXT).ignored == ("a/pipe",)
    os.mkfifo(tmp_path / "a/2.txt")
    with pytest.raises(DataError, match=r"2\.txt: got a named pipe, expected one of the files"):
        scan(tmp_path, TXT)


def test_the_files_that_a_preparation_reads_are_those_of_its_function() -> None:
    """So predictions on a folder ignore the files that training ignores."""

    @reads(lambda: {".txt"})
    def prepare(raw: object) -> object:
        return raw

    def view(raw: object, below: Preparation) -> object:
        return raw

    plain = Preparation.of(prepare)
    for given in (prepare, plain, Preparation.of(view, below=plain)):
        assert accepted_by(given) == {".txt"}
    for given in (None, view, Preparation.of(view)):
        accept = accepted_by(given)
        assert callable(accept)
        assert accept(Path("notes.md"))


def test_files_that_have_just_changed_are_not_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another change within the same tick of the clock would have the same time."""
    folder = scan(make(tmp_path, ["a/1.txt", "b/1.txt"]), TXT)
    assert not folder.settled()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 60 * 10**9)
    assert folder.settled() == (os.name == "posix")


def test_the_digest_sees_a_renamed_file_and_a_renamed_class(tmp_path: Path) -> None:
    """The order of the examples follows from the names, and with it the episodes."""
    make(tmp_path, ["a/1.txt", "a/2.txt", "b/1.txt"])
    digests = [contents(scan(tmp_path, TXT)).digest]
    (tmp_path / "a/2.txt").rename(tmp_path / "a/3.txt")
    digests.append(contents(scan(tmp_path, TXT)).digest)
    (tmp_path / "b").rename(tmp_path / "c")
    digests.append(contents(scan(tmp_path, TXT)).digest)
    assert len(set(digests)) == 3
