"""Folders of class folders: what is found, what is refused, who goes where."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot.data.folder_tasks import FolderTasks
from kshot.data.folders import (
    Decoded,
    Folder,
    contents,
    listed_classes,
    rows_of,
    scan,
    split_classes,
    split_examples,
    splits_of,
    tell_copies,
)
from kshot.errors import DataError

TXT = {".txt"}


def make(root: Path, files: Iterable[str]) -> Path:
    """Files whose text is their own name."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file, encoding="utf-8")
    return root


# --- What is there ---------------------------------------------------------------------------------------------------


def test_a_folder_in_it_is_a_class_and_all_below_are_its_files(tmp_path: Path) -> None:
    """In order of names, whatever the file system's; folders within a class only sort its files."""
    make(tmp_path, ["b/2.txt", "b/10.TXT", "a/z.txt", "a/2019/spring/y.txt", "b/1.txt"])
    folder = scan(tmp_path, TXT)
    assert folder.classes == {"a": ("a/2019/spring/y.txt", "a/z.txt"), "b": ("b/1.txt", "b/10.TXT", "b/2.txt")}
    assert folder.files == ("a/2019/spring/y.txt", "a/z.txt", "b/1.txt", "b/10.TXT", "b/2.txt")
    assert folder.paths[0].read_text() == "a/2019/spring/y.txt"
    assert folder.ignored == ()


def test_hidden_files_and_those_of_file_managers_are_passed_over(tmp_path: Path) -> None:
    """At either level, and folders too; they are not worth a word."""
    files = ["a/1.txt", "b/1.txt"]
    left = [".DS_Store", "Thumbs.db", "a/.DS_Store", "a/Thumbs.db", "b/desktop.ini", ".git/x.txt", "__MACOSX/b/2.txt"]
    make(tmp_path, [*files, *left, "a/.hidden.txt", "a/@eaDir/2.txt", "b/._1.txt"])
    folder = scan(tmp_path, lambda path: True)
    assert folder.files == tuple(files)


def test_other_files_are_ignored_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beside the class folders silently: a README, a list. In them with a word: it may be a picture called .jpgg."""
    make(tmp_path, ["a/1.txt", "a/2.text", "b/1.txt", "README.md"])
    with caplog.at_level(logging.WARNING, "kshot.data.folders"):
        folder = scan(tmp_path, TXT, what="texts")
    assert folder.ignored == ("a/2.text",)
    assert "1 files in class folders are no texts, such as a/2.text" in caplog.text


def test_a_predicate_chooses_files(tmp_path: Path) -> None:
    make(tmp_path, ["a/1.txt", "a/2.txt", "b/2.txt"])
    assert scan(tmp_path, lambda path: path.stem == "2").files == ("a/2.txt", "b/2.txt")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], r"has 0 class folders, expected at least 2"),
        (["a/1.txt"], r"has 1 class folders \(a\), expected at least 2"),
        (["data/a/1.txt", "data/b/1.txt"], r"has 1 class folders \(data\).* if a, b are the classes, give .*data"),
        (["a/1.txt", "b/1.txt", "1.txt"], r"1\.txt: lies beside the class folders"),
        (["a/1.txt", "b/x.md"], r"b: the class has no texts; it has 1 other files, such as b/x\.md"),
    ],
)
def test_folders_that_are_no_classes_are_told(tmp_path: Path, files: list[str], told: str) -> None:
    make(tmp_path, files)
    with pytest.raises(DataError, match=told):
        scan(tmp_path, TXT, what="texts")


def test_an_empty_class_is_told(tmp_path: Path) -> None:
    """It may be one whose files were forgotten."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"c: the class has no files; it is empty: fill the folder or remove it"):
        scan(tmp_path, TXT)


def test_a_missing_folder_and_a_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no such folder; expected a folder that has a folder of"):
        scan(tmp_path / "nowhere", TXT)
    make(tmp_path, ["file"])
    with pytest.raises(DataError, match=r"file: is a file"):
        scan(tmp_path / "file", TXT)


def test_names_are_the_same_in_either_form_of_unicode(tmp_path: Path) -> None:
    """Systems write é as one character or as two; lists, runs and other machines must find the class again."""
    decomposed = unicodedata.normalize("NFD", "é")
    make(tmp_path, [f"{decomposed}/{decomposed}.txt", "日本/1.txt"])
    folder = scan(tmp_path, TXT)
    assert tuple(folder.classes) == ("é", "日本")
    assert folder.paths[0].is_file()


