"""A user's own pictures as inputs, by the same steps as the data's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kshot.data import pictures
from kshot_omniglot.decode import ink


def prepare(raw: Any, size: int) -> Tensor:
    """Pictures of dark ink on light paper as inputs [n, 1, size, size], ink 1 on paper 0.

    Args:
        raw: paths, images, uint8 arrays, or some of them, see ``kshot.data.pictures.inputs``; transparent pixels are
            paper.
        size: pixels a side. A picture that isn't square is squeezed.

    Raises:
        DataError: a file is missing or no picture, or an array has another shape or type; names it.
    """

    def made(image: Image.Image) -> NDArray[np.uint8]:
        return np.frombuffer(ink(image, size), np.uint8).reshape(1, size, size)

    return pictures.inputs(raw, made, (1, size, size), who="omniglot")
