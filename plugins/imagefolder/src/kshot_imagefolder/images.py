"""From an image of any form to ``[C, h, w]`` bytes, the same for a folder's images and for one to be predicted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from kshot.errors import DataError

Fit = Literal["squeeze", "crop", "pad"]
Mode = Literal["L", "RGB"]

VERSION = 1
"""Of the decoding; raise it when it changes."""

# Those that Pillow only recognises, those that need a program, and one that runs a script.
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def formats() -> dict[str, str]:
    """Suffix -> format, of all that Pillow decodes here."""
    found = Image.registered_extensions()  # also loads Pillow's plugins, which must not be left to threads
    return {suffix: name for suffix, name in found.items() if name in Image.OPEN and name not in _NO_IMAGES}


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
        try:
            with Image.open(path, formats=sorted(set(formats().values()))) as image:
                image.draft(None, (2 * max(self.size),) * 2)  # a JPEG of many pixels is read at a half, a quarter, ...
                image.load()
                turned = ImageOps.exif_transpose(image)
        except Exception as error:  # what a decoder raises on damaged bytes is as varied as the decoders
            raise DataError(
                f"{path}: can't be read as an image ({type(error).__name__}: {error}); mend it or take it away"
            ) from error
        return self.array(turned, str(path))

    def array(self, image: Image.Image, name: str) -> NDArray[np.uint8]:
        """An image as [1, C, h, w]. Raises DataError where it can't be shown in 8 bits."""
        try:
            plain = opaque(image).convert(self.mode)
        except ValueError as error:
            raise DataError(f"{name}: an image of mode {image.mode} can't be made {self.mode} ({error})") from error
        height, width = self.size
        if plain.size != (width, height):
            plain = self._fitted(plain, (width, height))
        made: NDArray[np.uint8] = np.asarray(plain).reshape(1, height, width, -1).transpose(0, 3, 1, 2)
        return made

    def _fitted(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Resized by Pillow's BILINEAR, which averages over all pixels that a smaller one covers."""
        if self.fit == "crop":
            return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        if self.fit == "pad":
            return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color="white")
        return image.resize(size, Image.Resampling.BILINEAR)


def opaque(image: Image.Image) -> Image.Image:
    """The image in 8 bits a channel and on white where it is transparent.

    Raises:
        ValueError: of numbers whose range isn't known: 32-bit ones beyond 65535, floats beyond 1.
    """
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values are {values.min()} to {values.max()}, expected 16 bits, 0 to 65535")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        floats = np.asarray(image)
        if not (np.isfinite(floats).all() and floats.min() >= 0 and floats.max() <= 1):
            raise ValueError(f"values are {floats.min():.4g} to {floats.max():.4g}, expected floats of 0 to 1")
        return Image.fromarray((floats * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image


def prepare(raw: Any, form: Form) -> Tensor:
    """Images as inputs [n, C, h, w] within [0, 1].

    Args:
        raw: a path, a Pillow image, a uint8 array or tensor, or a sequence of any of these. Arrays are [h, w],
            [h, w, c] or [c, h, w], [n, h, w, c] or [n, c, h, w]; c is 1, 3 or 4, and the last axis where either might
            be it.
            Float arrays [n, C, h, w] within [0, 1] are taken for inputs already and left alone.

    Raises:
        DataError: a file is missing or no image, or an array has another shape or type; names it.
    """
    if isinstance(raw, str | os.PathLike):
        return _inputs([form.decode(Path(raw))])
    if isinstance(raw, Image.Image):
        return _inputs([form.array(ImageOps.exif_transpose(raw), "image")])
    if isinstance(raw, Tensor | np.ndarray):
        return _array(raw.detach().cpu().numpy() if isinstance(raw, Tensor) else raw, form)
    if isinstance(raw, Iterable):
        parts = [prepare(item, form) for item in raw]
        if parts:
            return torch.cat(parts)
    raise DataError(
        f"imagefolder: can't prepare {type(raw).__name__}; expected a path, an image, a uint8 array, or some of them"
    )


def _array(values: Any, form: Form) -> Tensor:
    shape = values.shape
    if np.issubdtype(values.dtype, np.floating):
        if shape[1:] == form.shape and (np.abs(values - 0.5) <= 0.5).all():
            return torch.from_numpy(np.array(values, np.float32))
        raise DataError(
            f"imagefolder: can't prepare floats of shape {list(shape)}; expected inputs [n, "
            f"{', '.join(map(str, form.shape))}] within [0, 1], or images as uint8"
        )
    channels = (1, 3, 4)
    if values.dtype == np.uint8 and values.size:
        if values.ndim == 2:
            values = values[None, :, :, None]
        elif values.ndim == 3:
            values = values[None]
        if values.ndim == 4 and values.shape[-1] not in channels and values.shape[1] in channels:
            values = values.transpose(0, 2, 3, 1)
        if values.ndim == 4 and values.shape[-1] in channels:
            plain = [np.ascontiguousarray(v[..., 0] if v.shape[-1] == 1 else v) for v in values]
            return _inputs([form.array(Image.fromarray(v), "array") for v in plain])
    raise DataError(
        f"imagefolder: can't prepare {values.dtype} of shape {list(shape)}; expected uint8 [h, w], [h, w, c] or "
        "[n, h, w, c] with 1, 3 or 4 channels, last or before the height"
    )


def _inputs(images: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.concatenate(images).astype(np.float32)).div_(255)
