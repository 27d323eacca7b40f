"""Make inputs of a user's own pictures, by the same steps as those of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kshot.data import pictures
from kshot.data.folders import reads
from kshot_omniglot.decode import ink


@reads(pictures.formats)
def prepare(raw: Any, size: int) -> Tensor:
    """Make inputs [n, 1, size, size], ink 1 on paper 0, of pictures of dark ink on light paper.

    Args:
        raw: paths, images, uint8 arrays, or a sequence of these, see ``kshot.data.pictures.inputs``. Transparent pixels
            are paper.
        size: pixels per side. A picture that isn't square is squeezed.

    Raises:
        DataError: a file is missing or is not a picture, or an array has another shape or type. The message names it.

    Example:
        >>> prepare(Image.new("L", (105, 105), 255), 28).shape
        torch.Size([1, 1, 28, 28])
    """

    def pixels(image: Image.Image) -> NDArray[np.uint8]:
        return np.frombuffer(ink(image, size), np.uint8).reshape(1, size, size)

    return pictures.inputs(raw, pixels, (1, size, size), who="omniglot")
