"""Read the clip that is wanted from a file of sound, and refuse files that are cut off."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile  # type: ignore[import-untyped]
from numpy.typing import NDArray

from kshot.data.files import check_regular
from kshot.errors import DataError

Source = Path | BinaryIO

_UNKNOWN_LENGTH = 0x7FFF0000  # bytes; programs that don't know the length of a WAV yet write this or more
_UNKNOWN_FRAMES = 1 << 40  # libsndfile reports more than these if a FLAC's header does not say how long it is
_BLOCK = 1 << 16  # frames that are read at once from a file of unknown length

# What libsndfile notes about a header that promises more than the file has, and in what unit.
_PROMISES = (
    (re.compile(r"^ *(?:data|SSND|Data Size|BODY) *: (?P<promised>\d+) \(should be (?P<there>\d+)\)", re.M), "bytes"),
    (re.compile(r"^riff : (?P<promised>\d+) \(should be (?P<there>\d+)\)", re.M), "bytes"),  # W64: of all the file
    (re.compile(r"frame count (?P<there>\d+) does not match value from 'ds64' chunk of (?P<promised>\d+)"), "frames"),
    (re.compile(r"^Data length (?P<promised>\d+) should be (?P<there>\d+)", re.M), "bytes"),  # WVE
)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """Read a file from its beginning to its end: soundfile seeks after each reading, which some decoders can't do."""

    def seekable(self) -> bool:
        return False


