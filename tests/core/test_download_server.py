"""The test server of the conformance kit answers as servers do, and stops when its block ends."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kshot.testing.download_server import serve


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


def test_files_of_the_folder_are_served_and_requests_recorded(tmp_path: Path) -> None:
    """A test can check that a file is fetched once."""
    (tmp_path / "a.txt").write_bytes(b"hello")
    with serve(tmp_path) as server:
        assert get(f"{server.url}/a.txt") == b"hello"
        with pytest.raises(urllib.error.HTTPError, match="404") as raised:
            get(f"{server.url}/b.txt")
        raised.value.close()
        assert server.asked == ["/a.txt", "/b.txt"]


def test_a_short_path_is_a_connection_that_breaks(tmp_path: Path) -> None:
    """The usual way in which downloads go wrong."""
    with serve(tmp_path) as server, pytest.raises(http.client.IncompleteRead, match="10 bytes read, 990 more"):
        get(f"{server.url}/short.zip")


def test_the_server_stops_when_the_block_ends(tmp_path: Path) -> None:
    """No thread and no port outlives a test, even one that fails."""

    def fail() -> None:
        with serve(tmp_path) as server:
            urls.append(server.url)
            raise KeyError

    urls: list[str] = []
    with pytest.raises(KeyError):
        fail()
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(f"{urls[0]}/a.txt")
