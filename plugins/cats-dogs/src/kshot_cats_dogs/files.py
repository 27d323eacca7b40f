"""Where the recordings come from: a zip or a folder that has them among others; read whole, 9 MB, never unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import re
import wave
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.errors import DataError

ARCHIVE = "audio_cats_dogs.zip"
RATE = 16000
"""Hz, of all recordings."""

CLIPS: Mapping[str, tuple[str, ...]] = {
    "Cats": tuple(f"cat_{n}.wav" for n in range(1, 15)),
    "Dogs": tuple(f"dog_barking_{n}.wav" for n in range(14)),
    "Sub_dogs": tuple(f"dog_barking_{n}.wav" for n in range(70, 84)),
}
"""Folder -> its recordings. Their names alone tell where they belong."""

_FOLDER_OF = {name: folder for folder, names in CLIPS.items() for name in names}
_LARGEST = 4 << 20  # bytes of a recording; the longest has 0.6 MB
_LEADS_OUT = re.compile(r"[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)  # absolute, a drive, or up


@frozen(eq=False)
class Clip:
    """A recording.

    Attributes:
        name: such as ``Cats/cat_1.wav``.
        samples: 16 bits each, at 16 kHz [n].
    """

    name: str
    samples: NDArray[np.int16]


def locate(root: Path) -> Path:
    """The zip, or the folder of the recordings: ``root`` itself, or the zip in it.

    Raises:
        DataError: there is none.
    """
    root = root.expanduser().absolute()
    if not root.exists():
        raise DataError(
            f"cats-dogs: root is {root}, which does not exist; expected {ARCHIVE}, or the folder that it unpacks to"
        )
    return root / ARCHIVE if (root / ARCHIVE).is_file() else root


def read(place: Path) -> list[Clip]:
    """The 42 recordings in the order of ``CLIPS``, by their names, in whatever folders they lie; others are left.

    Raises:
        DataError: a zip is damaged or a name in it leads out of its folder, a recording is missing, is there twice and
            not the same, or is no wav of 16 bits, 16 kHz and one channel; names it.
    """
    found: dict[str, bytes] = {}
    for entry, data in _folder(place) if place.is_dir() else _zip(place):
        name = entry.rpartition("/")[2]
        if found.setdefault(name, data) != data:
            raise DataError(f"{place}: {entry} is there twice, and they are not the same; expected each recording once")
    if missing := [name for name in _FOLDER_OF if name not in found]:
        raise DataError(
            f"{place}: {len(missing)} of {len(_FOLDER_OF)} recordings are missing, such as {', '.join(missing[:3])}; "
            "expected Cats/cat_1.wav to Sub_dogs/dog_barking_83.wav; for recordings of your own use kshot-audiofolder"
        )
    return [Clip(f"{_FOLDER_OF[n]}/{n}", wav(found[n], f"{place}: {n}")) for n in _FOLDER_OF]


def digest(clips: list[Clip]) -> str:
    """SHA-256 of names and samples: the same however the files were packed."""
    made = hashlib.sha256()
    for clip in clips:
        made.update(f"{clip.name}\n".encode() + clip.samples.astype("<i2").tobytes())
    return made.hexdigest()


def wav(data: bytes, name: str) -> NDArray[np.int16]:
    """The samples of a wav file [n]. Raises DataError where it is none of 16 bits, 16 kHz and one channel."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            kind = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            promised, frames = file.getnframes(), file.readframes(file.getnframes())
    except (wave.Error, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} can't be decoded ({type(error).__name__}: {error}); fetch it anew") from error
    if kind != (RATE, 1, 2):
        raise DataError(
            f"{name} has {kind[0]} Hz, {kind[1]} channels and {8 * kind[2]} bits; expected {RATE} Hz, 1 and 16"
        )
    if len(frames) < 2 * max(promised, 1):
        raise DataError(f"{name} ends after {len(frames) // 2} of {promised} samples; it was cut off: fetch it anew")
    return np.frombuffer(frames, "<i2").astype(np.int16)


def _zip(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                # Nothing is ever unpacked, but a zip that tries is not the one the user believes it is.
                if _LEADS_OUT.match(info.filename):
                    raise DataError(
                        f"{path}: the entry {info.filename!r} leads out of the folder; don't use this zip, fetch the "
                        "original"
                    )
                if _wanted(info.filename):
                    _check_size(path, info.filename, info.file_size)
                    yield info.filename, archive.read(info)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{path}: can't be read as a zip ({type(error).__name__}: {error}); it is damaged or was cut off: delete "
            "it and fetch it anew"
        ) from error


def _folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*.wav")):
        name = path.relative_to(folder).as_posix()
        if not _wanted(name):
            continue
        try:
            _check_size(folder, name, os.stat(path).st_size)
            yield name, path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read ({type(error).__name__}: {error})") from error


def _wanted(name: str) -> bool:
    return name.rpartition("/")[2] in _FOLDER_OF and not name.startswith("__MACOSX/")


def _check_size(place: Path, name: str, size: int) -> None:
    if size > _LARGEST:
        raise DataError(f"{place}: {name} has {size} bytes; expected a recording of at most {_LARGEST}")
