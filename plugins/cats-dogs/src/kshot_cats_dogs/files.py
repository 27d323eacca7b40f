"""Read the recordings from a zip or a folder that has them, perhaps among others; 9 MB, never unpacked to the disk."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.data.archives import Archive, check_size, is_left_by_macos
from kshot.data.files import check_regular
from kshot.errors import DataError

ARCHIVE = "audio_cats_dogs.zip"
RATE = 16000
"""Sampling rate of all recordings in Hz."""

CLIPS: Mapping[str, tuple[str, ...]] = {
    "Cats": tuple(f"cat_{n}.wav" for n in range(1, 15)),
    "Dogs": tuple(f"dog_barking_{n}.wav" for n in range(14)),
    "Sub_dogs": tuple(f"dog_barking_{n}.wav" for n in range(70, 84)),
}
"""Folder -> its recordings. A recording is recognised by its file name; the folder does not matter."""

_FOLDER_OF = {name: folder for folder, names in CLIPS.items() for name in names}
_LARGEST = 4 << 20  # bytes of a recording; the longest has 0.6 MB


_PCM = bytes.fromhex("0100000000001000800000aa00389b71")  # the format of a WAVE_FORMAT_EXTENSIBLE that is PCM
_CHUNKS = (b"LIST", b"INFO", b"id3 ", b"ID3 ", b"bext", b"cue ", b"fact", b"smpl", b"PEAK", b"JUNK", b"iXML")
_UNKNOWN = 0x7FFF0000  # bytes; programs that don't know the length yet write this or more


@frozen(eq=False)
class Clip:
    """Store a recording.

    Attributes:
        name: its folder and file, such as ``Cats/cat_1.wav``.
        samples: its samples [n], 16 bits each, at 16 kHz.
    """

    name: str
    samples: NDArray[np.int16]


def locate(root: Path) -> Path:
    """Return the zip or the folder to read: the zip in ``root`` if there is one, else ``root`` itself.

    Raises:
        DataError: ``root`` does not exist.
    """
    root = root.expanduser().absolute()
    if not root.exists():
        raise DataError(
            f"cats-dogs: root: got {root}, which does not exist, expected {ARCHIVE} or the folder that it unpacks to; "
            "give one of these"
        )
    return root / ARCHIVE if (root / ARCHIVE).is_file() else root


def read(place: Path) -> list[Clip]:
    """Read the 42 recordings, which are recognised by their file names in any folders. Other files are ignored.

    Returns:
        The recordings in the order of ``CLIPS``.

    Raises:
        DataError: a zip is refused by ``kshot.data.archives``; or a recording is missing, is there twice with different
            contents, or is not a wav of 16 bits, 16 kHz and one channel. The message names it.
    """
    files: dict[str, bytes] = {}
    for entry, data in _folder(place) if place.is_dir() else _zip(place):
        name = entry.rpartition("/")[2]
        if files.setdefault(name, data) != data:
            raise DataError(
                f"{place}: got a second {entry} with other contents, expected each recording once; remove one of them"
            )
    if missing := [name for name in _FOLDER_OF if name not in files]:
        raise DataError(
            f"{place}: got {len(_FOLDER_OF) - len(missing)} of {len(_FOLDER_OF)} recordings, without "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}, expected Cats/cat_1.wav to "
            "Sub_dogs/dog_barking_83.wav; fetch the rest, or use kshot-audiofolder for your own recordings"
        )
    return [Clip(f"{_FOLDER_OF[n]}/{n}", wav(files[n], f"{place}: {n}")) for n in _FOLDER_OF]


def digest(clips: list[Clip]) -> str:
    """Return the SHA-256 of names and samples, which is the same however the files were packed."""
    hashed = hashlib.sha256()
    for clip in clips:
        hashed.update(f"{clip.name}\n".encode() + clip.samples.astype("<i2").tobytes())
    return hashed.hexdigest()


def wav(data: bytes, name: str) -> NDArray[np.int16]:
    """Return the samples [n] of a wav file.

    Args:
        data: the file's bytes.
        name: of the file, for messages.

    Raises:
        DataError: it is damaged, or is not of 16 bits, 16 kHz and one channel.
    """
    try:
        with wave.open(io.BytesIO(_plain(data))) as file:
            kind = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            promised, frames = file.getnframes(), file.readframes(file.getnframes())
    except (wave.Error, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise DataError(
            f"{name}: got a file that can't be decoded ({type(error).__name__}: {error}), expected a wav; fetch it "
            "again"
        ) from error
    if kind != (RATE, 1, 2):
        raise DataError(
            f"{name}: got {kind[0]} Hz, {kind[1]} channels and {8 * kind[2]} bits, expected {RATE} Hz, 1 and 16; "
            "convert it"
        )
    if len(frames) < 2 * max(promised, 1):
        raise DataError(
            f"{name}: got {len(frames) // 2} samples, expected {promised}, at least 1; it was cut off: fetch it again"
        )
    return np.frombuffer(frames, "<i2").astype(np.int16)


def _plain(data: bytes) -> bytes:
    """Return a wav's bytes with the header that Python's ``wave`` reads.

    A header of the form WAVE_FORMAT_EXTENSIBLE becomes a plain one if it says PCM. A length that is unknown, or 0
    although samples follow, becomes that of the rest of the file; programs that write to a pipe leave it so.
    """
    plain, at = bytearray(data), 12
    while data[:4] == b"RIFF" and at + 8 <= len(data):
        name, length = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])[0]
        if name == b"fmt " and data[at + 8 : at + 10] == b"\xfe\xff" and data[at + 32 : at + 48] == _PCM:
            plain[at + 8 : at + 10] = b"\x01\x00"
        if name == b"data":
            rest = len(data) - at - 8
            follows = struct.unpack("<I", data[at + 12 : at + 16])[0] if rest >= 8 else 0
            is_chunk = data[at + 8 : at + 12] in _CHUNKS and follows <= rest - 8  # no samples, but the next chunk
            if length >= _UNKNOWN or (length == 0 and not is_chunk):
                plain[at + 4 : at + 8] = struct.pack("<I", rest - rest % 2)
                plain[4:8] = struct.pack("<I", len(data) - 8)
            break
        at += 8 + length + length % 2
    return bytes(plain)


def _zip(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each recording in a zip."""
    with Archive(path, largest=_LARGEST, what="a recording") as archive:
        for entry in archive.entries(_is_recording):
            yield entry.filename, archive.read(entry.filename)


def _folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each recording below a folder."""
    for path in sorted(folder.rglob("*.wav")):
        name = path.relative_to(folder).as_posix()
        if not _is_recording(name):
            continue
        check_regular(path, "a recording")
        try:
            check_size(f"{folder}: {name}", os.stat(path).st_size, _LARGEST, "a recording")
            yield name, path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: got a file that can't be read ({type(error).__name__}: {error}), expected a recording; fix "
                "its permissions or fetch it again"
            ) from error


def _is_recording(name: str) -> bool:
    """Return whether a file of this name is one of the 42 recordings."""
    return name.rpartition("/")[2] in _FOLDER_OF and not is_left_by_macos(name)
