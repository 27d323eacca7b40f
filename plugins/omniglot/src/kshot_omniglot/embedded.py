"""Read the subset of Omniglot that is in the package: 20 alphabets at their full 105 x 105 pixels.

``embedded.xz`` is the LZMA of a line of JSON and of one bit per pixel. Before packing, each row is XORed with the one
above it, and the bytes of a drawing are ordered column by column: strokes continue downwards, so nearly all bytes are
zero, and 20 drawings of a character take some 1.6 kB. ``tools/make_embedded.py`` makes the file.
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
    """Compress a header and drawings [num, 105, 105] (True is ink) into bytes.

    Example:
        >>> header, drawings = unpack(pack({"characters": []}, np.ones((2, SIDE, SIDE), bool)))
        >>> header, drawings.shape, bool(drawings.all())
        ({'characters': []}, (2, 105, 105), True)
    """
    bits = np.packbits(drawings, axis=2)
    bits[:, 1:] ^= bits[:, :-1].copy()
    columns = np.ascontiguousarray(bits.transpose(0, 2, 1))
    return lzma.compress(json.dumps(header).encode() + b"\n" + columns.tobytes(), preset=9 | lzma.PRESET_EXTREME)


def unpack(packed: bytes) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Return the header and the drawings that ``pack`` compressed."""
    line, _, body = lzma.decompress(packed).partition(b"\n")
    columns = np.frombuffer(body, np.uint8).reshape(-1, _BYTES, SIDE)
    bits = np.bitwise_xor.accumulate(columns.transpose(0, 2, 1), axis=1)
    return json.loads(line), np.unpackbits(bits, axis=2, count=SIDE).astype(bool)


class Embedded:
    """Represent the subset as a source of drawings, see ``table.Source``.

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
            raise DataError(
                f"omniglot: got an embedded.xz that can't be read ({error}), expected the package's own file; "
                "install kshot-omniglot again"
            ) from error

    def place_key(self) -> str:
        """Return a key of the contents, which costs little here."""
        return self.content_key()

    def content_key(self) -> str:
        """Return a hash of the file."""
        return hashlib.blake2b(self._packed, digest_size=16).hexdigest()

    def characters(self) -> tuple[Character, ...]:
        """Return the characters in the order of their drawings."""
        return tuple(Character(*c) for c in self._unpacked[0]["characters"])

    def pixels(self, size: int, workers: int | None) -> NDArray[np.uint8]:
        """Return the ink [num, size, size], by the same steps as from picture files. ``workers`` is not used."""
        paper = np.where(self._unpacked[1], np.uint8(0), np.uint8(255))
        pixels = b"".join(ink(Image.fromarray(drawing), size) for drawing in paper)
        return np.frombuffer(pixels, np.uint8).reshape(-1, size, size)


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
"""The alphabets of each split of the subset, about 60, 15 and 25 % of 20.

Each split is within the same split of both Vinyals and Lake, so nothing that is tested here was trained on there.
"""
