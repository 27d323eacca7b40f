"""A description of drawings by geometry: how much ink, how many parts and holes, how wide, which directions, ...

Functions of images [n, H, W], ink 1 on paper 0, that give [n] or [n, some].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]

INK = 0.35
"""From which value on a pixel counts as ink where parts, holes, extents and crossings are counted."""

BANDS = 4
"""Bands of an image whose share of the ink is told, and directions of strokes."""

ATTRIBUTES: tuple[str, ...] = (
    "ink", "parts", "holes", "width", "height", "centre across", "centre down", "spread across", "spread down", "tilt",
    "crossings across", "crossings down", "mirrored left to right", "mirrored top to bottom", "turned by half",
    *(f"column band {b}" for b in range(BANDS)),
    *(f"row band {b}" for b in range(BANDS)),
    *(f"strokes at {180 * b // BANDS} degrees" for b in range(BANDS)),
)  # fmt: skip


def attributes(images: Array) -> Array:
    """Images [n, H, W] -> the numbers that ``ATTRIBUTES`` names [n, A]; finite for a blank image too."""
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
    """Connected parts of each image; pixels that touch at a corner are connected where ``corners``."""
    structure = np.zeros((3, 3, 3), bool)  # nothing is connected across images
    structure[1] = ndimage.generate_binary_structure(2, 2 if corners else 1)
    labels, count = ndimage.label(ink, structure)
    image_of = np.zeros(count + 1, np.int64)
    image_of[labels] = np.arange(len(ink))[:, None, None]
    return np.bincount(image_of[1:], minlength=len(ink))


def holes(ink: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Parts of the paper that ink shuts in: not connected with the outside, corners not counting."""
    return components(np.pad(~ink, ((0, 0), (1, 1), (1, 1)), constant_values=True), corners=False) - 1


def extent(marked: NDArray[np.bool_]) -> Array:
    """From the first marked place to the last [n, side] -> share of the side [n]."""
    side = marked.shape[1]
    length = side - marked.argmax(1) - marked[:, ::-1].argmax(1)
    made: Array = np.where(marked.any(1), length, 0) / side
    return made


def moments(images: Array) -> Array:
    """Centre of the ink across and down, its standard deviations (all in sides), and their correlation [n, 5]."""
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
    """Strokes that a line across the image crosses: the mean over rows with ink [n]."""
    runs = ink[:, :, 0].astype(int) + (ink[:, :, 1:] & ~ink[:, :, :-1]).sum(2)
    made: Array = runs.sum(1) / np.maximum(ink.any(2).sum(1), 1)
    return made


def symmetry(images: Array, mirrored: Array) -> Array:
    """How much of the ink lies on ink of the mirrored image: their cosine [n]."""
    made: Array = (images * mirrored).sum((1, 2)) / np.maximum((images**2).sum((1, 2)), 1e-9)
    return made


def bands(profile: Array) -> Array:
    """Ink by column or row [n, side] -> the share in each of four bands of equal width [n, BANDS]."""
    parts = np.column_stack([part.sum(1) for part in np.array_split(profile, BANDS, axis=1)])
    made: Array = parts / np.maximum(profile.sum(1), 1e-9)[:, None]
    return made


def directions(images: Array) -> Array:
    """The share of strokes in each of four directions [n, BANDS], 0 degrees first: along a row, and on anticlockwise.

    A stroke runs across the gradient of the ink; opposite directions are one. Each direction takes from those within 45
    degrees, the nearer the more.
    """
    down, across = np.gradient(images, axis=(1, 2))
    strength = np.hypot(across, down)
    angle = (np.arctan2(-down, across) + np.pi / 2) % np.pi  # rows count downwards, angles anticlockwise
    place = angle / (np.pi / BANDS)  # 0 to BANDS, around
    apart = np.abs((place[..., None] - np.arange(BANDS) + BANDS / 2) % BANDS - BANDS / 2)
    found = (np.maximum(1 - apart, 0) * strength[..., None]).sum((1, 2))
    made: Array = found / np.maximum(found.sum(1, keepdims=True), 1e-9)
    return made
