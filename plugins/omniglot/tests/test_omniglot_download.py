"""The real download code fetches generated zips from a server of this machine."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kshot.errors import DataError
from kshot.testing.download_server import DownloadServer, serve
from kshot_omniglot import omniglot
from kshot_omniglot.download import MD5, URL, download


@pytest.fixture
def server(miniature: Path) -> Iterator[DownloadServer]:
    """Serve the folder of the miniature's zips."""
    with serve(miniature) as running:
        yield running


@pytest.fixture
def md5(miniature: Path) -> dict[str, str]:
    return {name: hashlib.md5((miniature / name).read_bytes()).hexdigest() for name in MD5}


def test_originals_are_checked_by_the_known_sums() -> None:
    """torchvision has checked the same checksums for years."""
    assert URL == "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
    assert MD5 == {
        "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
        "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
    }


def test_download_fetches_once_and_then_is_the_default(
    server: DownloadServer,
    md5: dict[str, str],
    miniature: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The data are fetched from the mirror that the environment names, and later opened without asking the server."""
    monkeypatch.setenv("KSHOT_OMNIGLOT_URL", server.url)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    monkeypatch.setattr("kshot_omniglot.tasks.fetch", functools.partial(download, md5=md5))
    fetched = omniglot(download=True, query=1)
    assert server.asked == ["/images_background.zip", "/images_evaluation.zip"]
    assert fetched.fingerprint == omniglot(root=miniature, query=1).fingerprint
    assert omniglot(query=1).fingerprint == fetched.fingerprint
    assert omniglot(download=True, query=1).fingerprint == fetched.fingerprint
    assert len(server.asked) == 2


def test_wrong_checksum_is_refused_and_removes_nothing(
    server: DownloadServer, md5: dict[str, str], tmp_path: Path
) -> None:
    """Another file of a mirror must not be used as data, and other files in the folder stay."""
    (tmp_path / "images_evaluation.zip").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(
        DataError, match=r"got \d+ bytes from .*images_background\.zip with the MD5 .*, expected 68d2efa1"
    ):
        download(tmp_path, url=server.url)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == {
        "images_evaluation.zip": b"mine",
        "notes.txt": b"keep",
    }


def test_answer_cut_short_is_refused(server: DownloadServer, tmp_path: Path) -> None:
    """If the connection breaks, nothing is left in the folder."""
    with pytest.raises(DataError, match="10 bytes"):
        download(tmp_path / "d", url=server.url, md5={"short.zip": "0"})
    assert list((tmp_path / "d").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no-url", "{server}/missing"])
def test_no_answer_is_a_clear_error(server: DownloadServer, tmp_path: Path, url: str) -> None:
    """The message says how to do it by hand."""
    with pytest.raises(DataError, match=r"got no file from .*images_background\.zip .*root="):
        download(tmp_path / "d", url=url.replace("{server}", server.url))
    assert list((tmp_path / "d").iterdir()) == []


def test_folder_that_cannot_be_written_is_a_clear_error(server: DownloadServer, tmp_path: Path) -> None:
    """Here the parent of the folder is a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="got no file from"):
        download(tmp_path / "file" / "d", url=server.url)
