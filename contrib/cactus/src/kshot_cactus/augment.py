"""Distort examples at random, as pure functions of inputs and a generator: views of which SimCLR learns.

Letters: n examples; a picture is [C, H, W]. All random numbers come from the generator, on the CPU, so they are the
same on every device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 4
"""Points along each side of a picture whose displacements are drawn; those between them are interpolated."""


def uniform(n: int, bound: float, generator: torch.Generator) -> Tensor:
    """Draw n numbers that are uniform in [-bound, bound)."""
    return bound * (2 * torch.rand(n, generator=generator) - 1)


def affine_maps(
    n: int, rotation: float, scale: float, shear: float, shift: float, generator: torch.Generator
) -> Tensor:
    """Draw n affine maps [n, 2, 3] of the coordinates of a picture, which are in [-1, 1].

    A map rotates by an angle a, shears the x axis by s, scales the axes by e^u and e^v, and shifts by (p, q):
    [[e^u cos a, e^u (s cos a - sin a), 2 p], [e^v sin a, e^v (s sin a + cos a), 2 q]].

    Args:
        n: number of maps.
        rotation: greatest angle, in degrees.
        scale: greatest u and v.
        shear: greatest s.
        shift: greatest p and q, as a share of the side.
        generator: the source of random numbers.
    """
    angle = uniform(n, math.radians(rotation), generator)
    slant = uniform(n, shear, generator)
    wide, high = uniform(n, scale, generator).exp(), uniform(n, scale, generator).exp()
    right, down = uniform(n, 2 * shift, generator), uniform(n, 2 * shift, generator)
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack([wide * cos, wide * (slant * cos - sin), right], 1)
    second = torch.stack([high * sin, high * (slant * sin + cos), down], 1)
    return torch.stack([first, second], 1)


def distorted(x: Tensor, maps: Tensor, bend: Tensor | None = None) -> Tensor:
    """Return pictures ``x`` [n, C, H, W], sampled at other coordinates; outside of a picture there are zeros.

    Args:
        x: the pictures.
        maps: affine maps of the coordinates [n, 2, 3].
        bend: displacements [n, 2, GRID, GRID] on a grid over the picture, which are added between its points too.
    """
    grid = F.affine_grid(maps.to(x), list(x.shape), align_corners=False)  # [n, H, W, 2]
    if bend is not None:
        smooth = F.interpolate(bend.to(x), x.shape[2:], mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, align_corners=False)


def picture_view(
    x: Tensor, generator: torch.Generator, *, rotation: float, scale: float, shear: float, shift: float, bend: float
) -> Tensor:
    """Distort each picture of ``x`` [n, C, H, W] by its own random affine map and a smooth random displacement.

    Args:
        x: the pictures.
        generator: the source of random numbers.
        rotation, scale, shear, shift: see ``affine_maps``.
        bend: standard deviation of the displacements of a grid of points, where a picture is 2 wide; 0 for none.

    Example:
        >>> still = dict(rotation=0.0, scale=0.0, shear=0.0, shift=0.0, bend=0.0)
        >>> x = torch.rand(2, 1, 5, 5)
        >>> bool(torch.allclose(picture_view(x, torch.Generator(), **still), x, atol=1e-5))
        True
    """
    maps = affine_maps(len(x), rotation, scale, shear, shift, generator)
    displacements = bend * torch.randn(len(x), 2, GRID, GRID, generator=generator) if bend else None
    return distorted(x, maps, displacements)


def vector_view(x: Tensor, generator: torch.Generator, *, noise: float) -> Tensor:
    """Add Gaussian noise to inputs ``x`` [n, *input].

    The standard deviation of the noise is ``noise`` times that of each number of an input over the n examples.

    Example:
        >>> vector_view(torch.ones(3, 2), torch.Generator(), noise=1.0).tolist()  # ones do not vary
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    spread = x.std(0, correction=0)
    return x + noise * spread * torch.randn(x.shape, generator=generator).to(x)
