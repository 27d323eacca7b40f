"""Turn Pillow's images into numbers, by one rule for every place that accepts them.

Importing this module imports Pillow, which the core needs only if it is given its images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kshot.errors import DataError

_CONVERTIBLE = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}  # Pillow makes greys and colours of these modes
_GREY = ("1", "L", "LA", "La", "F")


def opaque(image: Image.Image, name: str = "image") -> Image.Image:
    """Return a picture in 8 bits per channel, with white behind transparent pixels; 16-bit and float greys are scaled.

    A picture in a colour space from which Pillow can't make greys, such as LAB, becomes RGB.

    Args:
        image: the picture, in any of Pillow's modes.
        name: of the picture, for messages.

    Raises:
        DataError: its values have no known range: integers outside 0 to 65535, or floats outside 0 to 1.

    Example:
        >>> opaque(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).convert("L").getpixel((0, 0))
        255
    """
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion to 8 bits clips at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(
                f"{name}: got values from {values.min()} to {values.max()}, expected 16 bits, 0 to 65535; save it in 8 "
                "or 16 bits"
            )
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        floats = np.asarray(image)
        if not (np.isfinite(floats).all() and floats.min() >= 0 and floats.max() <= 1):
            raise DataError(
                f"{name}: got values from {floats.min():.4g} to {floats.max():.4g}, expected floats of 0 to 1; save it "
                "in 8 or 16 bits"
            )
        return Image.fromarray((floats * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        foreground = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", foreground.size, "white"), foreground)
    return image if image.mode in _CONVERTIBLE else image.convert("RGB")


def channels_first(image: Image.Image, name: str = "image") -> NDArray[np.uint8]:
    """Return a picture as uint8 [channels, height, width], upright and opaque; a grey picture has one channel.

    Args:
        image: the picture, in any of Pillow's modes.
        name: of the picture, for messages.

    Raises:
        DataError: see ``opaque``.

    Example:
        >>> channels_first(Image.new("RGB", (2, 1), "white")).shape
        (3, 1, 2)
    """
    grey = image.mode in _GREY or image.mode.startswith("I")
    pixels = np.asarray(opaque(ImageOps.exif_transpose(image), name).convert("L" if grey else "RGB"))
    return np.ascontiguousarray(pixels[None] if grey else pixels.transpose(2, 0, 1))
