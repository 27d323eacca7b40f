"""From an image of any form to ``[C, h, w]`` bytes, the same for a folder's images and for one to be predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from kshot.data import pictures

Fit = Literal["squeeze", "crop", "pad"]
Mode = Literal["L", "RGB"]

VERSION = 1
"""Of the decoding; raise it when it changes."""


@frozen
class Form:
    """What images are brought to.

    Attributes:
        mode: ``L`` (grey, C = 1) or ``RGB`` (C = 3).
        size: height and width in pixels.
        fit: of an image of another shape. ``squeeze`` it; ``crop`` its middle; or ``pad`` it, centred on white.
    """

    mode: Mode
    size: tuple[int, int]
    fit: Fit

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an input, [C, h, w]."""
        return (len(self.mode), *self.size)

    def decode(self, path: Path) -> NDArray[np.uint8]:
        """The file's image (of an animation, the first) as [1, C, h, w].

        Raises:
            DataError: it can't be read, or is of a kind that can't be shown in 8 bits; names it.
        """
        return self.pixels(pictures.read(path, least=max(self.size)))[None]

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """An opaque image of 8 bits a channel as [C, h, w]."""
        plain = image.convert(self.mode)
        height, width = self.size
        if plain.size != (width, height):
            plain = self._fitted(plain, (width, height))
        made: NDArray[np.uint8] = np.asarray(plain).reshape(height, width, -1).transpose(2, 0, 1)
        return made

    def _fitted(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Resized by Pillow's BILINEAR, which averages over all pixels that a smaller one covers."""
        if self.fit == "crop":
            return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        if self.fit == "pad":
            return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color="white")
        return image.resize(size, Image.Resampling.BILINEAR)


def prepare(raw: Any, form: Form) -> Tensor:
    """Images as inputs [n, C, h, w] within [0, 1].

    Args:
        raw: paths, images, uint8 arrays, or some of them, see ``kshot.data.pictures.inputs``.

    Raises:
        DataError: a file is missing or no image, or an array has another shape or type; names it.
    """
    return pictures.inputs(raw, form.pixels, form.shape, who="imagefolder")


def prepare_as(raw: Any, *, mode: Mode, size: tuple[int, int], fit: Fit) -> Tensor:
    """Call ``prepare`` with a form given by its fields, plain values that a run can store."""
    return prepare(raw, Form(mode, size, fit))
