"""A user's own pictures as inputs, by the same steps as the data's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kshot.errors import DataError
from kshot_omniglot.decode import ink


def prepare(raw: Any, size: int) -> Tensor:
    """Pictures of dark ink on light paper as inputs [n, 1, size, size], ink 1 on paper 0.

    Args:
        raw: a path, a Pillow image, a uint8 array or tensor [h, w], [n, h, w] or [n, 1, h, w], or a sequence of any
            of these. Float arrays [n, 1, size, size] within [0, 1] are taken for inputs already and left alone.
        size: pixels a side. A picture that isn't square is squeezed.

    Raises:
        DataError: a file is missing or no picture, or an array has another shape or type; names it.
    """
    if isinstance(raw, str | Path):
        return _inputs([_read(Path(raw))], size)
    if isinstance(raw, Image.Image):
        return _inputs([raw], size)
    if isinstance(raw, Tensor | np.ndarray):
        return _array(raw.detach().cpu().numpy() if isinstance(raw, Tensor) else raw, size)
    if isinstance(raw, Iterable):
        parts = [prepare(item, size) for item in raw]
        if parts:
            return torch.cat(parts)
    raise DataError(
        f"omniglot: can't prepare {type(raw).__name__}; expected a path, an image, a uint8 array, or some of them"
    )


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: can't be read as a picture ({type(error).__name__}: {error})") from error


def _array(values: Any, size: int) -> Tensor:
    if np.issubdtype(values.dtype, np.floating):
        if values.ndim == 4 and values.shape[1:] == (1, size, size) and (np.abs(values - 0.5) <= 0.5).all():
            return torch.from_numpy(np.array(values, np.float32))
        raise DataError(
            f"omniglot: can't prepare floats of shape {list(values.shape)}; expected inputs [n, 1, {size}, {size}] "
            "within [0, 1], or pictures as uint8, dark ink on light paper"
        )
    stack = values[None] if values.ndim == 2 else values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values
    if values.dtype != np.uint8 or stack.ndim != 3 or 0 in stack.shape:
        raise DataError(
            f"omniglot: can't prepare {values.dtype} of shape {list(values.shape)}; expected uint8 [h, w], [n, h, w] "
            "or [n, 1, h, w], dark ink on light paper"
        )
    return _inputs([Image.fromarray(np.ascontiguousarray(picture)) for picture in stack], size)


def _inputs(images: list[Image.Image], size: int) -> Tensor:
    made = b"".join(ink(_on_paper(image), size) for image in images)
    pixels = np.frombuffer(made, np.uint8).reshape(-1, 1, size, size)
    return torch.from_numpy(pixels.astype(np.float32)).div_(255)


def _on_paper(image: Image.Image) -> Image.Image:
    """What is transparent is paper; 16-bit greys become 8-bit ones instead of being cut off at 255."""
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    return image
