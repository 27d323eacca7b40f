"""Functions that both tasks share: the number of an optimizer's steps, and the steps by which it is scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kshot import Episode, Examples, Objective, Origin, Support, TaskSpec, sampling
from kshot.errors import DataError, OptionError
from kshot.randomness import as_tensor, episode_keys


def check_steps(who: str, steps: int, score_from: int) -> None:
    """Raise OptionError unless 1 <= score_from <= steps."""
    if not 1 <= score_from <= steps:
        raise OptionError(
            f"{who}: got steps {steps} and score_from {score_from}, expected 1 <= score_from <= steps: the number of "
            "an optimizer's updates, and the first update after which the loss counts in the score"
        )


def objective_spec(parameters: int, steps: int) -> TaskSpec:
    """Return the spec of objectives with ``parameters`` P parameters, for ``steps`` updates."""
    return TaskSpec(kind="objective", input_shape=(), target_shape=(parameters,), query=steps, split_by="index")


def objective_episode(
    objective: Objective, spec: TaskSpec, seed: int, split: str, indices: Sequence[int], score_from: int
) -> Episode:
    """Make an episode with the objective as support and query.

    query.x are the steps 1..T [B, T], and query.y their weights in the score [B, T]: 1 from ``score_from`` on, else 0.
    """
    B, T = len(indices), int(str(spec.query))
    steps = torch.arange(1.0, T + 1)
    empty = torch.zeros(B, 0)
    keys = as_tensor(episode_keys(seed, split, indices))
    return Episode(
        support=Support(empty, empty, source=objective, key=keys),
        query=Examples(steps.repeat(B, 1), (steps >= score_from).float().repeat(B, 1), source=objective),
        origin=Origin(split, tuple(indices), seed, query=T),
    )


def check_split(spec: TaskSpec, split: str, indices: Sequence[int]) -> None:
    """Raise DataError if the split is unknown or there are no indices."""
    sampling.check_split(split, spec)
    if not len(indices):
        raise DataError("sample: got no indices, expected at least one")
