"""Recordings are read from a zip or a folder; damaged ones are refused by name."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kshot.errors import DataError
from kshot_cats_dogs import cats_dogs, files
from kshot_cats_dogs.download import SHA256
from kshot_cats_dogs.files import CLIPS, digest, locate, read

Small = Callable[..., Path]


def wav(samples: int = 16000, rate: int = 16000, channels: int = 1, seed: int = 0) -> bytes:
    """Return a wav of noise, 16 bits."""
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
    """They are in the order of their names, in whatever folders they are, and other files are ignored."""

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
    ("change", "message"),
    [
        (put("Cats/cat_1.wav", b""), r"cat_1\.wav: got a file that can't be decoded"),
        (put("Cats/cat_1.wav", b"text"), r"cat_1\.wav: got a file that can't be decoded"),
        (put("Cats/cat_1.wav", wav()[:5000]), r"cat_1\.wav: got 2478 samples, expected 16000"),
        (put("Cats/cat_1.wav", wav(0)), r"cat_1\.wav: got 0 samples, expected 0"),
        (put("Cats/cat_1.wav", wav(rate=8000)), r"cat_1\.wav: got 8000 Hz, 1 channels and 16 bits, expected 16000 Hz"),
        (put("Cats/cat_1.wav", wav(channels=2)), "2 channels"),
        (put("Cats/cat_1.wav", bytes((4 << 20) + 1)), r"Cats/cat_1\.wav: got 4194305 bytes, expected a recording"),
        (put("more/cat_1.wav", wav(seed=77)), r"got a second more/cat_1\.wav with other contents"),
        (
            lambda content: content.pop("Dogs/dog_barking_3.wav"),
            r"got 41 of 42 recordings, without dog_barking_3",
        ),
        (dict.clear, r"got 0 of 42 recordings, without cat_1\.wav, cat_2\.wav, cat_3\.wav, \.\.\."),
    ],
)
@pytest.mark.parametrize("unpacked", [False, True])
def test_what_is_damaged_is_named(small: Small, change: Any, message: str, unpacked: bool, tmp_path: Path) -> None:
    """They are refused before anything is computed."""
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(DataError, match=message):
        cats_dogs(root=small(change, unpacked))


@pytest.mark.parametrize("name", ["../cat_1.wav", "/cat_1.wav", "C:/cat_1.wav", "a/../../cat_1.wav", "..\\cat_1.wav"])
def test_a_name_that_leads_out_is_refused(small: Small, name: str) -> None:
    with pytest.raises(DataError, match=r"leads out of the archive's folder, .*; don't use this file"):
        read(small(put(name, b"x")))


def test_a_zip_that_is_cut_off_or_missing_is_refused(small: Small, tmp_path: Path) -> None:
    path = small()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"audio_cats_dogs\.zip: got a file that can't be read as a zip \(BadZipFile"):
        cats_dogs(root=path.parent)
    with pytest.raises(DataError, match=r"nowhere, which does not exist, expected audio_cats_dogs\.zip"):
        cats_dogs(root=tmp_path / "nowhere")


def test_the_known_recordings_have_the_known_sum(real: Path) -> None:
    """A download is checked by this sum."""
    clips = read(locate(real))
    assert digest(clips) == SHA256
    assert min(len(clip.samples) for clip in clips) == 15680
    assert len({clip.samples.tobytes() for clip in clips}) == 42


@pytest.mark.parametrize("length", [None, 0, 0xFFFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("extensible", [False, True])
def test_wavs_of_other_programs_are_read(length: int | None, extensible: bool) -> None:
    """Some write the longer header for the same samples, and some write to a pipe and don't know the length."""
    plain = wav(samples=1000)
    data, rest = plain, plain[36:]
    if extensible:
        guid = bytes.fromhex("0100000000001000800000aa00389b71")
        fields = plain[20:36] + (22).to_bytes(2, "little") + (16).to_bytes(2, "little") + (4).to_bytes(4, "little")
        chunk = b"\xfe\xff" + fields[2:] + guid
        data = (
            b"RIFF"
            + (len(plain) + 16).to_bytes(4, "little")
            + b"WAVE"
            + b"fmt "
            + len(chunk).to_bytes(4, "little")
            + chunk
            + rest
        )
    if length is not None:
        where = data.index(b"data") + 4
        data = data[:where] + length.to_bytes(4, "little") + data[where + 4 :]
    assert np.array_equal(files.wav(data, "x"), files.wav(plain, "x"))


def test_a_wav_without_samples_is_not_read_as_its_next_chunk() -> None:
    """A list of texts may follow the samples."""
    empty = wav(samples=0)
    with pytest.raises(DataError, match="x: got 0 samples, expected"):
        files.wav(empty + b"LIST" + (4).to_bytes(4, "little") + b"INFO", "x")
