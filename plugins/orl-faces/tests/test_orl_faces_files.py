"""Malformed zips and folders are refused by name; nothing is ever unpacked to the disk."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kshot.errors import DataError
from kshot_orl_faces import orl_faces
from kshot_orl_faces.files import locate, read

Small = Callable[..., Path]


@pytest.mark.parametrize("unpacked", [False, True])
def test_people_and_pictures_are_in_order_of_their_numbers(small: Small, unpacked: bool) -> None:
    """In the order of names, s10 would come before s2, and 10.pgm before 2.pgm."""

    def mark(content: dict[str, bytes]) -> None:
        content.update({name: name.encode() for name in content})

    people = read(locate(small(people=11, change=mark, unpacked=unpacked)))
    assert list(people) == [f"s{n}" for n in range(1, 12)]
    assert people["s10"] == tuple(f"s10/{i}.pgm".encode() for i in range(1, 11))


def test_the_data_are_found_as_people_keep_them(small: Small, tmp_path: Path) -> None:
    """The root may be the zip, its folder, the folder that it unpacks to, or the folder around that."""
    zipped = small()
    assert locate(zipped) == locate(zipped.parent) == zipped
    unpacked = small(unpacked=True)
    assert locate(unpacked) == unpacked
    zipped.unlink()
    assert locate(unpacked.parent) == unpacked


def test_a_zip_with_a_folder_around_the_people_is_read(small: Small) -> None:
    """The archive's tar file has one, and zips that are made of it keep it."""

    def deeper(content: dict[str, bytes]) -> None:
        for name in list(content):
            content[f"orl_faces/{name}"] = content.pop(name)

    assert list(read(small(people=2, change=deeper))) == ["s1", "s2"]


@pytest.mark.parametrize("unpacked", [False, True])
def test_other_files_are_ignored(small: Small, unpacked: bool) -> None:
    """The archive has a README, and file managers leave files."""

    def litter(content: dict[str, bytes]) -> None:
        content.update({"README": b"x", "s1/.DS_Store": b"x", "s1/._1.pgm": b"x"})
        if not unpacked:
            content["__MACOSX/s1/1.pgm"] = b"x"

    assert len(read(small(change=litter, unpacked=unpacked))) == 4


def test_truncated_zip_is_named(small: Small) -> None:
    """Most broken downloads end like this."""
    path = small()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"att_faces\.zip: got a file that can't be read as a zip \(BadZipFile.*fetch it again"
    ):
        orl_faces(root=path)


def test_damaged_zip_is_named(small: Small) -> None:
    """A flipped byte within a picture fails its checksum."""
    path = small()
    data = bytearray(path.read_bytes())
    data[20_000] ^= 255
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"att_faces\.zip: got the entry s\d+/\d+\.pgm, which can't be read \(BadZipFile: Bad CRC"
    ):
        read(path)


@pytest.mark.parametrize("name", ["../evil.pgm", "s1/../../evil.txt", "/etc/evil", "C:\\evil.pgm", "..\\evil", "s1/.."])
def test_zip_with_a_path_outside_its_folder_is_refused(small: Small, name: str) -> None:
    """The zip is refused whatever the entry is, although nothing is unpacked."""
    with pytest.raises(DataError, match="leads out of the archive's folder"):
        read(small(change=lambda content: content.update({name: b""})))


@pytest.mark.parametrize("unpacked", [False, True])
def test_missing_and_unknown_pictures_are_named(small: Small, unpacked: bool) -> None:
    """Otherwise classes would silently have different sizes."""

    def change(content: dict[str, bytes]) -> None:
        content["s3/11.pgm"] = content.pop("s3/7.pgm")

    with pytest.raises(DataError, match=r"got 10 pictures of s3, .*missing are \[7\]; unknown are \[11\]"):
        read(small(change=change, unpacked=unpacked))


@pytest.mark.parametrize("unpacked", [False, True])
def test_picture_outside_the_layout_is_named(small: Small, unpacked: bool) -> None:
    """It would silently be left out."""
    with pytest.raises(DataError, match=r"'s1/face\.pgm', expected the layout sN/M\.pgm"):
        read(small(change=lambda content: content.update({"s1/face.pgm": b"x"}), unpacked=unpacked))


def test_same_picture_twice_is_refused(small: Small) -> None:
    """Nobody can say which of the two is meant."""
    path = small()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("orl_faces/s1/1.pgm", b"x")
    with pytest.raises(DataError, match="got a second picture 1 of s1"):
        read(path)


@pytest.mark.parametrize("unpacked", [False, True])
def test_entry_too_large_for_a_picture_is_refused(small: Small, unpacked: bool) -> None:
    """A zip of a few kB must not fill the memory."""

    def swell(content: dict[str, bytes]) -> None:
        content["s1/1.pgm"] = bytes(2 << 20)

    with pytest.raises(DataError, match=r"s1/1\.pgm: got 2097152 bytes"):
        read(small(change=swell, method=zipfile.ZIP_DEFLATED, unpacked=unpacked))


def test_zip_or_folder_without_pictures_is_refused(small: Small, tmp_path: Path) -> None:
    """The message says what was expected in it."""
    with pytest.raises(DataError, match=r"got no pictures, expected sN/M\.pgm"):
        read(small(change=dict.clear))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"which has no data in it, expected att_faces\.zip"):
        locate(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        locate(tmp_path / "nowhere")
