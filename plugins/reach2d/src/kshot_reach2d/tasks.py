"""Reaching by demonstration, as regression (continuous actions) or classification (discrete actions) tasks.

Letters: B tasks, D demonstrations, T steps, K objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import attrs
import numpy as np
import torch
from torch import Tensor

from kshot import Episode, Examples, Origin, Support, TaskSpec, control
from kshot.errors import OptionError
from kshot.randomness import as_tensor, episode_keys, uniform
from kshot.registry import Range
from kshot.sampling import check_split
from kshot_reach2d.environment import CELLS, FEATURES, JITTER, MOVES, START, STEP, Environment

SECTORS = {"train": (0.0, 60.0), "val": (60.0, 15.0), "test": (75.0, 15.0)}
"""For each split, where the hues of its targets begin in each quarter of the circle, and in which width, in degrees."""


class Reach2D:
    """Imitation tasks that differ in the colour of the object to reach, which only demonstrations show.

    The examples are the steps of an expert's demonstrations: observations [B, D T, 6K] and actions [B, D T, 2], or the
    numbers of discrete actions [B, D T]. An expert that has arrived stays where it is, so all demonstrations have T
    steps. The query has an ``Environment``, in which the adapted predictor plays from other starts, with the objects
    at other places, and is scored by the share of trajectories that reach the target.

    No two splits share the hue of a target: in each quarter of the circle, 60 degrees are for training, and 15 each
    for validation and test. Distractors have any hue.

    Args:
        demonstrations: number of demonstrations in the support.
        query: number of demonstrations in the query, with which training compares the adapted policy.
        seed: fixes all episodes.
        trajectories: number of trajectories in the rollout by which an adapted policy is scored.
        objects: K, the target and the distractors.
        horizon: T, the number of steps in a trajectory. From 15 on, the expert always arrives.
        actions: ``continuous`` for displacements, ``discrete`` for one of eight directions, or not to move.
        support: ``actions`` for observations and actions; ``observations`` for observations alone: they are then in
            ``Support.unlabelled``, and the support has no labelled examples.

    Raises:
        OptionError: a number or a choice is out of range.

    Example:
        >>> from kshot_reach2d import Reach2D
        >>> episode = Reach2D().sample("test", [0, 1])
        >>> tuple(episode.support.x.shape), tuple(episode.support.y.shape)
        ((2, 20, 18), (2, 20, 2))
    """

    def __init__(
        self,
        demonstrations: Annotated[int, Range(1)] = 1,
        query: Annotated[int, Range(1)] = 1,
        seed: int = 0,
        *,
        trajectories: Annotated[int, Range(1)] = 10,
        objects: Annotated[int, Range(2, 8)] = 3,
        horizon: Annotated[int, Range(1)] = 20,
        actions: Literal["continuous", "discrete"] = "continuous",
        support: Literal["actions", "observations"] = "actions",
    ) -> None:
        given = {"demonstrations": demonstrations, "query": query, "trajectories": trajectories, "horizon": horizon}
        if wrong := [f"{name} {value}" for name, value in given.items() if value < 1]:
            raise OptionError(f"reach2d: got {', '.join(wrong)}, expected at least 1; raise them")
        if not 2 <= objects <= len(CELLS):
            raise OptionError(
                f"reach2d: got objects {objects}, expected 2 to {len(CELLS)}, the target and distractors; change it"
            )
        for name, value, choices in (
            ("actions", actions, ("continuous", "discrete")),
            ("support", support, ("actions", "observations")),
        ):
            if value not in choices:
                raise OptionError(f"reach2d: got {name} {value!r}, expected {' or '.join(choices)}; choose one")
        self.seed = seed
        self.discrete, self.observed = actions == "discrete", support == "observations"
        self._demonstrations, self._query, self._trajectories = demonstrations, query, trajectories
        self._objects, self._horizon = objects, horizon
        shot = 0 if self.observed else demonstrations * horizon
        # The longest way to an object, in a coordinate: it is at most this far from the origin, and the agent too.
        far = float(CELLS.max()) + JITTER + START + STEP * horizon
        self.spec = TaskSpec(
            kind="classification" if self.discrete else "regression",
            input_shape=(FEATURES * objects,),
            target_shape=() if self.discrete else (2,),
            input_range=(-far, far),
            target_range=None if self.discrete else (-1.0, 1.0),
            way=len(MOVES) if self.discrete else None,
            shot=None if self.discrete else shot,
            query=None if self.discrete else query * horizon,
            split_by="index",
            provides={"environment", "unlabelled"} if self.observed else {"environment"},
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return tasks ``indices`` of ``split``; the hues of their targets [B] are ``hue`` in the origin's fields."""
        check_split(split, self.spec)
        keys = episode_keys(self.seed, split, indices)
        place, quarter = np.modf(4 * uniform(keys, "hue", 1)[:, 0])
        begin, width = SECTORS[split]
        hue = torch.from_numpy(np.deg2rad(90 * quarter + begin + width * place)).float()
        key = as_tensor(keys)
        x, y = self._demonstrated(hue, control.own_key(key, "support"), self._demonstrations)
        query = Examples(
            *self._demonstrated(hue, control.own_key(key, "query"), self._query),
            source=Environment(
                hue, control.own_key(key, "play"), self._trajectories, self._horizon, self._objects, self.discrete
            ),
        )
        support = Support(x, y, key=key, way=self.spec.way if isinstance(self.spec.way, int) else None)
        if self.observed:
            support = attrs.evolve(support, x=x[:, :0], y=y[:, :0], unlabelled=x)
        origin = Origin(split, tuple(indices), self.seed, fields={"hue": hue.numpy().copy()})
        return Episode(support, query, origin=origin)

    def _demonstrated(self, hue: Tensor, key: Tensor, demonstrations: int) -> tuple[Tensor, Tensor]:
        """Return the steps of an expert's demonstrations, one demonstration after the other."""
        environment = Environment(hue, key, demonstrations, self._horizon, self._objects, self.discrete)
        played = environment.rollout(environment.expert())
        return played.observations.flatten(1, 2), played.actions.flatten(1, 2)
