"""The real subset inside the wheel: whole alphabets of Omniglot at their full 105 x 105 pixels.

``embedded.xz`` is the LZMA of a line of JSON and of one bit a pixel. Before packing, each row is XORed with the one
above it and the bytes of a drawing are ordered column by column: strokes go on downwards, so nearly all bytes are
zero, and 20 drawings of a character take some 1.6 kB. Made by ``tools/make_embedded.py``.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kshot.errors import DataError
from kshot_omniglot.decode import ink
from kshot_omniglot.files import Character

SIDE = 105
_BYTES = -(-SIDE // 8)


def pack(header: Mapping[str, Any], drawings: NDArray[np.bool_]) -> bytes:
    """A header and drawings [num, 105, 105] (True is ink) as one compressed text of bytes."""
    bits = np.packbits(drawings, axis=2)
    bits[:, 1:] ^= bits[:, :-1].copy()
    columns = np.ascontiguousarray(bits.transpose(0, 2, 1))
    return lzma.compress(json.dumps(header).encode() + b"\n" + columns.tobytes(), preset=9 | lzma.PRESET_EXTREME)


def unpack(packed: bytes) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """The inverse of ``pack``."""
    line, _, body = lzma.decompress(packed).partition(b"\n")
    columns = np.frombuffer(body, np.uint8).reshape(-1, _BYTES, SIDE)
    bits = np.bitwise_xor.accumulate(columns.transpose(0, 2, 1), axis=1)
    return json.loads(line), np.unpackbits(bits, axis=2, count=SIDE).astype(bool)


class Embedded:
    """The subset as a source of drawings.

    Raises:
        DataError: the installed file is damaged.
    """

    where = "the embedded subset of Omniglot"

    def __init__(self) -> None:
        self._packed = (files("kshot_omniglot") / "embedded.xz").read_bytes()

    @cached_property
    def _unpacked(self) -> tuple[dict[str, Any], NDArray[np.bool_]]:
        try:
            return unpack(self._packed)
        except (lzma.LZMAError, EOFError, ValueError) as error:
            raise DataError(f"kshot_omniglot/embedded.xz is damaged ({error}); install kshot-omniglot anew") from error

    def place_key(self) -> str:
        return self.content_key()

    def content_key(self) -> str:
        return hashlib.blake2b(self._packed, digest_size=16).hexdigest()

    def characters(self) -> tuple[Character, ...]:
        return tuple(Character(*c) for c in self._unpacked[0]["characters"])

    def pixels(self, size: int, workers: int | None) -> NDArray[np.uint8]:
        """The ink [num, size, size], by the same steps as from a picture file. ``workers`` is not needed."""
        paper = np.where(self._unpacked[1], np.uint8(0), np.uint8(255))
        made = b"".join(ink(Image.fromarray(drawing), size) for drawing in paper)
        return np.frombuffer(made, np.uint8).reshape(-1, size, size)


ALPHABETS: Mapping[str, Sequence[str]] = {
    "train": (
        "Anglo-Saxon_Futhorc",
        "Balinese",
        "Braille",
        "Cyrillic",
        "Futurama",
        "Greek",
        "Gujarati",
        "Japanese_(hiragana)",
        "Korean",
        "Latin",
        "Sanskrit",
        "Tifinagh",
    ),
    "val": ("Armenian", "Early_Aramaic", "Hebrew"),
    "test": ("Keble", "Malayalam", "Mongolian", "Tengwar", "Tibetan"),
}
"""The subset's split, about 60, 15 and 25 % of 20 alphabets.

Each split lies within the same split of both Vinyals and Lake, so that nothing tested here was trained on there.
"""
