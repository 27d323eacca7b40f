"""The real download code fetches generated zips from a server of this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kshot.errors import DataError
from kshot.testing.download_server import DownloadServer, serve
from kshot_orl_faces import orl_faces
from kshot_orl_faces.download import SHA256, URL, download
from kshot_orl_faces.files import read
from kshot_orl_faces.pictures import decode, digest


@pytest.fixture
def mirror(small: Callable[..., Path]) -> Path:
    """Make a zip of four people, as a mirror offers it."""
    return small()


@pytest.fixture
def server(mirror: Path) -> Iterator[DownloadServer]:
    """Serve the mirror's folder."""
    with serve(mirror.parent) as running:
        yield running


@pytest.fixture
def sha256(mirror: Path) -> str:
    people = read(mirror)
    return digest(people, decode(people, mirror))


def test_the_real_pictures_have_the_known_sum(real: Path) -> None:
    """The checksum does not depend on the zip, so a download from any mirror can be checked."""
    assert URL == "https://www.cl.cam.ac.uk/research/dtg/attarchive/pub/data/att_faces.zip"
    people = read(real / "att_faces.zip")
    assert digest(people, decode(people, real)) == SHA256


def test_download_fetches_once_and_then_is_the_default(
    server: DownloadServer, sha256: str, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data are fetched from the mirror that the environment names, and later opened without asking the server."""
    monkeypatch.setenv("KSHOT_ORL_FACES_URL", f"{server.url}/att_faces.zip")
    monkeypatch.setattr("kshot_orl_faces.tasks.fetch", functools.partial(download, sha256=sha256))
    fetched = orl_faces(download=True, people=(2, 1, 1))
    assert server.asked == ["/att_faces.zip"]
    assert fetched.fingerprint == orl_faces(root=mirror, people=(2, 1, 1)).fingerprint
    assert orl_faces(people=(2, 1, 1)).fingerprint == fetched.fingerprint
    assert orl_faces(download=True, people=(2, 1, 1)).fingerprint == fetched.fingerprint
    assert len(server.asked) == 1


def test_other_pictures_are_refused_and_nothing_is_left_of_them(server: DownloadServer, tmp_path: Path) -> None:
    """Another file of a mirror must not be used as data, and other files in the folder stay."""
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(
        DataError, match=r"got \d+ bytes from .*att_faces\.zip, whose pictures have .*, expected 1be75398"
    ):
        download(folder, url=f"{server.url}/att_faces.zip")
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_file_that_is_no_such_zip_is_refused(server: DownloadServer, mirror: Path, tmp_path: Path) -> None:
    """A server may answer with a page that says that the file has moved."""
    (mirror.parent / "moved.zip").write_text("<html>")
    with pytest.raises(DataError, match=r"got 6 bytes from .*can't be read as a zip"):
        download(tmp_path / "d", url=f"{server.url}/moved.zip")
    assert list((tmp_path / "d").iterdir()) == []


def test_answer_cut_short_is_refused(server: DownloadServer, tmp_path: Path) -> None:
    """If the connection breaks, nothing is left in the folder."""
    with pytest.raises(DataError, match="10 bytes"):
        download(tmp_path / "d", url=f"{server.url}/short.zip")
    assert list((tmp_path / "d").iterdir()) == []


def test_endless_answer_is_refused(server: DownloadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong address must not fill the disk."""
    monkeypatch.setattr("kshot_orl_faces.download._LARGEST", 1000)
    with pytest.raises(DataError, match="got more than 1000 bytes"):
        download(tmp_path / "d", url=f"{server.url}/att_faces.zip")
    assert list((tmp_path / "d").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.zip", "no-url", "{server}/missing.zip"])
def test_no_answer_is_a_clear_error(server: DownloadServer, tmp_path: Path, url: str) -> None:
    """The message says how to do it by hand."""
    with pytest.raises(DataError, match=r"got no file from .*try again, or fetch att_faces\.zip by hand .*root="):
        download(tmp_path / "d", url=url.replace("{server}", server.url))
    assert list((tmp_path / "d").iterdir()) == []


def test_folder_that_cannot_be_written_is_a_clear_error(server: DownloadServer, tmp_path: Path) -> None:
    """Here the parent of the folder is a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="got no file from"):
        download(tmp_path / "file" / "d", url=f"{server.url}/att_faces.zip")
