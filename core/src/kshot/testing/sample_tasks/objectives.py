"""Sample tasks of the kind objective: quadratic functions to minimise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kshot.episode import Episode, Examples, Objective, Support
from kshot.randomness import as_tensor, episode_keys
from kshot.spec import TaskSpec
from kshot.testing.sample_tasks.drawing import normals, origin_of


def quadratic(point: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """Compute |A p - b|^2 / 2 (a scalar) at ``point`` p [P], with ``data`` (A [P, P], b [P])."""
    matrix, target = data
    return 0.5 * (matrix @ point - target).square().sum()


class Quadratics:
    """Optimizees that are quadratic functions, of three parameters by default.

    Args:
        steps: T, how many updates an optimizer may make.
        seed: determines all episodes.
        parameters: P, how many parameters a point has.

    Example:
        >>> objective = Quadratics().sample("train", [0, 1]).support.source
        >>> tuple(objective.loss(objective.initial).shape)  # [B]
        (2,)
    """

    def __init__(self, steps: int = 6, seed: int = 0, parameters: int = 3) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="objective", input_shape=(), target_shape=(parameters,), query=steps, split_by="index"
        )
        self._steps, self._parameters = steps, parameters

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Sample episodes whose ``source`` is the objective, in support and query.

        query.x [B, T] are the steps 1..T, and query.y [B, T] weighs them equally.
        """
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        B, P = len(keys), self._parameters
        matrix = torch.eye(P) + 0.3 * normals(keys, "matrix", P, P)
        objective = Objective(normals(keys, "initial", P), (matrix, normals(keys, "target", P)), quadratic)
        steps = torch.arange(1.0, self._steps + 1).expand(B, -1)
        empty = torch.zeros(B, 0)
        support = Support(empty, empty, source=objective, key=as_tensor(keys))
        return Episode(support, Examples(steps, torch.ones(B, self._steps), source=objective), origin=origin)
