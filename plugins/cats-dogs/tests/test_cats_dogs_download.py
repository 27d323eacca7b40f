"""The real download code fetches generated zips from a server of this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kshot.errors import DataError
from kshot.testing.download_server import DownloadServer, serve
from kshot_cats_dogs import cats_dogs
from kshot_cats_dogs.download import SHA256, URL, download
from kshot_cats_dogs.files import digest, read

Small = Callable[..., Path]


@pytest.fixture
def server(small: Small) -> Iterator[DownloadServer]:
    """Serve a folder with the generated zip."""
    with serve(small().parent) as running:
        yield running


def test_it_fetches_once_and_then_is_the_default(
    server: DownloadServer, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are fetched from the mirror that the environment names, and later opened without asking the server."""
    monkeypatch.setenv("KSHOT_CATS_DOGS_URL", f"{server.url}/audio_cats_dogs.zip")
    known = digest(read(small()))
    monkeypatch.setattr("kshot_cats_dogs.tasks.fetch", functools.partial(download, sha256=known))
    fetched = cats_dogs(download=True, seconds=0.1)
    assert server.asked == ["/audio_cats_dogs.zip"]
    for again in (cats_dogs(seconds=0.1), cats_dogs(download=True, seconds=0.1), cats_dogs(root=small(), seconds=0.1)):
        assert again.fingerprint == fetched.fingerprint
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.zip", r"got no file from .*none\.zip .*404"),
        ("short.zip", "got 10 bytes from|got no file from .*IncompleteRead"),
        ("audio_cats_dogs.zip", rf"whose recordings have the SHA-256 [0-9a-f]+, expected {SHA256}; they are others"),
    ],
)
def test_a_download_that_goes_wrong_leaves_nothing(
    server: DownloadServer, tmp_path: Path, path: str, message: str
) -> None:
    """A missing file, a broken connection and other recordings are refused, with what to do by hand."""
    folder = tmp_path / "fetched"
    with pytest.raises(DataError, match=message) as raised:
        download(folder, url=f"{server.url}/{path}")
    assert "or fetch the recordings by hand and give them as root=" in str(raised.value)
    assert list(folder.iterdir()) == []


def test_no_connection_and_no_folder_are_refused(server: DownloadServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no file from"):
        download(tmp_path, url="http://127.0.0.1:9/x.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"got no file from .*(NotADirectoryError|FileExistsError)"):
        download(tmp_path / "file" / "x", url=f"{server.url}/audio_cats_dogs.zip")
    assert URL.startswith("https://")
