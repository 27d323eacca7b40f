"""Change training images geometrically by small amounts, because 20 people are few to learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kshot import ClassificationTasks, Episode, Pool, TaskSpec
from kshot.preparing import Preparation
from kshot.protocols import Portable
from kshot.randomness import U64, uniform

TURN, ZOOM, SHIFT = 6.0, 0.06, 0.03
"""The most by which an image is turned (degrees), zoomed and shifted (share of its sides), at strength 1."""


class Changed:
    """Represent tasks in whose training splits each image is turned, zoomed, shifted and perhaps mirrored.

    The change is drawn for each image of each episode from the episode's own key, so an episode is the same whenever it
    is sampled. Half of the images are mirrored. Labels and identities stay, and ``pool`` has the unchanged images.

    Args:
        of: the tasks, of images [C, H, W].
        strength: how large the changes are; 1 is up to 6 degrees, 6 % and 3 % of the sides.
        splits: the splits whose images are changed.
    """

    def __init__(self, of: ClassificationTasks, strength: float, splits: Sequence[str] = ("train", "trainval")) -> None:
        self.of, self.strength, self.splits = of, strength, tuple(splits)
        self.seed, self.fingerprint = of.seed, of.fingerprint

    @property
    def spec(self) -> TaskSpec:
        """The specification of the wrapped tasks: changes keep the shape of inputs."""
        return self.of.spec

    def pool(self, split: str) -> Pool:
        """Return the labelled examples of a split, unchanged (ability ``Pooled``)."""
        return self.of.pool(split)

    def prepare(self, raw: Any) -> Tensor:
        """Return raw examples as inputs, unchanged (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """``prepare`` of the wrapped tasks as a value (ability ``Portable``)."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return the episodes ``indices`` of ``split``, stacked."""
        episode = self.of.sample(split, indices)
        if split not in self.splits:
            return episode
        support, query = episode.support, episode.query
        keys = support.key.numpy().view(np.uint64)
        x = changed(torch.cat([support.x, query.x], 1), keys, self.strength)
        S = support.x.shape[1]
        return attrs.evolve(
            episode,
            support=attrs.evolve(support, x=x[:, :S].contiguous()),
            query=attrs.evolve(query, x=x[:, S:].contiguous()),
        )


def changed(x: Tensor, keys: U64, strength: float) -> Tensor:
    """Return images [B, n, C, H, W], each changed in its own way.

    Pixels are interpolated bilinearly; pixels from outside an image take the value of its edge.

    Args:
        x: images [B, n, C, H, W].
        keys: keys of the B episodes.
        strength: how large the changes are.

    Example:
        >>> changed(torch.ones(1, 2, 1, 4, 4), np.array([7], np.uint64), 1.0).shape
        torch.Size([1, 2, 1, 4, 4])
    """
    B, n, C, H, W = x.shape
    draws = uniform(keys, "changes of images", 5 * n).reshape(B * n, 5)
    theta = torch.from_numpy(transformations(draws, strength, H / W)).to(x)
    grid = F.affine_grid(theta, [B * n, C, H, W], align_corners=False)
    images = F.grid_sample(x.flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return images.view_as(x)


def transformations(draws: NDArray[np.float64], strength: float, tall: float) -> NDArray[np.float64]:
    """Return affine maps [m, 2, 3] from a changed image's coordinates to the original's, both within -1 and 1.

    Args:
        draws: five numbers of [0, 1) for each image [m, 5]: turn, zoom, shifts across and down, mirror.
        strength: how large the changes are.
        tall: an image's height divided by its width: turning is in pixels, not in these coordinates.
    """
    spread = 2 * draws[:, :4] - 1
    turn = np.deg2rad(TURN) * strength * spread[:, 0]
    zoom = np.exp(math.log1p(ZOOM) * strength * spread[:, 1])
    mirror = np.where(draws[:, 4] < 0.5, -1.0, 1.0)
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    across, down = 2 * SHIFT * strength * spread[:, 2], 2 * SHIFT * strength * spread[:, 3]
    rows = [[cos * mirror, -sin * tall, across], [sin / tall * mirror, cos, down]]
    return np.stack([np.stack(row, -1) for row in rows], 1)
