"""Change training images at random by the transforms of torchvision; all random numbers follow from keys.

Letters: n images, C channels, h height, w width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot import randomness
from kshot.errors import DataError, Unavailable

Change = Literal["flip", "crop", "rotate", "colour"]

CHANGES: tuple[Change, ...] = ("flip", "crop", "rotate", "colour")

AREA = (0.6, 1.0)
"""Least and greatest share of an image's area that a crop has."""

ASPECT = (3 / 4, 4 / 3)
"""Least and greatest quotient of the width and the height of a crop, relative to that of the image."""

ANGLE = 15.0
"""Greatest angle of a rotation in degrees."""

STRENGTH = (0.7, 1.3)
"""Least and greatest factor of brightness, contrast and saturation."""


@frozen
class Augmentation:
    """Change each image at random, in the order of ``CHANGES``.

    Attributes:
        changes: ``flip`` (left and right, half of the images), ``crop`` (a part, resized), ``rotate`` and ``colour``
            (brightness, contrast and saturation).

    Raises:
        DataError: a change is unknown.
        Unavailable: torchvision is not installed.

    Example:
        >>> flip = Augmentation(("flip",))
        >>> keys = randomness.episode_keys(0, "train", range(8))
        >>> len({tuple(x.flatten().tolist()) for x in flip(torch.tensor([[[[0.0, 1.0]]]]).expand(8, 1, 1, 2), keys)})
        2
    """

    changes: tuple[Change, ...]

    def __attrs_post_init__(self) -> None:
        if unknown := [change for change in self.changes if change not in CHANGES]:
            raise DataError(f"augment: got {unknown[0]!r}, expected some of {', '.join(CHANGES)}")
        transforms()

    def __call__(self, x: Tensor, keys: randomness.U64) -> Tensor:
        """Return changed images.

        Args:
            x: images [n, C, h, w] within [0, 1].
            keys: of the images [n].
        """
        T = transforms()
        changed = list(x)
        if "flip" in self.changes:
            for i, u in enumerate(randomness.uniform(keys, "flip", 1)[:, 0]):
                changed[i] = T.horizontal_flip(changed[i]) if u < 0.5 else changed[i]
        if "crop" in self.changes:
            h, w = x.shape[-2:]
            for i, (top, left, height, width) in enumerate(crops(keys, h, w)):
                changed[i] = T.resized_crop(changed[i], top, left, height, width, [h, w], antialias=True)
        if "rotate" in self.changes:
            for i, u in enumerate(randomness.uniform(keys, "rotate", 1)[:, 0]):
                # The corners get the mean colour of the image, as black would show the angle. It is subtracted first,
                # because torchvision's own fill has a dark seam.
                mean, angle = changed[i].mean((-2, -1), keepdim=True), ANGLE * (2 * float(u) - 1)
                bilinear = T.InterpolationMode.BILINEAR
                changed[i] = T.rotate(changed[i] - mean, angle, interpolation=bilinear) + mean
        if "colour" in self.changes:
            low, high = STRENGTH
            for i, factors in enumerate(low + (high - low) * randomness.uniform(keys, "colour", 3)):
                brightness, contrast, saturation = map(float, factors)
                changed[i] = T.adjust_contrast(T.adjust_brightness(changed[i], brightness), contrast)
                if len(changed[i]) == 3:
                    changed[i] = T.adjust_saturation(changed[i], saturation)
        return torch.stack(changed).clamp(0, 1)


def crops(keys: randomness.U64, h: int, w: int) -> NDArray[np.int64]:
    """Return the top, the left, the height and the width of a crop for each key [n, 4], within h x w pixels.

    Example:
        >>> bool((crops(randomness.episode_keys(0, "train", range(9)), 6, 6)[:, 2:] >= 4).all())
        True
    """
    u = randomness.uniform(keys, "crop", 4)
    area = AREA[0] + (AREA[1] - AREA[0]) * u[:, 0]
    low, high = map(math.log, ASPECT)
    aspect = np.exp(low + (high - low) * u[:, 1])  # so that wide and tall crops are equally frequent
    height = np.clip(np.rint(h * np.sqrt(area / aspect)), 1, h).astype(np.int64)
    width = np.clip(np.rint(w * np.sqrt(area * aspect)), 1, w).astype(np.int64)
    top = np.floor(u[:, 2] * (h - height + 1)).astype(np.int64)
    left = np.floor(u[:, 3] * (w - width + 1)).astype(np.int64)
    return np.stack([top, left, height, width], 1)


def transforms() -> Any:
    """Return the functions of torchvision's transforms.

    Raises:
        Unavailable: torchvision is not installed.
    """
    try:
        import torchvision.transforms.v2.functional as functional
    except ImportError as error:
        raise Unavailable(
            "imagefolder: augment: needs torchvision, which is not installed: pip install kshot-imagefolder[augment]"
        ) from error
    return functional


def augmentation(changes: Sequence[str]) -> Augmentation | None:
    """Return the augmentation that an option names, or None if it names no changes.

    Raises:
        DataError, Unavailable: see ``Augmentation``.
    """
    return Augmentation(tuple(changes)) if len(changes) else None  # type: ignore[arg-type]
