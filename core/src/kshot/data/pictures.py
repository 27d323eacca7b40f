"""Make inputs of a user's own pictures (files, images and arrays), by the same rules for all plugins.

What becomes of a picture then (grey, cropped, smaller) is the plugin's business. Needs the extra ``kshot[pictures]``
(pillow), for which a plugin that uses this module asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from kshot._pixels import opaque
from kshot.data.files import check_regular, named
from kshot.errors import DataError

__all__ = ["Shape", "decode", "formats", "inputs", "named_picture", "opaque", "read"]

Shape = tuple[int, int, int]
"""Channels, height and width."""

_CHANNELS = (1, 3, 4)
# Formats that Pillow recognises but can't decode, those that need another program, and one that runs a script (EPS).
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def formats() -> dict[str, str]:
    """Return suffix -> format for all formats that this installation of Pillow decodes.

    Example:
        >>> formats()[".png"], ".eps" in formats()
        ('PNG', False)
    """
    registered = Image.registered_extensions()  # also loads Pillow's plugins, which must not be left to threads
    return {suffix: name for suffix, name in registered.items() if name in Image.OPEN and name not in _NO_PICTURES}


def read(path: Path, *, least: int | None = None) -> Image.Image:
    """Read the picture in a file: 8 bits per channel, opaque, and turned upright as its EXIF orientation says.

    Of an animation or a file of several pages it is the first picture.

    Args:
        path: the file.
        least: pixels per side that are needed. A JPEG with at least twice as many is then read at a half, a quarter or
            an eighth of its size, which is faster.

    Raises:
        DataError: the file can't be read, or its values have no known range. The message names it.
    """
    check_regular(path, "an image")
    with named_picture(path):
        with Image.open(path, formats=sorted(set(formats().values()))) as image:
            if least is not None:
                image.draft(None, (2 * least,) * 2)
            image.load()
            turned = ImageOps.exif_transpose(image)
        return opaque(turned, str(path))


def decode(
    path: Path, made: Callable[[Image.Image], NDArray[np.uint8]], *, least: int | None = None
) -> NDArray[np.uint8]:
    """Read the picture in a file, and return what a plugin's function makes of it.

    Args:
        path: the file.
        made: a function from a Pillow image (8 bits per channel, opaque) to its pixels.
        least: see ``read``.

    Raises:
        DataError: the file can't be read, or its picture can't be converted. The message names the file.
    """
    image = read(path, least=least)
    with named_picture(path):
        return made(image)


def named_picture(name: Path | str) -> AbstractContextManager[None]:
    """Turn whatever reading or converting a picture raises into a ``DataError`` that names the picture.

    Args:
        name: the file, or where the picture is from.

    Example:
        >>> with named_picture("a.png"):
        ...     raise ValueError("cut off")
        Traceback (most recent call last):
        kshot.errors.DataError: a.png: got a file that can't be read as an image (ValueError: cut off), expected an \
image; fix or remove it
    """
    return named(name, "can't be read as an image", "an image")


def inputs(raw: Any, made: Callable[[Image.Image], NDArray[np.uint8]], shape: Shape, *, who: str) -> Tensor:
    """Make inputs [n, *shape], float32 within [0, 1], of raw pictures.

    Args:
        raw: a path, a Pillow image, a uint8 array or tensor, or a sequence of any of these. Arrays are [h, w],
            [h, w, c], [n, h, w, c] or [n, c, h, w], with c equal to 1, 3 or 4. An array of three axes whose last is not
            c is [n, h, w] if inputs are grey, else [c, h, w]. Float arrays [n, *shape] within [0, 1] are taken to be
            inputs already and returned unchanged.
        made: the plugin's function from a Pillow image (8 bits per channel, opaque) to its pixels, uint8 [*shape].
        shape: shape of an input.
        who: the plugin's name, for messages.

    Raises:
        DataError: a file is missing or is not a picture, or an array has another shape or type. The message names it.

    Example:
        >>> def grey(image: Image.Image) -> NDArray[np.uint8]:
        ...     return np.asarray(image.convert("L"))[None]
        >>> inputs([Image.new("RGB", (2, 1), "white"), np.zeros((1, 2), np.uint8)], grey, (1, 1, 2), who="me").tolist()
        [[[[1.0, 1.0]]], [[[0.0, 0.0]]]]
    """
    if isinstance(raw, str | os.PathLike):
        return _scaled([decode(Path(raw), made, least=max(shape[1:]))])
    if isinstance(raw, Image.Image):
        # An image that was opened and not loaded yet is decoded only here.
        with named_picture(getattr(raw, "filename", "") or f"{who}: image"):
            return _scaled([made(opaque(ImageOps.exif_transpose(raw)))])
    if isinstance(raw, Tensor | np.ndarray):
        values = raw.detach().cpu().numpy() if isinstance(raw, Tensor) else raw
        if np.issubdtype(values.dtype, np.floating):
            return _check_inputs(values, shape, who)
        return _scaled([made(opaque(picture)) for picture in _pictures(values, shape, who)])
    if isinstance(raw, Iterable):
        prepared = [inputs(item, made, shape, who=who) for item in raw]
        if prepared:
            return torch.cat(prepared)
    raise DataError(
        f"{who}: got {'an empty ' * isinstance(raw, Iterable)}{type(raw).__name__} to prepare, expected a path, an "
        "image, a uint8 array, or a sequence of these; give some"
    )


def _check_inputs(values: NDArray[Any], shape: Shape, who: str) -> Tensor:
    """Return floats that are inputs already, and refuse other floats."""
    if values.shape[1:] == shape and (np.abs(values - 0.5) <= 0.5).all():
        return torch.from_numpy(np.array(values, np.float32))
    raise DataError(
        f"{who}: got floats of shape {list(values.shape)} to prepare, expected inputs [n, "
        f"{', '.join(map(str, shape))}] within [0, 1]; or give pictures as uint8"
    )


def _pictures(values: NDArray[Any], shape: Shape, who: str) -> list[Image.Image]:
    """Return the pictures in an array of one or several, whatever the order of its axes."""
    stack = values
    if values.dtype == np.uint8 and values.size:
        if stack.ndim == 2:
            stack = stack[None, :, :, None]
        elif stack.ndim == 3:
            is_one = stack.shape[-1] in _CHANNELS or shape[0] != 1  # [h, w, c] or [c, h, w]; else [n, h, w]
            stack = stack[None] if is_one else stack[..., None]
        if stack.ndim == 4 and stack.shape[-1] not in _CHANNELS and stack.shape[1] in _CHANNELS:
            stack = stack.transpose(0, 2, 3, 1)  # channels last, as Pillow has them
        if stack.ndim == 4 and stack.shape[-1] in _CHANNELS:
            plain = (picture[..., 0] if picture.shape[-1] == 1 else picture for picture in stack)
            return [Image.fromarray(np.ascontiguousarray(picture)) for picture in plain]
    raise DataError(
        f"{who}: got {values.dtype} of shape {list(values.shape)} to prepare, expected uint8 [h, w], [h, w, c], "
        f"[n, h, w, c] or [n, c, h, w] with 1, 3 or 4 channels{', or [n, h, w]' if shape[0] == 1 else ''}"
    )


def _scaled(pixels: list[NDArray[np.uint8]]) -> Tensor:
    """Stack pixels of 0 to 255 as floats of 0 to 1."""
    return torch.from_numpy(np.stack(pixels).astype(np.float32)).div_(255)
