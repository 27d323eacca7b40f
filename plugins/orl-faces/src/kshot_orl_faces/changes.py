"""Small geometric changes of training images: 20 people are few to learn from."""

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
"""The most that an image is turned (degrees), enlarged or reduced, and shifted (of its sides), at strength 1."""


class Changed:
    """Tasks in whose training splits each image is turned, zoomed, shifted and, every second one, mirrored.

    How is drawn anew for each image of each episode, from the episode's own key: an episode is the same whenever it is
    sampled. Labels, identities and ``pool`` are those of the images as they are.

    Args:
        of: the tasks, of images [C, H, W].
        strength: of turns, zooms and shifts; 1 is up to 6 degrees, 6 % and 3 % of the sides.
        splits: whose images are changed.
    """

    def __init__(self, of: ClassificationTasks, strength: float, splits: Sequence[str] = ("train", "trainval")) -> None:
        self.of, self.strength, self.splits = of, strength, tuple(splits)
        self.seed, self.fingerprint = of.seed, of.fingerprint

    @property
    def spec(self) -> TaskSpec:
        return self.of.spec

    def pool(self, split: str) -> Pool:
        """The labelled examples of a split, as they are (ability ``Pooled``)."""
        return self.of.pool(split)

    def prepare(self, raw: Any) -> Tensor:
        """Raw examples as inputs, as they are (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """That of the tasks below, as a value (ability ``Portable``)."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``, stacked."""
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
    """Images ``x`` [B, n, C, H, W] of the episodes with ``keys`` [B], each changed in its own way. Bilinear; what comes
    in from outside an image is its edge."""
    B, n, C, H, W = x.shape
    draws = uniform(keys, "changes of images", 5 * n).reshape(B * n, 5)
    theta = torch.from_numpy(transformations(draws, strength, H / W)).to(x)
    grid = F.affine_grid(theta, [B * n, C, H, W], align_corners=False)
    found = F.grid_sample(x.flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.view_as(x)


def transformations(draws: NDArray[np.float64], strength: float, tall: float) -> NDArray[np.float64]:
    """Draws of [0, 1) [m, 5] -> maps from a new image's coordinates to the old one's [m, 2, 3], both within -1 and 1.

    Args:
        tall: an image's height by its width; turning is by pixels, and not by these coordinates.
    """
    spread = 2 * draws[:, :4] - 1
    turn = np.deg2rad(TURN) * strength * spread[:, 0]
    zoom = np.exp(math.log1p(ZOOM) * strength * spread[:, 1])
    mirror = np.where(draws[:, 4] < 0.5, -1.0, 1.0)
    cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
    across, down = 2 * SHIFT * strength * spread[:, 2], 2 * SHIFT * strength * spread[:, 3]
    rows = [[cos * mirror, -sin * tall, across], [sin / tall * mirror, cos, down]]
    return np.stack([np.stack(row, -1) for row in rows], 1)