def test_two_names_that_are_one_are_told(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    make(tmp_path, [f"{decomposed}/1.txt", "é/1.txt"])
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes them for one")
    with pytest.raises(DataError, match=r"the folders 'e\\u0301' and '\\xe9' have the same name 'é'"):
        scan(tmp_path, TXT)


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Such names can't be printed, listed or kept in a result."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/c\xff")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match=r"the name 'c\\udcff' in it is no Unicode text"):
        scan(tmp_path, TXT)


def test_links_are_followed(tmp_path: Path) -> None:
    """To files and folders anywhere, twice too."""
    elsewhere = make(tmp_path / "elsewhere", ["x/1.txt", "2.txt"])
    root = make(tmp_path / "root", ["a/1.txt"])
    (root / "b").symlink_to(elsewhere / "x")
    (root / "c").mkdir()
    (root / "c" / "3.txt").symlink_to(elsewhere / "2.txt")
    (root / "c" / "more").symlink_to(elsewhere / "x")
    assert scan(root, TXT).files == ("a/1.txt", "b/1.txt", "c/3.txt", "c/more/1.txt")


@pytest.mark.parametrize(
    ("target", "told"),
    [("..", "is a link to a folder above it"), (".", "is a link to a folder above it"),
     ("gone", "is a link to gone, which isn't there"), ("link", "is a link that leads to itself")],
)  # fmt: skip
def test_links_that_lead_nowhere_or_back_are_told(tmp_path: Path, target: str, told: str) -> None:
    """And do not go on for ever."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    (tmp_path / "b" / "link").symlink_to(target)
    with pytest.raises(DataError, match=rf"link: {told}"):
        scan(tmp_path, TXT)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    whole = Path.iterdir

    def shut(self: Path) -> Any:
        if self.name == "b":
            raise PermissionError(13, "Permission denied")
        return whole(self)

    monkeypatch.setattr(Path, "iterdir", shut)
    with pytest.raises(DataError, match=r"b: can't be read \(Permission denied\)"):
        scan(tmp_path, TXT)


def test_the_key_tells_any_change(tmp_path: Path) -> None:
    """Of a time, a size, a name or a class; not where the folder lies."""
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


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    folder = scan(make(tmp_path, ["a/1.txt", "b/1.txt"]), TXT)
    (tmp_path / "b/1.txt").unlink()
    for use in (folder.key, lambda: contents(folder)):
        with pytest.raises(DataError, match=r"1\.txt: can't be read"):
            use()


# --- What is in it ---------------------------------------------------------------------------------------------------


def test_copies_are_found_and_told(tmp_path: Path) -> None:
    """Copies in two classes first: one of the two labels is wrong."""
    make(tmp_path, ["a/1.txt", "a/2.txt", "a/3.txt", "b/1.txt", "b/2.txt"])
    for one, other in (("a/1.txt", "a/2.txt"), ("a/3.txt", "b/1.txt")):
        (tmp_path / other).write_bytes((tmp_path / one).read_bytes())
    found = contents(scan(tmp_path, TXT))
    assert found.copies == (("a/1.txt", "a/2.txt"), ("a/3.txt", "b/1.txt"))
    with pytest.warns(
        UserWarning, match=r"me: 2 files are copies of others \(a/3\.txt = b/1\.txt; a/1\.txt = a/2\.txt\)"
    ):
        tell_copies("me", found.copies)
    tell_copies("me", ())


def test_the_digest_is_of_bytes_and_names_only(tmp_path: Path) -> None:
    """So the same data on two machines have one fingerprint."""
    make(tmp_path, ["a/1.txt", "b/1.txt"])
    first = contents(scan(tmp_path, TXT)).digest
    os.utime(tmp_path / "a/1.txt", ns=(1, 1))
    assert contents(scan(tmp_path, TXT)).digest == first
    (tmp_path / "a/1.txt").write_text("a/2.txt")
    assert contents(scan(tmp_path, TXT)).digest != first


@pytest.mark.parametrize("workers", [1, 3, None])
def test_files_are_decoded_in_order(workers: int | None) -> None:
    """By however many threads; twice, if someone asks twice."""
    paths = [Path(str(i)) for i in range(40)]
    decoded = Decoded(paths, lambda path: np.array([int(path.name)]), workers)
    assert len(decoded) == 40
    assert decoded[7] == 7
    for _ in range(2):
        assert np.concatenate(list(decoded)).tolist() == list(range(40))


def test_all_files_that_fail_are_told_at_once() -> None:
    """Whoever mends thirty files wants to hear of more than one at a time."""

    def decode(path: Path) -> np.ndarray[Any, Any]:
        if int(path.name) % 5 == 4:
            raise DataError(f"{path}: is bad")
        return np.zeros(1)

    paths = [Path(str(i)) for i in range(50)]
    with pytest.raises(DataError, match=r"(?s)10 files can't be used:\n4: is bad.*24: is bad\n\.\.\. and 5 more$"):
        list(Decoded(paths, decode, 2))
    made = iter(Decoded(paths[:8], decode, 2))
    assert len([next(made) for _ in range(4)]) == 4
    with pytest.raises(DataError, match=r"^4: is bad$"):  # and nothing of what comes after it
        next(made)


# --- Who goes where --------------------------------------------------------------------------------------------------

NAMES = [f"class{i:02d}" for i in range(20)]


def test_classes_are_divided_by_shares() -> None:
    """Without overlap, in the order of the names, the same every time; trainval is train and val."""
    held = split_classes(NAMES, (0.6, 0.2, 0.2))
    assert {split: len(names) for split, names in held.items()} == {"train": 12, "val": 4, "test": 4, "trainval": 16}
    assert sorted(held["train"] + held["val"] + held["test"]) == NAMES
    assert list(held["train"]) == sorted(held["train"])
    assert set(held["trainval"]) == {*held["train"], *held["val"]}
    assert split_classes(NAMES, (0.6, 0.2, 0.2)) == held
    assert split_classes(NAMES, (0.6, 0.2, 0.2), 1) != held


def test_the_split_is_pinned() -> None:
    """Written down when it was made: another release must not divide people's classes otherwise."""
    held = split_classes(list("abcdefgh"), (0.5, 0.25, 0.25))
    assert (held["test"], held["val"], held["train"]) == (("b", "d"), ("e", "f"), ("a", "c", "g", "h"))


@pytest.mark.parametrize("seed", range(5))
def test_a_new_class_moves_at_most_one_over_each_border(seed: int) -> None:
    """So that a folder that grows stays nearly as it was divided. Every class is once the new one."""
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
    for fractions in ((0.98, 0.01, 0.01), (0.01, 0.01, 0.98), (0.2, 0.7, 0.1)):
        held = split_classes(NAMES[:n], fractions)
        assert min(len(held[split]) for split in ("train", "val", "test")) >= 1
        assert sum(len(held[split]) for split in ("train", "val", "test")) == n


def test_a_share_of_0_leaves_a_split_out() -> None:
    """All classes for the test: to try a learner that was trained on other data."""
    assert list(split_classes(NAMES, (0.8, 0, 0.2))) == ["train", "test"]
    assert split_classes(NAMES, (0, 0, 1)) == {"test": tuple(NAMES)}


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5), (float("nan"), 0, 1)])
def test_impossible_shares_are_told(fractions: Any) -> None:
    with pytest.raises(DataError, match="expected shares of train, val and test that sum to 1"):
        split_classes(NAMES, fractions)