def clip(source: Source, seconds: float, crop: str, name: str) -> tuple[NDArray[np.float32], int]:
    """Return the samples [n, channels] of the wanted part of a file, at its own rate, and that rate.

    Only that part is kept in memory: a recording of an hour is a gigabyte. A file whose header does not say how long
    it is, or says 0 though samples follow, is read to its end.

    Args:
        source: the file's path, or an open file.
        seconds: length of the clip; shorter if the file is.
        crop: from the ``start`` or the ``centre``.
        name: of the file, for messages.

    Raises:
        DataError: it can't be read as a sound, or was cut off. The message names it.
    """
    if isinstance(source, Path):
        check_regular(source, "a sound")
    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(_with_length(source))
            with _Forward(_start(source)) as file:
                rate, frames, notes = int(file.samplerate), int(file.frames), str(file.extra_info)
                needed, known = math.ceil(seconds * rate), frames < _UNKNOWN_FRAMES
                first = max(0, (frames - needed) // 2) if crop == "centre" and known else 0
                expected = min(needed, frames - first) if known else 0
                samples = _read(file, first, expected) if known else None
            if samples is None:
                if crop == "centre" and not known:
                    first = max(0, (sum(len(block) for block in _blocks(source)) - needed) // 2)
                samples = _part(source, first, needed)
    except (OSError, RuntimeError, ValueError, TypeError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}: got a file that can't be read as a sound ({type(error).__name__}: {error}), expected one; "
            "fix or remove it"
        ) from error
    for pattern, unit in _PROMISES:
        note = pattern.search(notes)
        if note and int(note["there"]) < int(note["promised"]) < _UNKNOWN_LENGTH:
            raise DataError(
                f"{name}: got {note['there']} {unit} of samples, expected {note['promised']}: it was cut off; fix "
                "or remove it"
            )
    if len(samples) < expected:
        raise DataError(f"{name}: got {len(samples)} samples, expected {expected}: it was cut off; fix or remove it")
    return samples, rate


def _start(source: Source) -> str | BinaryIO:
    """Return what soundfile opens, at its beginning."""
    if isinstance(source, Path):
        return str(source)
    source.seek(0)
    return source


def _read(file: _Forward, first: int, count: int) -> NDArray[np.float32] | None:
    """Return ``count`` samples [n, channels] of an open file, or None if its decoder can't begin at ``first``."""
    if first:
        try:
            file.seek(first)
        except RuntimeError:  # decoders such as GSM 6.10 and G.721 go forward only
            return None
    samples: NDArray[np.float32] = file.read(count, dtype="float32", always_2d=True)
    return samples


def _blocks(source: Source) -> Iterator[NDArray[np.float32]]:
    """Yield the samples [n, channels] of a file from its beginning, in blocks."""
    with _Forward(_start(source)) as file:
        while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
            yield block


def _part(source: Source, first: int, count: int) -> NDArray[np.float32]:
    """Return ``count`` samples [n, channels] of a file that is read from its beginning, or fewer at its end."""
    kept: list[NDArray[np.float32]] = []
    start = 0  # of the block in the file
    for block in _blocks(source):
        kept.append(block[max(0, first - start) : max(0, first + count - start)])
        start += len(block)
        if start >= first + count:
            break
    return np.concatenate(kept) if kept else np.zeros((0, 1), np.float32)


@contextlib.contextmanager
def _with_length(source: Source) -> Iterator[Source]:
    """Yield a file, or a copy whose header is corrected if its length is 0 or unknown and samples follow the header.

    Programs that write to a pipe can't go back to their header. libsndfile believes 0, and in most formats it reads a
    file of unknown length to the end.
    """
    with contextlib.ExitStack() as stack:
        file: BinaryIO = stack.enter_context(open(source, "rb")) if isinstance(source, Path) else source
        file.seek(0)
        head = file.read(1 << 16)
        size = file.seek(0, io.SEEK_END)
        change = _unknown(head, size)
        if change is None:
            yield source
            return
        where, value = change
        file.seek(0)
        data = bytearray(file.read())
        data[where : where + len(value)] = value
        yield io.BytesIO(data)


def _unknown(head: bytes, size: int) -> tuple[int, bytes] | None:
    """Return where in a file to write which bytes so that it is read to its end; None if it says how long it is.

    Args:
        head: the beginning of the file.
        size: its bytes.
    """
    if head[:4] == b".snd" and len(head) >= 24:
        offset, length = struct.unpack(">II", head[4:12])
        return (8, b"\xff" * 4) if length == 0 and size > offset else None
    if head[:4] == b"caff":  # chunks with lengths of 8 bytes; libsndfile refuses an unknown one
        at = 8
        while at + 12 <= len(head):
            length = struct.unpack(">q", head[at + 4 : at + 12])[0]
            if head[at : at + 4] == b"data":
                return (at + 4, struct.pack(">q", size - at - 12)) if length in (0, -1) and size > at + 16 else None
            at += 12 + max(length, 0)
        return None
    formats = {b"RIFF": ("<", b"data"), b"RF64": ("<", b"data"), b"FORM": (">", b"SSND")}
    if head[:4] not in formats:
        return None
    order, wanted = formats[head[:4]]
    at, sizes = 12, -1  # of the chunk; of the 64-bit length of an RF64's data
    while at + 8 <= len(head):
        kind, length = head[at : at + 4], struct.unpack(order + "I", head[at + 4 : at + 8])[0]
        if kind == b"ds64":
            sizes = at + 16
        if kind == wanted:
            empty = length == (8 if wanted == b"SSND" else 0)  # an SSND begins with 8 bytes that are no samples
            start = at + (16 if wanted == b"SSND" else 8)
            if head[:4] == b"RF64" and sizes > 0:
                empty = head[sizes : sizes + 8] == bytes(8)
            if not empty or start >= size or _is_chunk(head[start : start + 8], order, size - start):
                return None
            if head[:4] == b"RF64":
                return (sizes, struct.pack("<Q", size - start)) if sizes > 0 else None
            return at + 4, bytes(4) if wanted == b"SSND" else b"\xff" * 4
        at += 8 + length + length % 2
    return None


def _is_chunk(begin: bytes, order: str, left: int) -> bool:
    """Return whether a chunk begins here, and no samples: its name is text, and it ends within the file."""
    if len(begin) < 8 or not re.fullmatch(rb"[ -~]{4}", begin[:4]):
        return False
    return bool(8 + struct.unpack(order + "I", begin[4:8])[0] <= left)
