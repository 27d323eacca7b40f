"""Malformed zips and folders are refused by name before anything is decoded; nothing is unpacked to the disk."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kshot.errors import DataError
from kshot_omniglot.files import locate, look_through
from kshot_omniglot.table import Originals
from kshot_omniglot.workers import decode_all

FIRST = "images_background/A/character01/0000_01.png"


def test_truncated_zip_is_named(small: Callable[..., Path]) -> None:
    """Most broken downloads end like this."""
    path = small() / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"images_evaluation\.zip: got a file that can't be read as a zip"):
        look_through(locate(path))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "images_background/../../evil.png",
        "images_background/A/..",
        "/etc/evil.png",
        "C:\\evil.png",
        "..\\evil.png",
        "images_background\\..\\..\\evil.txt",
        "\\\\server\\evil",
    ],
)
def test_zip_with_a_path_outside_its_folder_is_refused(small: Callable[..., Path], name: str) -> None:
    """The zip is refused whatever the entry is, although nothing is unpacked."""
    root = small(change=lambda content: content.update({name: b""}))
    with pytest.raises(DataError, match=r"images_background\.zip: got the entry .* leads out of the archive's folder"):
        look_through(locate(root))


@pytest.mark.parametrize("name", ["images_background/A..B/x.txt", "images_background/..hidden", "notes...txt"])
def test_dots_within_names_are_no_way_out(small: Callable[..., Path], name: str) -> None:
    """Only a component that is '..' leads upwards."""
    assert len(look_through(locate(small(change=lambda content: content.update({name: b""})))).characters) == 6


@pytest.mark.parametrize("unpacked", [False, True])
def test_leavings_of_file_managers_are_ignored(small: Callable[..., Path], unpacked: bool) -> None:
    """macOS adds them to zips and folders."""

    def litter(content: dict[str, bytes]) -> None:
        content["images_background/.DS_Store"] = b"x"
        content["images_background/A/character01/._0000_01.png"] = b"x"
        if not unpacked:
            content["__MACOSX/images_background/A/character01/._0000_01.png"] = b"x"

    listing = look_through(locate(small(change=litter, unpacked=unpacked)))
    assert [c.drawings for c in listing.characters] == [4] * 6


@pytest.mark.parametrize("unpacked", [False, True])
def test_picture_outside_the_layout_is_named(small: Callable[..., Path], unpacked: bool) -> None:
    """It would silently be left out, or become a class."""
    root = small(change=lambda content: content.update({"images_background/A/0000_01.png": b"x"}), unpacked=unpacked)
    with pytest.raises(DataError, match=r"'A/0000_01\.png', expected the layout"):
        look_through(locate(root))


@pytest.mark.parametrize("target", ["nowhere", "0000_02.png", "1_9.png"])
def test_a_folder_with_a_link_that_leads_nowhere_is_named(small: Callable[..., Path], target: str) -> None:
    """A link that leads to itself is another."""
    root = small(unpacked=True)
    link = root / FIRST.replace("0000_01", "1_9")
    link.symlink_to(target)
    if target == "0000_02.png":
        look_through(locate(root))
    else:
        with pytest.raises(DataError, match=r"omniglot: .*1_9\.png.*: got a path that can't be read .*, expected"):
            look_through(locate(root))


def test_same_name_twice_in_a_zip_is_refused(small: Callable[..., Path]) -> None:
    """Nobody can say which of the two is meant."""
    root = small()
    with (
        zipfile.ZipFile(root / "images_background.zip", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr(FIRST, b"x")
    with pytest.raises(DataError, match="got two entries with the same name"):
        look_through(locate(root))


def test_entry_too_large_for_a_drawing_is_refused(small: Callable[..., Path]) -> None:
    """A zip of a few kB must not fill the memory."""
    root = small(change=lambda c: c.update({FIRST: bytes(2 << 20)}), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=": got 2097152 bytes"):
        look_through(locate(root))


def test_part_without_drawings_is_refused(small: Callable[..., Path]) -> None:
    """An empty zip is a valid zip."""
    with pytest.raises(DataError, match=r"images_background\.zip: got no drawings"):
        look_through(locate(small(change=dict.clear)))


def test_missing_part_is_named(small: Callable[..., Path]) -> None:
    """Both splits need both parts."""
    root = small()
    (root / "images_evaluation.zip").unlink()
    with pytest.raises(DataError, match=r"expected images_evaluation\.zip or"):
        locate(root)


def test_folder_without_data_is_named(tmp_path: Path) -> None:
    """The message says what was expected in it."""
    with pytest.raises(DataError, match=r"which has no data in it, expected images_background\.zip"):
        locate(tmp_path)


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("data", [b"GIF89a", b"", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_picture_is_named(small: Callable[..., Path], data: bytes, unpacked: bool) -> None:
    """The message names the zip or folder, and the drawing."""
    source = Originals(locate(small(change=lambda content: content.update({FIRST: data}), unpacked=unpacked)))
    with pytest.raises(
        DataError, match=r"images_background(\.zip)?: got the drawing .*0000_01\.png, which can't be decoded"
    ):
        source.pixels(28, 1)


def test_damaged_entry_is_named(small: Callable[..., Path]) -> None:
    """The zip's directory is intact, but a drawing in it has another checksum."""
    root = small()
    path = root / "images_background.zip"
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"images_background\.zip: got the entry .*0000_01\.png, which can't be read"):
        Originals(locate(root)).pixels(28, 1)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use workers for a few drawings too."""
    monkeypatch.setattr("kshot_omniglot.workers._FEW", 2)


@pytest.mark.usefixtures("few")
def test_worker_names_the_damaged_drawing_too(small: Callable[..., Path]) -> None:
    """An error in another process arrives as the same error."""
    root = small(change=lambda content: content.update({FIRST: b"GIF89a"}))
    with pytest.raises(
        DataError, match=r"^\S+images_background\.zip: got the drawing .*0000_01\.png, which can't be decoded"
    ):
        decode_all(look_through(locate(root)).job, 28, 2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("unpacked", [False, True])
def test_workers_decode_what_one_process_decodes(small: Callable[..., Path], unpacked: bool) -> None:
    """The order is the same whatever their number; shares cross the border between the parts."""
    job = look_through(locate(small(unpacked=unpacked))).job
    alone = decode_all(job, 28, 1)
    assert alone.shape == (24, 28, 28)
    assert len(np.unique(alone.reshape(24, -1), axis=0)) == 24
    for workers in (2, 5):  # five have unequal shares
        assert np.array_equal(decode_all(job, 28, workers), alone)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("program", ["/no/such/python", "/bin/false"])
def test_without_workers_this_process_decodes(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """A frozen program has no interpreter to start, and a sandbox may allow none."""
    job = look_through(locate(small())).job
    alone = decode_all(job, 14, 1)
    monkeypatch.setattr("sys.executable", program)
    assert np.array_equal(decode_all(job, 14, 2), alone)
