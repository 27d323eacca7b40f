"""Zip, folder and download; what is damaged is named."""

from __future__ import annotations

import functools
import http.server
import io
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kshot.errors import DataError
from kshot_cats_dogs import cats_dogs
from kshot_cats_dogs.download import SHA256, URL, download
from kshot_cats_dogs.files import CLIPS, digest, locate, read

Small = Callable[..., Path]


def wav(samples: int = 16000, rate: int = 16000, channels: int = 1, seed: int = 0) -> bytes:
    """Noise, 16 bits."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.random.default_rng(seed).integers(-9, 9, samples * channels, np.int16).tobytes())
    return made.getvalue()


def put(name: str, data: Any) -> Callable[[dict[str, bytes]], object]:
    return lambda content: content.update({name: data})


def test_zip_and_folder_have_the_same_recordings(small: Small) -> None:
    """In the order of the names, wherever they lie, among others."""

    def elsewhere(content: dict[str, bytes]) -> None:
        for name in list(content):
            content[f"cats_dogs/train/{name.rpartition('/')[2]}"] = content.pop(name)
        content["cats_dogs/train/cat_99.wav"] = b"another"
        content["__MACOSX/Cats/cat_1.wav"] = b"a leaving"

    zipped, unpacked = read(locate(small())), read(locate(small(unpacked=True)))
    moved = read(locate(small(elsewhere)))
    assert [clip.name for clip in zipped] == [f"{folder}/{name}" for folder, names in CLIPS.items() for name in names]
    assert digest(zipped) == digest(unpacked) == digest(moved)
    assert len(zipped[0].samples) == 20000


def test_the_digest_is_of_names_and_samples(small: Small) -> None:
    first = read(small())
    changed = read(small(put("Cats/cat_1.wav", wav(20000, seed=9))))
    assert digest(changed) != digest(first) != digest(first[:-1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("Cats/cat_1.wav", b""), r"cat_1\.wav can't be decoded"),
        (put("Cats/cat_1.wav", b"text"), r"cat_1\.wav can't be decoded"),
        (put("Cats/cat_1.wav", wav()[:5000]), r"cat_1\.wav ends after 2478 of 16000 samples"),
        (put("Cats/cat_1.wav", wav(0)), r"cat_1\.wav ends after 0 of 0 samples"),
        (put("Cats/cat_1.wav", wav(rate=8000)), r"cat_1\.wav has 8000 Hz, 1 channels and 16 bits; expected 16000 Hz"),
        (put("Cats/cat_1.wav", wav(channels=2)), "2 channels"),
        (put("Cats/cat_1.wav", bytes((4 << 20) + 1)), r"Cats/cat_1\.wav has 4194305 bytes; expected a recording"),
        (put("more/cat_1.wav", wav(seed=77)), r"more/cat_1\.wav is there twice, and they are not the same"),
        (
            lambda content: content.pop("Dogs/dog_barking_3.wav"),
            r"1 of 42 recordings are missing, such as dog_barking_3",
        ),
        (dict.clear, r"42 of 42 recordings are missing, such as cat_1\.wav, cat_2\.wav, cat_3\.wav"),
    ],
)
@pytest.mark.parametrize("unpacked", [False, True])
def test_what_is_damaged_is_named(small: Small, change: Any, told: str, unpacked: bool, tmp_path: Path) -> None:
    """Before any compute."""
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(DataError, match=told):
        cats_dogs(root=small(change, unpacked))


@pytest.mark.parametrize("name", ["../cat_1.wav", "/cat_1.wav", "C:/cat_1.wav", "a/../../cat_1.wav", "..\\cat_1.wav"])
def test_a_name_that_leads_out_is_refused(small: Small, name: str) -> None:
    with pytest.raises(DataError, match="leads out of the folder; don't use this zip"):
        read(small(put(name, b"x")))


def test_a_zip_that_is_cut_off_or_missing_is_told(small: Small, tmp_path: Path) -> None:
    path = small()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"audio_cats_dogs\.zip: can't be read as a zip \(BadZipFile"):
        cats_dogs(root=path.parent)
    with pytest.raises(DataError, match=r"nowhere, which does not exist; expected audio_cats_dogs\.zip"):
        cats_dogs(root=tmp_path / "nowhere")


# --- The download, against a server of this process -----------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "short" not in self.path:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(small: Small) -> Iterator[tuple[str, list[str]]]:
    """URL of a folder with the generated zip, and the paths that were asked for."""
    asked: list[str] = []
    handler = type("Handler", (Handler,), {"asked": asked})
    folder = small().parent
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_address[1]}", asked
    made.shutdown()
    thread.join()
    made.server_close()


def test_it_fetches_once_and_then_is_the_default(
    server: tuple[str, list[str]], small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end: fetched from the mirror in the environment, checked, found later without asking."""
    url, asked = server
    monkeypatch.setenv("KSHOT_CATS_DOGS_URL", f"{url}/audio_cats_dogs.zip")
    known = digest(read(small()))
    monkeypatch.setattr("kshot_cats_dogs.tasks.fetch", functools.partial(download, sha256=known))
    fetched = cats_dogs(download=True, seconds=0.1)
    assert asked == ["/audio_cats_dogs.zip"]
    for again in (cats_dogs(seconds=0.1), cats_dogs(download=True, seconds=0.1), cats_dogs(root=small(), seconds=0.1)):
        assert again.fingerprint == fetched.fingerprint
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("none.zip", r"can't fetch .*none\.zip .*404"),
        ("short.zip", "came with 10 bytes that are not the recordings|can't fetch .*IncompleteRead"),
        ("audio_cats_dogs.zip", rf"whose recordings have the SHA-256 [0-9a-f]+, expected {SHA256}; they are others"),
    ],
)
def test_a_download_that_goes_wrong_leaves_nothing(
    server: tuple[str, list[str]], tmp_path: Path, path: str, told: str
) -> None:
    """No such file, cut off, others than the known ones: told with what to do by hand."""
    folder = tmp_path / "fetched"
    with pytest.raises(DataError, match=told) as raised:
        download(folder, url=f"{server[0]}/{path}")
    assert "or fetch the recordings by hand and give them as root=" in str(raised.value)
    assert list(folder.iterdir()) == []


def test_no_connection_and_no_folder_are_told(server: tuple[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't fetch"):
        download(tmp_path, url="http://127.0.0.1:9/x.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"can't fetch .*(NotADirectoryError|FileExistsError)"):
        download(tmp_path / "file" / "x", url=f"{server[0]}/audio_cats_dogs.zip")
    assert URL.startswith("https://")


def test_the_known_recordings_have_the_known_sum(real: Path) -> None:
    """That by which a download is checked."""
    clips = read(locate(real))
    assert digest(clips) == SHA256
    assert min(len(clip.samples) for clip in clips) == 15680
    assert len({clip.samples.tobytes() for clip in clips}) == 42
