"""The ways to degrade examples: functions of inputs [n, *input], a key for each input [n], and a strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from kshot.randomness import U64, normal, uniform

How = Literal["downsample", "noise", "blur", "occlude", "drop", "contrast"]


def downsample(x: Tensor, keys: U64, strength: float) -> Tensor:
    """Reduce images [n, C, H, W] to 1 - strength of the pixels of each side (at least one), and enlarge them again.

    Reduction is the mean over boxes, enlargement is bilinear interpolation. Fort (2017), section 5.
    """
    smaller = [max(1, round(side * (1 - strength))) for side in x.shape[2:]]
    return F.interpolate(F.adaptive_avg_pool2d(x, smaller), x.shape[2:], mode="bilinear", align_corners=False)  # type: ignore[arg-type]


def noise(x: Tensor, keys: U64, strength: float) -> Tensor:
    """Add Gaussian noise of standard deviation ``strength``, in the unit of the inputs."""
    return x + strength * torch.from_numpy(normal(keys, "noise", math.prod(x.shape[1:]))).to(x).view_as(x)


def blur(x: Tensor, keys: U64, strength: float) -> Tensor:
    """Blur images [n, C, H, W] by a Gaussian of standard deviation ``strength`` pixels; edge pixels are repeated."""
    # The kernel is cut off at three standard deviations. It is separable: filter the columns, then the rows.
    reach = max(1, math.ceil(3 * strength))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(x) / strength).square())
    weights = weights / weights.sum()
    planes = F.pad(x.flatten(0, 1).unsqueeze(1), [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).view_as(x)


def occlude(x: Tensor, keys: U64, strength: float) -> Tensor:
    """Set a rectangle at a random place in images [n, C, H, W] to 0.

    It has the proportions of the image and a share of ``strength`` of its area.
    """
    hidden = torch.ones(len(x), 1, 1, 1, dtype=torch.bool)
    for axis, draw in zip((2, 3), uniform(keys, "occlude", 2).T, strict=True):
        side = x.shape[axis]
        length = max(1, round(side * math.sqrt(strength)))
        first = torch.from_numpy((draw * (side - length + 1)).astype(int)).view(-1, 1)
        within = (torch.arange(side) >= first) & (torch.arange(side) < first + length)
        hidden = hidden & within.view(-1, 1, *((side, 1) if axis == 2 else (1, side)))
    return x.masked_fill(hidden.to(x.device), 0)


def drop(x: Tensor, keys: U64, strength: float) -> Tensor:
    """Set each value to 0 with probability ``strength``, independently of the others."""
    lost = uniform(keys, "drop", math.prod(x.shape[1:])) < strength
    return x.masked_fill(torch.from_numpy(lost).view_as(x), 0)


def contrast(x: Tensor, keys: U64, strength: float) -> Tensor:
    """Move each value towards the mean of its example, by ``strength`` of the distance."""
    mean = x.mean(tuple(range(1, x.ndim)), keepdim=True)
    return x + strength * (mean - x)


@frozen
class Way:
    """Describe one way to degrade examples.

    Attributes:
        apply: the function.
        usual: the default strength.
        share: whether the strength is a share, from 0 to 1.
        images: whether inputs must be images [C, H, W].
    """

    apply: Callable[[Tensor, U64, float], Tensor]
    usual: float
    share: bool
    images: bool


WAYS: Mapping[str, Way] = {
    "downsample": Way(downsample, 0.75, share=True, images=True),
    "noise": Way(noise, 0.5, share=False, images=False),
    "blur": Way(blur, 2.0, share=False, images=True),
    "occlude": Way(occlude, 0.25, share=True, images=True),
    "drop": Way(drop, 0.5, share=True, images=False),
    "contrast": Way(contrast, 0.75, share=True, images=False),
}
assert tuple(WAYS) == get_args(How)
