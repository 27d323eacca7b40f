"""A user's own pictures as inputs: files, images and arrays of whatever form, by one set of rules for all plugins.

What a picture then becomes (grey, cut, smaller) is the plugin's business. Needs the extra ``kshot[pictures]`` (pillow),
which a plugin that uses it asks for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from kshot.errors import DataError

Shape = tuple[int, int, int]
"""Channels, height and width."""

_CHANNELS = (1, 3, 4)
# Those that Pillow only recognises, those that need a program, and one that runs a script.
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def formats() -> dict[str, str]:
    """Suffix -> format, of all that Pillow decodes here."""
    found = Image.registered_extensions()  # also loads Pillow's plugins, which must not be left to threads
    return {suffix: name for suffix, name in found.items() if name in Image.OPEN and name not in _NO_PICTURES}


def read(path: Path, *, least: int | None = None) -> Image.Image:
    """The picture in a file (of an animation, the first), turned as its camera says, 8 bits a channel and opaque.

    Args:
        least: pixels a side that will do: a JPEG of many more is then read at a half, a quarter or an eighth.

    Raises:
        DataError: it can't be read, or its numbers have no known range; names it.
    """
    try:
        with Image.open(path, formats=sorted(set(formats().values()))) as image:
            if least is not None:
                image.draft(None, (2 * least,) * 2)
            image.load()
            turned = ImageOps.exif_transpose(image)
    except Exception as error:  # what a decoder raises on damaged bytes is as varied as the decoders
        raise DataError(
            f"{path}: can't be read as an image ({type(error).__name__}: {error}); mend it or take it away"
        ) from error
    return opaque(turned, str(path))


def opaque(image: Image.Image, name: str = "image") -> Image.Image:
    """The picture in 8 bits a channel, and on white where it is transparent; 16-bit greys are scaled and not clipped.

    Raises:
        DataError: its numbers have no known range: 32-bit ones beyond 65535, floats beyond 1; says ``name``.
    """
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{name}: has values from {values.min()} to {values.max()}, expected 16 bits, 0 to 65535; save it in 8 "
                "or 16 bits"
            )
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        floats = np.asarray(image)
        if not (np.isfinite(floats).all() and floats.min() >= 0 and floats.max() <= 1):
            raise DataError(
                f"{name}: has values from {floats.min():.4g} to {floats.max():.4g}, expected floats of 0 to 1; save it "
                "in 8 or 16 bits"
            )
        return Image.fromarray((floats * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image


def inputs(raw: Any, made: Callable[[Image.Image], NDArray[np.uint8]], shape: Shape, *, who: str) -> Tensor:
    """Raw pictures as inputs [n, *shape], float32 within [0, 1].

    Args:
        raw: a path, a Pillow image, a uint8 array or tensor, or a sequence of any of these. Arrays are [h, w],
            [h, w, c], [n, h, w, c] or [n, c, h, w], c being 1, 3 or 4; one of three axes of which the last is no c is
            [n, h, w] where inputs are grey, else [c, h, w]. Float arrays [n, *shape] within [0, 1] are taken for
            inputs already and left alone.
        made: what the plugin makes of a picture in 8 bits a channel, opaque: uint8 [*shape].
        shape: of an input.
        who: the plugin's name, for messages.

    Raises:
        DataError: a file is missing or no picture, or an array has another shape or type; names it.
    """
    if isinstance(raw, str | os.PathLike):
        return _scaled([made(read(Path(raw), least=max(shape[1:])))])
    if isinstance(raw, Image.Image):
        return _scaled([made(opaque(ImageOps.exif_transpose(raw)))])
    if isinstance(raw, Tensor | np.ndarray):
        values = raw.detach().cpu().numpy() if isinstance(raw, Tensor) else raw
        if np.issubdtype(values.dtype, np.floating):
            return _already(values, shape, who)
        return _scaled([made(opaque(picture)) for picture in _pictures(values, shape, who)])
    if isinstance(raw, Iterable):
        parts = [inputs(item, made, shape, who=who) for item in raw]
        if parts:
            return torch.cat(parts)
    raise DataError(
        f"{who}: can't prepare {type(raw).__name__}; expected a path, an image, a uint8 array, or some of them"
    )


def _already(values: NDArray[Any], shape: Shape, who: str) -> Tensor:
    if values.shape[1:] == shape and (np.abs(values - 0.5) <= 0.5).all():
        return torch.from_numpy(np.array(values, np.float32))
    raise DataError(
        f"{who}: can't prepare floats of shape {list(values.shape)}; expected inputs [n, "
        f"{', '.join(map(str, shape))}] within [0, 1], or pictures as uint8"
    )


def _pictures(values: NDArray[Any], shape: Shape, who: str) -> list[Image.Image]:
    stack = values
    if values.dtype == np.uint8 and values.size:
        if stack.ndim == 2:
            stack = stack[None, :, :, None]
        elif stack.ndim == 3:
            one = stack.shape[-1] in _CHANNELS or shape[0] != 1
            stack = stack[None] if one else stack[..., None]
        if stack.ndim == 4 and stack.shape[-1] not in _CHANNELS and stack.shape[1] in _CHANNELS:
            stack = stack.transpose(0, 2, 3, 1)
        if stack.ndim == 4 and stack.shape[-1] in _CHANNELS:
            plain = (picture[..., 0] if picture.shape[-1] == 1 else picture for picture in stack)
            return [Image.fromarray(np.ascontiguousarray(picture)) for picture in plain]
    raise DataError(
        f"{who}: can't prepare {values.dtype} of shape {list(values.shape)}; expected uint8 [h, w], [h, w, c], "
        f"[n, h, w, c] or [n, c, h, w] with 1, 3 or 4 channels{', or [n, h, w]' if shape[0] == 1 else ''}"
    )


def _scaled(pixels: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(pixels).astype(np.float32)).div_(255)
