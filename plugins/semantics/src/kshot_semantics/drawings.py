"""Geometric attributes of drawings: the amount of ink, the number of parts and holes, the width, directions, ...

The functions take images [n, H, W] with ink 1 on paper 0, and return one number [n] or several [n, m] per image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]

INK = 0.35
"""The least value of a pixel that counts as ink, for parts, holes, extents and crossings."""

BANDS = 4
"""The number of bands across an image, and of directions of strokes, whose share of the ink is an attribute."""

ATTRIBUTES: tuple[str, ...] = (
    "ink", "parts", "holes", "width", "height", "centre across", "centre down", "spread across", "spread down", "tilt",
    "crossings across", "crossings down", "mirrored left to right", "mirrored top to bottom", "turned by half",
    *(f"column band {b}" for b in range(BANDS)),
    *(f"row band {b}" for b in range(BANDS)),
    *(f"strokes at {180 * b // BANDS} degrees" for b in range(BANDS)),
)  # fmt: skip


def attributes(images: Array) -> Array:
    """Compute the attributes [n, A] of images [n, H, W], in the order of ``ATTRIBUTES``; all are finite."""
    ink = images >= INK
    parts = [
        images.mean((1, 2)),
        components(ink, corners=True),
        holes(ink),
        extent(np.any(ink, axis=1)),
        extent(np.any(ink, axis=2)),
        moments(images),
        crossings(ink),
        crossings(ink.swapaxes(1, 2)),
        symmetry(images, images[:, :, ::-1]),
        symmetry(images, images[:, ::-1]),
        symmetry(images, images[:, ::-1, ::-1]),
        bands(images.sum(1)),
        bands(images.sum(2)),
        directions(images),
    ]
    return np.column_stack([np.asarray(part, np.float64) for part in parts])


def components(ink: NDArray[np.bool_], *, corners: bool) -> NDArray[np.int64]:
    """Count the connected parts of each image [n]; with ``corners``, pixels that touch at a corner are connected."""
    structure = np.zeros((3, 3, 3), bool)  # no connection from one image to the next
    structure[1] = ndimage.generate_binary_structure(2, 2 if corners else 1)
    labels, count = ndimage.label(ink, structure)
    # The labels run through all images: note the image of each label, and count the labels per image.
    image_of = np.zeros(count + 1, np.int64)
    image_of[labels] = np.arange(len(ink))[:, None, None]
    return np.bincount(image_of[1:], minlength=len(ink))


def holes(ink: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the parts of the paper that ink encloses [n]; paper that touches at a corner only is not connected."""
    # A margin of paper joins everything outside into one part, which is not a hole.
    return components(np.pad(~ink, ((0, 0), (1, 1), (1, 1)), constant_values=True), corners=False) - 1


def extent(marked: NDArray[np.bool_]) -> Array:
    """Return the distance from the first to the last marked place [n, side], as a share of the side [n]."""
    side = marked.shape[1]
    length = side - marked.argmax(1) - marked[:, ::-1].argmax(1)
    shares: Array = np.where(marked.any(1), length, 0) / side
    return shares


def moments(images: Array) -> Array:
    """Return the ink's centre across and down, its standard deviations and its correlation [n, 5].

    Centre and standard deviations are in units of the image's sides.
    """
    _, H, W = images.shape
    across, down = (np.arange(W) + 0.5) / W, (np.arange(H) + 0.5) / H
    mass = np.maximum(images.sum((1, 2)), 1e-9)
    by_column, by_row = images.sum(1) / mass[:, None], images.sum(2) / mass[:, None]
    x, y = by_column @ across, by_row @ down
    spread_x = np.sqrt(np.maximum(by_column @ across**2 - x**2, 0))
    spread_y = np.sqrt(np.maximum(by_row @ down**2 - y**2, 0))
    joint = np.einsum("nhw,h,w->n", images, down, across) / mass - x * y
    return np.column_stack([x, y, spread_x, spread_y, joint / np.maximum(spread_x * spread_y, 1e-6)])


def crossings(ink: NDArray[np.bool_]) -> Array:
    """Return how many strokes a line across the image crosses: the mean over the rows with ink [n]."""
    # A stroke begins where a pixel has ink and its left neighbour has none.
    runs = ink[:, :, 0].astype(int) + (ink[:, :, 1:] & ~ink[:, :, :-1]).sum(2)
    crossed: Array = runs.sum(1) / np.maximum(ink.any(2).sum(1), 1)
    return crossed


def symmetry(images: Array, mirrored: Array) -> Array:
    """Return the cosine of the images and their mirrored images [n]: how much of the ink lies on mirrored ink."""
    cosine: Array = (images * mirrored).sum((1, 2)) / np.maximum((images**2).sum((1, 2)), 1e-9)
    return cosine


def bands(profile: Array) -> Array:
    """Return the share of the ink in each of four bands of equal width [n, BANDS].

    Args:
        profile: the ink in each column or row [n, side].
    """
    parts = np.column_stack([part.sum(1) for part in np.array_split(profile, BANDS, axis=1)])
    shares: Array = parts / np.maximum(profile.sum(1), 1e-9)[:, None]
    return shares


def directions(images: Array) -> Array:
    """Return the share of strokes in each of four directions [n, BANDS]: 0 degrees (along a row), then anticlockwise.

    A stroke is perpendicular to the gradient of the ink, and opposite directions count as one. A gradient between two
    of the four directions is divided between them by linear interpolation.
    """
    down, across = np.gradient(images, axis=(1, 2))
    strength = np.hypot(across, down)
    angle = (np.arctan2(-down, across) + np.pi / 2) % np.pi  # rows count downwards, angles anticlockwise
    place = angle / (np.pi / BANDS)  # from 0 to BANDS, where BANDS is 0 again
    apart = np.abs((place[..., None] - np.arange(BANDS) + BANDS / 2) % BANDS - BANDS / 2)  # distance on the circle
    strokes = (np.maximum(1 - apart, 0) * strength[..., None]).sum((1, 2))
    shares: Array = strokes / np.maximum(strokes.sum(1, keepdims=True), 1e-9)
    return shares
