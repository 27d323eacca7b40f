"""Random quadratics: section 3.1 of Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
2016 (1606.04474)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kshot import Episode, Objective
from kshot.errors import OptionError
from kshot.randomness import episode_keys, normal
from kshot_quadratics.steps import check_split, check_steps, objective_episode, objective_spec


def quadratic(point: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """Compute f(theta) = |W theta - y|^2 [].

    Args:
        point: theta [P].
        data: W [P, P] and y [P].
    """
    W, y = data
    return (W @ point - y).square().sum()


class Quadratics:
    """Tasks to minimise a quadratic |W theta - y|^2, with W and y drawn from standard normals for each task.

    Args:
        dimension: P, the number of coordinates of theta.
        steps: T, the number of updates that an optimizer makes.
        score_from: the first step that counts; the score is the mean loss from this step to the last.
        start: standard deviation of the initial coordinates; 0.01 in the authors' code.
        seed: fixes all episodes.

    Raises:
        OptionError: a number is out of its range.

    Example:
        >>> from kshot_quadratics import Quadratics
        >>> objective = Quadratics(dimension=3, steps=5).sample("train", [0, 1]).query.source
        >>> objective.loss(objective.initial).shape
        torch.Size([2])
    """

    def __init__(
        self, dimension: int = 10, steps: int = 100, score_from: int = 1, *, start: float = 0.01, seed: int = 0
    ) -> None:
        check_steps("quadratics", steps, score_from)
        if dimension < 1 or not start >= 0:
            raise OptionError(
                f"quadratics: got dimension {dimension} and start {start}, expected dimension >= 1 and start >= 0"
            )
        self.seed = seed
        self.spec = objective_spec(dimension, steps)
        self._dimension, self._score_from, self._start = dimension, score_from, start

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return quadratics ``indices`` of ``split``: initial [B, P], data W [B, P, P] and y [B, P]."""
        check_split(self.spec, split, indices)
        keys, P = episode_keys(self.seed, split, indices), self._dimension

        def normals(purpose: str, *shape: int) -> Tensor:
            """Draw standard normal numbers [B, *shape], where every axis of the shape is P."""
            return torch.from_numpy(normal(keys, purpose, P ** len(shape))).float().view(-1, *shape)

        initial = self._start * normals("initial", P)
        objective = Objective(initial, (normals("W", P, P), normals("y", P)), quadratic)
        return objective_episode(objective, self.spec, self.seed, split, indices, self._score_from)
