"""CSV files of examples and labels are read, or refused by file and line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from kshot.data.folders import scan
from kshot.data.listings import columns_of, is_listing, labelled_files, listed_files, read_listing
from kshot.errors import DataError


def written(folder: Path, content: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_rows_are_grouped_by_label_with_their_lines(tmp_path: Path) -> None:
    """Labels in the order of their names, examples in the order of the file, other columns ignored."""
    path = written(tmp_path, "id,label,text\n1,yes,Go.\n2,no,Stop.\n\n3, yes ,Run.\n")
    listing = read_listing(path, "text")
    assert listing.classes == {"no": ("Stop.",), "yes": ("Go.", "Run.")}
    assert listing.names == ("no/line 3", "yes/line 2", "yes/line 5")
    assert listing.examples == ("Stop.", "Go.", "Run.")
    assert columns_of(path)["id"] == ("1", "2", "3")


def test_what_the_csv_module_writes_is_read(tmp_path: Path) -> None:
    """Commas, quotes and line breaks in a field; a row's line is the one on which it begins."""
    texts = ['with "quotes"', "a, b", "two\nlines", "last"]
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], *([text, f"l{i % 2}"] for i, text in enumerate(texts))])
    listing = read_listing(path, "text")
    assert listing.classes == {"l0": (texts[0], texts[2]), "l1": (texts[1], texts[3])}
    assert listing.lines == {"l0": (2, 4), "l1": (3, 6)}


def test_columns_can_be_named_and_tabs_separate_those_of_a_tsv(tmp_path: Path) -> None:
    """The byte order mark of a spreadsheet is no part of the first column's name."""
    path = written(tmp_path, "\ufeffsaid\tmeant\nGo, now.\tyes\nStop.\tno\n", "a.tsv")
    assert read_listing(path, "said", "meant").classes == {"no": ("Stop.",), "yes": ("Go, now.",)}
    assert is_listing(path)
    assert not is_listing(tmp_path)


def test_labels_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    listing = read_listing(written(tmp_path, "text,label\n1,e\u0301\n2,\u00e9\n3,b\n"), "text")
    assert listing.classes == {"b": ("3",), "\u00e9": ("1", "2")}


def test_the_same_example_twice_is_found(tmp_path: Path) -> None:
    listing = read_listing(written(tmp_path, "text,label\nGo.,yes\nStop.,no\nGo.,no\n"), "text")
    assert listing.copies() == (("no/line 4", "yes/line 2"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.csv: got an empty file, expected a first row with the names"),
        ("\n\n", r"a\.csv: got an empty file"),
        (
            "said,label\nGo.,yes\n",
            r"line 1: got the columns said, label, expected one column 'text'; .*column=",
        ),
        ("text,class\nGo.,yes\n", r"line 1: got the columns text, class, expected one column 'label'; .*label="),
        ("\ntext,text,label\n", r"line 2: got 2 columns 'text', expected one"),
        ("text;label\nGo.;yes\n", r"line 1: got the columns text;label, .*separate the columns by commas"),
        ("text,label\nGo.,yes\nStop, now.,no\n", r"line 3: got 3 fields, expected 2 as in the header"),
        ("text,label\nGo.,yes\nStop.\n", r"line 3: got 1 fields, expected 2"),
        ("text,label\nGo.,yes\n ,no\n", r"line 3: got nothing in the column 'text'"),
        ("text,label\nGo.,yes\nStop., \n", r"line 3: got nothing in the column 'label'"),
        ('text,label\nGo.,yes\n"Stop" now.,no\n', r"line 3: got a row that is not well-formed CSV \("),
        ('text,label\nGo.,yes\n"Stop.,no\n', r"line 3: got a row that is not well-formed CSV \("),
        ("text,label\nGo.,yes\nRun.,yes\n", r"a\.csv: got 1 labels in the column 'label' \(yes\), expected at least 2"),
        ("text,label\n", r"got 0 labels"),
        (b"text,label\nGo.,yes\ncaf\xe9,no\n", r"a\.csv, line 3: got bytes that are not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_listing(written(tmp_path, content), "text")


def test_a_text_may_be_long(tmp_path: Path) -> None:
    """The csv module refuses more than 131,072 characters by default."""
    path = written(tmp_path, f"text,label\n{'long ' * 40_000},yes\nStop.,no\n")
    assert len(read_listing(path, "text").classes["yes"][0]) == 200_000


def test_the_limit_of_the_csv_module_stays_as_it_was(tmp_path: Path) -> None:
    """It is a setting of the process."""
    before = csv.field_size_limit(1234)
    try:
        read_listing(written(tmp_path, "text,label\nGo.,yes\nStop.,no\n"), "text")
        with pytest.raises(DataError, match="not well-formed"):
            read_listing(written(tmp_path, 'text,label\n"Go.,yes\n'), "text")
        assert csv.field_size_limit() == 1234
    finally:
        csv.field_size_limit(before)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, given in ((tmp_path, "a folder"), (tmp_path / "none.csv", "a path that does not exist")):
        with pytest.raises(DataError, match=f"got {given}, expected a CSV file"):
            read_listing(path, "text")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two folders of files."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_listed_files_are_those_that_a_scan_finds(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Relative to the CSV file, or to a folder that is given; also absolute paths."""
    rows = "path,label\ncat/1.png,cat\ncat/2.png,cat\ndog/1.png,dog\n"
    expected = scan(pictures, {".png"})
    found = listed_files(read_listing(written(pictures, rows), "path"), {".png"})
    assert (found.root, found.classes, found.paths) == (expected.root, expected.classes, expected.paths)
    elsewhere = written(tmp_path_factory.mktemp("lists"), rows)
    for root, csv_file in ((pictures, elsewhere), (None, pictures / "a.csv")):
        assert labelled_files(root, csv_file, {".png"}, who="me").paths == expected.paths
    assert labelled_files(pictures, None, {".png"}, who="me").paths == expected.paths
    absolute = written(pictures, f"path,label\n{pictures}/cat/1.png,cat\n{pictures}/dog/1.png,dog\n", "b.csv")
    assert listed_files(read_listing(absolute, "path"), {".png"}).paths == [expected.paths[0], expected.paths[2]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cat/3.png,cat", r"a\.csv, line 4: got a path that does not exist, .*3\.png"),
        ("cat,cat", r"a\.csv, line 4: got a folder"),
        ("a.csv,cat", r"a\.csv, line 4: got a\.csv, expected one of the images"),
        ("cat/1.png,dog", r"line (4|2): got cat/1\.png, which is on line (2|4) already"),
    ],
)
def test_listed_files_that_cannot_be_used_are_named(pictures: Path, row: str, message: str) -> None:
    path = written(pictures, f"path,label\ncat/1.png,cat\ndog/1.png,dog\n{row}\n")
    with pytest.raises(DataError, match=message):
        listed_files(read_listing(path, "path"), {".png"}, what="images")


def test_a_folder_or_a_csv_file_must_be_given() -> None:
    with pytest.raises(DataError, match=r"me: got neither root nor csv, expected a folder .*\(root=\), or a CSV file"):
        labelled_files(None, None, {".png"}, who="me")
