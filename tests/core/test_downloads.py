"""Fetching: whole and checked, or the folder is as it was."""

from __future__ import annotations

import http.server
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kshot.data.downloads import fetch
from kshot.errors import DataError


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    served = tmp_path / "served"
    served.mkdir()
    (served / "data.bin").write_bytes(b"x" * 200_000)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def is_whole(path: Path, came: str) -> None:
    if path.read_bytes() != b"x" * 200_000:
        raise DataError(f"{came}, which are others")


def refuse(path: Path, came: str) -> None:
    raise DataError(f"{came}, which are others")


def test_a_file_arrives_whole_and_readable_for_all(url: str, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "data.bin"
    fetch(f"{url}/data.bin", target, is_whole, name="test", otherwise="or not")
    assert target.stat().st_size == 200_000
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("file", "check", "largest", "words"),
    [
        ("none.bin", is_whole, 1 << 20, r"test: can't fetch .*/none.bin .* 404: .*; try again, or not"),
        ("data.bin", is_whole, 100_000, r"has more than 100000 bytes, which it should not; or not"),
        ("data.bin", refuse, 1 << 20, r"test: .* came with 200000 bytes, which are others"),
    ],
)
def test_what_fails_leaves_the_folder_as_it_was(
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
    with pytest.raises(DataError, match=r"test: can't fetch .*; try again, or not"):
        fetch(place, tmp_path / "x", is_whole, name="test", otherwise="or not", timeout=2)
    assert list(tmp_path.iterdir()) == []