def test_fewer_classes_or_examples_than_splits_are_told() -> None:
    with pytest.raises(DataError, match="the folder has 2 classes, too few for 3 splits; make a share 0"):
        split_classes(["a", "b"], (0.6, 0.2, 0.2))
    with pytest.raises(DataError, match="class 'b' has 2 examples, too few for 3 splits"):
        split_examples({"a": list("123"), "b": list("12")}, (0.6, 0.2, 0.2))


def test_lists_say_which_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a dict of names or of files, or as a folder; blank lines, a BOM and either form of Unicode are no trouble."""
    expected = {"train": ("b", "é"), "val": ("a",), "test": ("c",), "trainval": ("b", "é", "a")}
    names = ["a", "b", "c", "d", "é"]
    with caplog.at_level(logging.WARNING, "kshot.data.folders"):
        assert listed_classes(names, {"train": ["b", "é"], "val": ["a"], "test": ["c"]}) == expected
    assert "1 classes are in no split and are left out: d" in caplog.text
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
        ({"train": ["a", "x"]}, r"split 'train': there is no class 'x' among a, b, c$"),
        ({"train": ["a"], "test": ["b/rot090"]}, r"no class 'b/rot090' among a, b, c; .*name has no slash"),
        ({"train": ["a"], "test": ["b", "a"]}, r"split 'test': the class 'a' is in split 'train' already"),
        ({"train": ["a", "a"]}, r"split 'train': the class 'a' is in split 'train' already"),
        ({"train": []}, r"split 'train': has no class names"),
        ({}, "expected train, val, test"),
        ({"train": ["a"], "trainval": ["a"]}, "trainval is made"),
        ({"train": "no/such/list.txt"}, r"no/such/list\.txt: can't be read as a list of classes \(FileNotFoundError"),
        ("no/such/folder", r"no/such/folder: has no train\.txt, val\.txt or test\.txt"),
    ],
)
def test_lists_that_are_wrong_are_told(listed: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        listed_classes(["a", "b", "c"], listed)


def test_a_list_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train\.txt: can't be read as a list of classes \(UnicodeDecodeError"):
        listed_classes(["a"], tmp_path)


def test_examples_are_divided_within_each_class() -> None:
    """Every split has all classes, every example is in one split, and other classes have no say."""
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
    rows = rows_of({"a": "123", "b": "12", "c": "1"}, {"train": ["c", "a"], "test": ["b"]})
    assert {s: {n: r.tolist() for n, r in held.items()} for s, held in rows.items()} == {
        "train": {"c": [5], "a": [0, 1, 2]}, "test": {"b": [3, 4]},
    }  # fmt: skip


def test_options_choose_how_to_split() -> None:
    folder = Folder(Path("."), {name: (f"{name}/1", f"{name}/2", f"{name}/3") for name in NAMES})
    fractions = (0.6, 0.2, 0.2)
    by_class = splits_of(folder, fractions)
    assert {split: tuple(held) for split, held in by_class.items()} == split_classes(NAMES, fractions)
    assert splits_of(folder, [0.6, 0.2, 0.2])["val"].keys() == by_class["val"].keys()  # type: ignore[arg-type]
    assert list(splits_of(folder, {"test": NAMES[:5]})["test"]) == NAMES[:5]
    assert list(splits_of(folder, fractions, "example")["val"]) == NAMES
    with pytest.raises(DataError, match="lists classes, but split_by is 'example'"):
        splits_of(folder, {"test": NAMES}, "example")
    with pytest.raises(DataError, match="split_by: is 'alphabet', expected 'class' or 'example'"):
        splits_of(folder, fractions, "alphabet")  # type: ignore[arg-type]


# --- Tasks -----------------------------------------------------------------------------------------------------------


def tasks(loaded: list[int], sizes: tuple[int, ...] = (8,) * 10, **more: Any) -> FolderTasks:
    """Classes of these sizes, whose examples are their own rows."""
    classes = {f"c{i}": [f"c{i}/{j}" for j in range(n)] for i, n in enumerate(sizes)}
    options: dict[str, Any] = {"way": 2, "shot": 1, "query": 3, "fractions": (0.6, 0.2, 0.2), **more}
    fractions, by = options.pop("fractions"), options.get("split_by", "class")

    def load() -> tuple[torch.Tensor, str]:
        loaded.append(1)
        return torch.arange(sum(sizes), dtype=torch.float32)[:, None], "rows"

    splits = (
        split_examples(classes, fractions)
        if by == "example"
        else rows_of(classes, split_classes([*classes], fractions))
    )
    return FolderTasks(splits, load, input_shape=(1,), input_range=None, prepare=torch.as_tensor, **options)


def test_examples_are_loaded_when_they_are_asked_for_and_once() -> None:
    """A spec, a check and a prediction on files cost no decoding of the folder."""
    loaded: list[int] = []
    made = tasks(loaded)
    assert made.spec.input_shape == (1,)
    assert made.prepare([1.0]).tolist() == [1.0]
    assert loaded == []
    episode = made.sample("train", [0, 1])
    assert made.pool("train").classes == 6
    assert made.fingerprint.startswith("rows-split-")
    assert loaded == [1]
    assert episode.origin is not None
    assert np.array_equal(episode.support.x[..., 0], episode.origin.support_ids)


def test_examples_are_of_the_classes_they_are_named_after() -> None:
    """Classes of different sizes: the row says which class it is."""
    sizes = (4, 5, 9, 4, 6, 7, 8, 4, 5, 6)
    owner = np.repeat(np.arange(10), sizes)
    for by in ("class", "example"):
        made = tasks([], sizes if by == "class" else tuple(4 * s for s in sizes), split_by=by, query=2)
        owner = np.repeat(np.arange(10), sizes if by == "class" else [4 * s for s in sizes])
        for split in made.spec.splits:
            episode = made.sample(split, range(20))
            assert episode.origin is not None
            for b in range(20):
                for x, y in zip(episode.query.x[b, :, 0].long(), episode.query.y[b], strict=True):
                    assert episode.origin.class_names[b][int(y)] == f"c{owner[x]}"


def test_the_fingerprint_tells_splits_apart() -> None:
    """A figure on other test classes is another figure."""
    prints = {tasks([], fractions=f).fingerprint for f in ((0.6, 0.2, 0.2), (0.5, 0.2, 0.3))}
    assert len(prints) == 2
    assert tasks([]).fingerprint == tasks([], seed=1).fingerprint


def test_tasks_that_no_split_can_serve_are_told_before_anything_is_loaded() -> None:
    """And one that some split can't serve is a warning: one trains 30-way on 40 classes, and tests 5-way on 10."""
    loaded: list[int] = []
    with pytest.raises(DataError, match=r"split 'train': got way 20, expected at most 6, .* lower way"):
        tasks(loaded, way=20)
    with pytest.raises(DataError, match=r"got shot \+ query = 1 \+ 9 = 10, expected at most 8, .* class 'c\d'"):
        tasks(loaded, query=(3, 9))
    assert loaded == []


