"""Sample tasks of demonstrations: observations and actions of an expert, and an environment in which to play."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from torch import Tensor

from kshot import control
from kshot.episode import Episode, Examples, Support
from kshot.spec import TaskSpec
from kshot.testing.sample_tasks.environments import Corridors, Points

STEPS = 3
"""The length of a demonstration."""


class Demonstrations:
    """Regression tasks whose examples are the steps of an expert in ``Points``; or classification, in ``Corridors``.

    Args:
        discrete: whether actions are discrete.
        shot, query: number of demonstrations in support and query; each has three steps.
        seed: determines all episodes.

    Example:
        >>> episode = Demonstrations(shot=2).sample("train", [0])
        >>> tuple(episode.support.x.shape), hasattr(episode.query.source, "rollout")
        ((1, 6, 2), True)
    """

    def __init__(self, discrete: bool = False, shot: int = 1, query: int = 1, seed: int = 0) -> None:
        self.seed = seed
        self._tasks: Any = (Corridors if discrete else Points)(shot, query, seed)
        spec = self._tasks.spec
        self.spec = TaskSpec(
            kind="classification" if discrete else "regression",
            input_shape=spec.input_shape,
            target_shape=spec.target_shape,
            target_range=spec.target_range,
            way=spec.way,
            shot=None if discrete else shot * STEPS,
            query=None if discrete else query * STEPS,
            split_by="index",
            provides={"environment"},
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Sample episodes: the expert plays in the environments of support and query, and the learner in the latter."""
        episode = self._tasks.sample(split, indices)
        (x, y), (query_x, query_y) = (self._demonstrated(part.source) for part in (episode.support, episode.query))
        # The learner plays from other starts than those of the query's demonstration.
        source = attrs.evolve(episode.query.source, key=control.own_key(episode.query.source.key, "play"))
        way = self.spec.way if isinstance(self.spec.way, int) else None
        support = Support(x, y, key=episode.support.key, way=way)
        return Episode(support, Examples(query_x, query_y, source=source), origin=episode.origin)

    def _demonstrated(self, environment: Any) -> tuple[Tensor, Tensor]:
        """Return the observations [B, n, *o] and actions [B, n, *a] of the expert, n = trajectories x steps."""

        def expert(at: Tensor) -> Tensor:
            actions: Tensor
            if self.spec.way is None:
                actions = environment.goal[:, None] - at
            else:
                actions = (environment.end[:, None] > 0).long().expand(at.shape[:2])
            return actions

        played = attrs.evolve(environment, horizon=STEPS).rollout(expert)
        return played.observations.flatten(1, 2), played.actions.flatten(1, 2)
