"""What all optimizees have in common: how long an optimizer may run, and by which steps it is judged."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kshot import Episode, Examples, Objective, Origin, Support, TaskSpec
from kshot.errors import DataError, OptionError
from kshot.randomness import as_tensor, episode_keys


def check_steps(who: str, steps: int, score_from: int) -> None:
    """Raises OptionError unless 1 <= score_from <= steps."""
    if not 1 <= score_from <= steps:
        raise OptionError(
            f"{who}: steps is {steps} and score_from {score_from}, expected 1 <= score_from <= steps: how many updates "
            "an optimizer makes, and the first after which the loss counts in the score"
        )


def objective_spec(parameters: int, steps: int) -> TaskSpec:
    """The spec of optimizees with P parameters."""
    return TaskSpec(kind="objective", input_shape=(), target_shape=(parameters,), query=steps, split_by="index")


def objective_episode(
    objective: Objective, spec: TaskSpec, seed: int, split: str, indices: Sequence[int], score_from: int
) -> Episode:
    """The objective as support and query: asked at the steps 1..T, of which those from ``score_from`` on count alike.

    query.x [B, T] are the steps, query.y [B, T] their weights.
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
    """Raises DataError where there is no such split, or nothing was asked for."""
    if split not in spec.splits:
        raise DataError(f"unknown split {split!r}; these tasks have {', '.join(spec.splits)}")
    if not len(indices):
        raise DataError("sample: no indices came, expected at least one")