def test_a_split_that_is_too_small_is_logged_and_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kshot.data.folders"):
        made = tasks([], way=4)
    assert [r.getMessage()[:38] for r in caplog.records] == [
        f"split '{split}': got way 4, expected at most 2"[:38] for split in ("val", "test")
    ]
    assert made.sample("train", [0]).support.way == 4
    with pytest.raises(DataError, match="split 'val': got way 4, expected at most 2"):
        made.sample("val", [0])


@pytest.mark.parametrize(
    ("sizes", "shot", "expected"),
    [
        ((20,) * 40, 1, (5, 5)),
        ((5,) * 10, 1, (2, 4)),  # 2 classes to test
        ((5,) * 10, (1, 3), (2, 2)),
        ((20,) * 14 + (3,), 1, (3, 2)),
        ((8,) * 4, 1, (2, 5)),  # 1 class to test: refused where it is sampled
        ((3,) * 20, 3, (4, 1)),  # no query left: refused
    ],
)
def test_way_and_query_are_by_default_what_the_data_hold(sizes: tuple[int, ...], shot: Any, expected: Any) -> None:
    """Five images a class, and few classes, are enough to begin."""
    if sizes[0] == 3:
        with pytest.raises(DataError, match=r"got shot \+ query = 3 \+ 1 = 4, expected at most 3"):
            tasks([], sizes, way=None, query=None, shot=shot)
        return
    made = tasks([], sizes, way=None, query=None, shot=shot)
    assert (made.spec.way, made.spec.query) == expected
    assert made.sample("train", [0]).query.y.unique().tolist() == list(range(expected[0]))


@pytest.mark.parametrize("splits", [{}, {"train": {}}])
def test_no_split_and_no_class_are_told(splits: Any) -> None:
    with pytest.raises(DataError, match="a split without classes, or no split, came"):
        FolderTasks(splits, lambda: pytest.fail("loaded"), input_shape=(1,), input_range=None, prepare=torch.as_tensor)


@pytest.mark.parametrize("by", ["class", "example"])
def test_they_keep_the_rules_for_tasks(by: str) -> None:
    report = kshot.testing.suite(tasks=tasks([], sizes=(20,) * 10, split_by=by, query=2)).run()
    assert report.ok, str(report)
