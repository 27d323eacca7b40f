"""Decoding: PGM files to pixels, all people in one table; and a user's own pictures by the same steps."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kshot.data import pictures
from kshot.errors import DataError

HEIGHT, WIDTH = 112, 92
"""Pixels of the originals."""

Size = tuple[int, int]
"""Height and width in pixels."""


def decode(people: Mapping[str, Sequence[bytes]], where: Path | str) -> NDArray[np.uint8]:
    """All pictures [num, 112, 92], person by person.

    Raises:
        DataError: a file is cut off or no grey PGM of 92 x 112 pixels; names it.
    """
    named = ((f"{person}/{i}.pgm", data) for person, files in people.items() for i, data in enumerate(files, 1))
    return np.stack([_grey(data, f"{where}: {name}") for name, data in named])


def _grey(data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=("PPM",)) as image:
            found = (image.mode, image.size)
            pixels = np.asarray(image) if found == ("L", (WIDTH, HEIGHT)) else None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} can't be decoded ({type(error).__name__}: {error}); expected a whole PGM picture: fetch it anew"
        ) from error
    if pixels is None:
        mode, (width, height) = found
        raise DataError(
            f"{name} has {width} x {height} pixels of mode {mode}, expected {WIDTH} x {HEIGHT} grey ones (L); to use "
            "pictures of your own, make tasks from them with kshot.ClassificationTasks"
        )
    return pixels


def digest(people: Iterable[str], pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of names and pixels: the same however the files were packed."""
    made = hashlib.sha256("\n".join(people).encode())
    made.update(np.ascontiguousarray(pixels).data)
    return made.hexdigest()


def resized(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """A grey image as [height, width], by the BOX filter: a pixel is the mean of those it covers."""
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(image)


def table(pixels: NDArray[np.uint8], size: Size) -> Tensor:
    """Pictures [num, 112, 92] as the pools' table, uint8 [num, 1, *size]."""
    return torch.from_numpy(np.stack([resized(Image.fromarray(p), size) for p in pixels])[:, None])


def prepare(raw: Any, size: Size) -> Tensor:
    """Pictures of faces as inputs [n, 1, *size], black 0 and white 1.

    Args:
        raw: paths, images, uint8 arrays, or some of them, see ``kshot.data.pictures.inputs``.
        size: height and width. A picture of another shape is squeezed: crop it to the face as the originals are.

    Raises:
        DataError: a file is missing or no picture, or an array has another shape or type; names it.
    """

    def made(image: Image.Image) -> NDArray[np.uint8]:
        return resized(image.convert("L"), size)[None]

    return pictures.inputs(raw, made, (1, *size), who="orl-faces")
