"""Entries of a zip are checked before they are read; a zip that looks dangerous is refused as a whole."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kshot.data.archives import Archive, check_size, is_left_by_macos
from kshot.errors import DataError


def is_text(name: str) -> bool:
    return name.endswith(".txt")


def opened(path: Path, **more: int) -> Archive:
    return Archive(path, what="a text", **{"largest": 100, **more})


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a zip of named contents."""

    def write(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in entries:
                file.writestr(name, data)
        return tmp_path / "a.zip"

    return write


def test_accepted_files_are_listed_and_read(make: Callable[..., Path]) -> None:
    """They are in the order of the archive; folders and other files are left out."""
    path = make(("b/", b""), ("b/2.txt", b"two"), ("README", b"x" * 1000), ("a/1.txt", b""))
    with opened(path) as archive:
        assert {entry.filename: archive.read(entry.filename) for entry in archive.entries(is_text)} == {
            "b/2.txt": b"two",
            "a/1.txt": b"",
        }
        assert [entry.filename for entry in archive.entries(is_text)] == ["b/2.txt", "a/1.txt"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt", "a/../../evil", "a/..", "..", "/etc/evil", "C:\\evil", "c:evil", "..\\evil", "a\\..\\..\\evil",
        "\\\\server\\evil", "\\evil", "line\n/../evil", "a /../../evil", " ../evil", ".. /evil", "a/ .. /evil",
        "a/.. ./b", "...", "a/c:/evil",
    ],
)  # fmt: skip
def test_a_name_that_leads_out_is_refused(make: Callable[..., Path], name: str) -> None:
    """It is refused when the archive is opened, even if nobody asks for that entry."""
    with pytest.raises(DataError, match=r"a\.zip: got the entry .*, which leads out of the archive's folder"):
        opened(make(("1.txt", b"x"), (name, b"")))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\\b.txt", "has a backslash"),
        ("a\tb.txt", "has a control character"),
        ("a\x00b.txt", "has a control character"),
        ("a\u2028b.txt", "has a control character"),
        ("a/NUL.txt", "a name that Windows reserves"),
        ("com1", "a name that Windows reserves"),
        ("x" * 256, "is too long"),
        ("a/" * 2100, "is too long"),
    ],
)
def test_a_name_that_unpacks_differently_elsewhere_is_refused(tmp_path: Path, name: str, why: str) -> None:
    """zipfile itself cuts a name at a zero, so the entry is written under another name that is then replaced."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(name.replace("\x00", "?"), b"x")
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"a?b", b"a\x00b"))
    with pytest.raises(DataError, match=rf"a\.zip: got the entry .*, which (is )?{why}"):
        opened(tmp_path / "a.zip")


def test_names_that_are_the_same_on_a_disk_are_refused(make: Callable[..., Path]) -> None:
    """In either form of Unicode, and with or without an empty part."""
    for one, other in (("\u00e9.txt", "e\u0301.txt"), ("a/1.txt", "a//1.txt"), ("a/1.txt", "./a/1.txt")):
        with opened(make((one, b"1"), (other, b"2"))) as archive, pytest.raises(DataError, match="with the same name"):
            archive.entries(is_text)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """Opening it waits for somebody who writes."""
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"a\.zip: got a named pipe, expected a zip"):
        opened(tmp_path / "a.zip")


@pytest.mark.parametrize(
    "name", ["a..b/1.txt", "Icon\r", "10:30.txt", "console.txt", "..hidden.txt", "notes...txt", "a/b../1.txt"]
)
def test_dots_within_a_name_are_harmless(make: Callable[..., Path], name: str) -> None:
    """Only a component that is '..' leads upwards."""
    with opened(make((name, b"x"))) as archive:
        assert [entry.filename for entry in archive.entries(lambda name: True)] == [name]


@pytest.mark.parametrize("system", [0, 3, 19])
def test_a_link_is_refused(make: Callable[..., Path], system: int) -> None:
    """Unpacked, it could lead anywhere; whichever system the zip says it was made on."""
    link = zipfile.ZipInfo("link.txt")
    link.create_system = system
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match=r"got the entry 'link\.txt', which is a link, expected files only"):
        opened(make((link, b"/etc/passwd")))


def test_an_entry_that_is_too_large_is_refused(make: Callable[..., Path]) -> None:
    """A zip of a few bytes can fill the memory. An entry that nobody asks for may be large."""
    path = make(("1.txt", bytes(101)), ("2.txt", bytes(100)))
    with opened(path) as archive:
        with pytest.raises(DataError, match=r"a\.zip: 1\.txt: got 101 bytes, expected a text of at most 100"):
            archive.entries(is_text)
        with pytest.raises(DataError, match=r"1\.txt: got 101 bytes"):
            archive.read("1.txt")
        assert archive.read("2.txt") == bytes(100)
        assert len(archive.entries(lambda name: name.startswith("2"))) == 1


def test_entries_that_are_too_large_together_are_refused(make: Callable[..., Path]) -> None:
    """Many small entries fill the memory too."""
    path = make(*((f"{i}.txt", bytes(100)) for i in range(5)))
    with opened(path, largest_in_all=500) as archive:
        assert len(archive.entries(is_text)) == 5
    with (
        opened(path, largest_in_all=499) as archive,
        pytest.raises(DataError, match="got 5 entries of 500 bytes in all, expected at most 499"),
    ):
        archive.entries(is_text)


def test_an_entry_that_lies_about_its_size_yields_no_more_than_it_says(make: Callable[..., Path]) -> None:
    """The size that is checked is the directory's; the data may decompress to more."""
    path = make(("1.txt", bytes(50_000)))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.index(signature) + offset
        data[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    with opened(path) as archive, pytest.raises(DataError, match=r"the entry 1\.txt, which can't be read \(BadZipFile"):
        archive.read("1.txt")


def test_an_encrypted_entry_is_refused(make: Callable[..., Path]) -> None:
    """Without its password it can't be read."""
    path = make(("1.txt", b"secret"))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with opened(path) as archive, pytest.raises(DataError, match=r"'1\.txt', which is encrypted, expected a text"):
        archive.entries(is_text)
    with opened(path) as archive, pytest.raises(DataError, match="which is encrypted"):
        archive.read("1.txt")


def test_the_same_name_twice_is_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    """Nobody can say which of the two is meant."""
    path = make(("1.txt", b"one"))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("1.txt", b"another")
    with opened(path) as archive, pytest.raises(DataError, match=r"two entries with the same name '1\.txt'"):
        archive.entries(is_text)


def test_a_damaged_entry_is_named(make: Callable[..., Path]) -> None:
    """Its checksum does not match its data."""
    path = make(("1.txt", bytes(range(100))))
    data = bytearray(path.read_bytes())
    data[data.index(b"1.txt") + len("1.txt") + 10] ^= 0xFF  # in the compressed data, which follow the name
    path.write_bytes(data)
    with opened(path) as archive, pytest.raises(DataError, match=r"a\.zip: got the entry 1\.txt, which can't be read"):
        archive.read("1.txt")


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b"", lambda b: b"<html>"])
def test_a_file_that_is_not_a_zip_is_refused(make: Callable[..., Path], damage: Callable[[bytes], bytes]) -> None:
    """Most of these are downloads that were cut off, or pages that say that a file has moved."""
    path = make(("1.txt", b"x"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.zip: got a file that can't be read as a zip \(BadZipFile.*fetch it again"):
        opened(path)


def test_a_missing_zip_and_a_missing_entry_are_named(make: Callable[..., Path], tmp_path: Path) -> None:
    """A file may be removed or replaced between listing and reading."""
    with pytest.raises(DataError, match=r"none\.zip: got a file that can't be read as a zip \(FileNotFoundError"):
        opened(tmp_path / "none.zip")
    with opened(make(("1.txt", b"x"))) as archive, pytest.raises(DataError, match=r"got no entry '2\.txt'"):
        archive.read("2.txt")


def test_a_file_outside_an_archive_has_the_same_limit() -> None:
    """Plugins read unpacked folders too."""
    check_size("1.png", 100, 100, "a picture")
    with pytest.raises(DataError, match=r"1\.png: got 101 bytes, expected a picture of at most 100"):
        check_size("1.png", 101, 100, "a picture")


def test_files_that_macos_adds_are_recognised() -> None:
    """They have the names of real files, and other contents."""
    names = ["__MACOSX/a/1.png", "a/._1.png", "a/1.png", "a/__MACOSX.png", "a/b._c.png"]
    assert [name for name in names if is_left_by_macos(name)] == names[:2]


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_device_is_refused(make: Callable[..., Path], kind: int) -> None:
    """Unpacking it by another program would make a device or a pipe."""
    info = zipfile.ZipInfo("null")
    info.external_attr = (kind | 0o644) << 16
    with pytest.raises(
        DataError, match=r"a\.zip: got the entry 'null', which is a device, a pipe or a socket, expected"
    ):
        opened(make(("1.txt", b"x"), (info, b"")))


@pytest.mark.parametrize("name", [".", "a/."])
def test_a_file_with_the_name_of_a_folder_is_refused(make: Callable[..., Path], name: str) -> None:
    """Its contents would have to be written to the folder itself."""
    with pytest.raises(DataError, match=r"a\.zip: got the entry .*, which is the name of a folder, expected"):
        opened(make((name, b"x")))
    assert opened(make(("./", b""), ("./a/./1.txt", b"x"))).read("./a/./1.txt") == b"x"


def test_an_entry_whose_header_demands_memory_is_refused(tmp_path: Path) -> None:
    """The header of LZMA asks for a dictionary of up to 4 GiB, whatever the size of the entry."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("1.txt", b"x")
    with opened(tmp_path / "a.zip") as archive:
        for read in (lambda: archive.entries(is_text), lambda: archive.read("1.txt")):
            with pytest.raises(DataError, match=r"a\.zip: got the entry '1\.txt', which is compressed by method 14"):
                read()
