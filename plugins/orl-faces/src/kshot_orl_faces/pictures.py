"""Decode PGM files into one table of all people, and prepare a user's own pictures by the same steps."""

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
from kshot.data.folders import reads
from kshot.errors import DataError

HEIGHT, WIDTH = 112, 92
"""Height and width of the originals in pixels."""

Size = tuple[int, int]
"""Height and width in pixels."""


def decode(people: Mapping[str, Sequence[bytes]], where: Path | str) -> NDArray[np.uint8]:
    """Return all pictures [num, 112, 92], person by person.

    Args:
        people: person -> bytes of the files, see ``files.read``.
        where: the zip or folder, for messages.

    Raises:
        DataError: a file is cut off, or is not a grey PGM of 92 x 112 pixels. The message names it.
    """
    named = ((f"{person}/{i}.pgm", data) for person, files in people.items() for i, data in enumerate(files, 1))
    return np.stack([_grey(data, f"{where}: {name}") for name, data in named])


def _grey(data: bytes, name: str) -> NDArray[np.uint8]:
    """Return the pixels [112, 92] of a PGM file."""
    try:
        with Image.open(io.BytesIO(data), formats=("PPM",)) as image:
            form = (image.mode, image.size)
            pixels = np.asarray(image) if form == ("L", (WIDTH, HEIGHT)) else None
    except Exception as error:  # on damaged bytes, Pillow raises errors of many types
        raise DataError(
            f"{name}: got a file that can't be decoded ({type(error).__name__}: {error}), expected a complete PGM "
            "picture; fetch it again"
        ) from error
    if pixels is None:
        mode, (width, height) = form
        raise DataError(
            f"{name}: got {width} x {height} pixels of mode {mode}, expected {WIDTH} x {HEIGHT} grey ones (L); to use "
            "your own pictures, make tasks of them with kshot.ClassificationTasks"
        )
    return pixels


def digest(people: Iterable[str], pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of names and pixels, which is the same however the files were packed."""
    hashed = hashlib.sha256("\n".join(people).encode())
    hashed.update(np.ascontiguousarray(pixels).data)
    return hashed.hexdigest()


def resized(image: Image.Image, size: Size) -> NDArray[np.uint8]:
    """Return a grey image as [height, width], by the BOX filter: a pixel is the mean of those that it covers."""
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(image)


def table(pixels: NDArray[np.uint8], size: Size) -> Tensor:
    """Return pictures [num, 112, 92] as the table of the pools, uint8 [num, 1, *size]."""
    return torch.from_numpy(np.stack([resized(Image.fromarray(p), size) for p in pixels])[:, None])


@reads(pictures.formats)
def prepare(raw: Any, size: Size) -> Tensor:
    """Make inputs [n, 1, *size] of pictures of faces, black 0 and white 1.

    Args:
        raw: paths, images, uint8 arrays, or a sequence of these, see ``kshot.data.pictures.inputs``.
        size: height and width. A picture of another shape is squeezed, so crop it to the face as the originals are.

    Raises:
        DataError: a file is missing or is not a picture, or an array has another shape or type. The message names it.

    Example:
        >>> prepare(Image.new("L", (92, 112), 255), (56, 46)).shape
        torch.Size([1, 1, 56, 46])
    """

    def pixels(image: Image.Image) -> NDArray[np.uint8]:
        return resized(image.convert("L"), size)[None]

    return pictures.inputs(raw, pixels, (1, *size), who="orl-faces")
