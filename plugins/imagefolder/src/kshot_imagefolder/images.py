"""Convert images to arrays [C, h, w] of bytes: the images of a folder, and images to be predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from kshot.data import pictures
from kshot.data.folders import reads

Fit = Literal["squeeze", "crop", "pad"]
Mode = Literal["L", "RGB"]

VERSION = 1
"""Version of the decoding; raise it when the decoding changes."""


@frozen
class Form:
    """Store the form into which images are converted.

    Attributes:
        mode: ``L`` (grey, C = 1) or ``RGB`` (C = 3).
        size: height and width in pixels.
        fit: what to do with an image of other proportions: ``squeeze`` it, ``crop`` its middle, or ``pad`` it (white).

    Example:
        >>> form = Form("RGB", (4, 6), "pad")
        >>> form.pixels(Image.new("L", (12, 12))).shape
        (3, 4, 6)
    """

    mode: Mode
    size: tuple[int, int]
    fit: Fit

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an input, [C, h, w]."""
        return (len(self.mode), *self.size)

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """Return the image in a file, or the first image of an animation, as [1, C, h, w].

        Raises:
            DataError: it can't be read, or its values have no known range. The message names it.
        """
        return pictures.decode(path, self.pixels, least=max(self.size))[None]

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return an opaque image of 8 bits per channel as [C, h, w]."""
        plain = image.convert(self.mode)
        height, width = self.size
        if plain.size != (width, height):
            plain = self._resize(plain, (width, height))
        pixels: NDArray[np.uint8] = np.asarray(plain).reshape(height, width, -1).transpose(2, 0, 1)
        return pixels

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Resize an image by Pillow's BILINEAR filter, which averages over all pixels that a smaller one covers."""
        if self.fit == "crop":
            return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        if self.fit == "pad":
            return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color="white")
        return image.resize(size, Image.Resampling.BILINEAR)


def prepare(raw: Any, form: Form) -> Tensor:
    """Make inputs [n, C, h, w] within [0, 1] of images.

    Args:
        raw: paths, images, uint8 arrays, or a sequence of these, see ``kshot.data.pictures.inputs``.
        form: the form into which to convert them.

    Raises:
        DataError: a file is missing or is not an image, or an array has another shape or type. The message names it.

    Example:
        >>> prepare(Image.new("RGB", (8, 8), "white"), Form("L", (1, 2), "squeeze")).tolist()
        [[[[1.0, 1.0]]]]
    """
    return pictures.inputs(raw, form.pixels, form.shape, who="imagefolder")


@reads(pictures.formats)
def prepare_as(raw: Any, *, mode: Mode, size: tuple[int, int], fit: Fit) -> Tensor:
    """Call ``prepare`` with a form given by its fields, plain values that a run can store."""
    return prepare(raw, Form(mode, size, fit))
