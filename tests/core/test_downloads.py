"""A fetched file appears complete and checked, or the folder stays as it was."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kshot.data.downloads import fetch
from kshot.errors import DataError
from kshot.testing.download_server import serve


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    served = tmp_path / "served"
    served.mkdir()
    (served / "data.bin").write_bytes(b"x" * 200_000)
    with serve(served) as server:
        yield server.url


def is_complete(path: Path, given: str) -> None:
    if path.read_bytes() != b"x" * 200_000:
        raise DataError(f"{given}, which are others")


def refuse(path: Path, given: str) -> None:
    raise DataError(f"{given}, which are others")


def test_a_file_arrives_complete_and_readable_for_all(url: str, tmp_path: Path) -> None:
    """A cache may be shared by several users."""
    target = tmp_path / "cache" / "data.bin"
    fetch(f"{url}/data.bin", target, is_complete, name="test", otherwise="or not")
    assert target.stat().st_size == 200_000
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("file", "check", "largest", "words"),
    [
        ("none.bin", is_complete, 1 << 20, r"test: got no file from .*/none.bin .* 404: .*; try again, or not"),
        ("data.bin", is_complete, 100_000, r"test: got more than 100000 bytes from .*/data.bin, .* try again, or not"),
        ("data.bin", refuse, 1 << 20, r"test: got 200000 bytes from .*, which are others"),
    ],
)
def test_a_failure_leaves_the_folder_as_it_was(
    url: str, tmp_path: Path, file: str, check: object, largest: int, words: str
) -> None:
    target = tmp_path / "cache" / "data.bin"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(DataError, match=words):
        fetch(f"{url}/{file}", target, check, name="test", otherwise="or not", largest=largest)  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x", "nowhere", "http://[broken/x"])
def test_a_place_that_does_not_answer_is_named(tmp_path: Path, place: str) -> None:
    """The message says what to do instead, and nothing is left in the folder."""
    with pytest.raises(DataError, match=r"test: got no file from .*; try again, or not"):
        fetch(place, tmp_path / "x", is_complete, name="test", otherwise="or not", timeout=2)
    assert list(tmp_path.iterdir()) == []
