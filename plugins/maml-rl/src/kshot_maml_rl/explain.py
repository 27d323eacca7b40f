"""What a trained ``MamlRL`` does on an episode, as arrays for pictures.

Letters: B tasks, E trajectories per task, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kshot import Episode


@torch.no_grad()
def rollouts_by_update(learner: Any, episode: Episode) -> Mapping[str, Any]:
    """Return the query's rollout 0 as it is played after 0 to ``test_steps`` updates of ``learner``, a ``MamlRL``.

    Returns:
        ``observations``, ``actions``, ``rewards`` and ``running`` [B, steps + 1, E, T, ...]; the fields of the origin,
        such as a goal; and, if observations are points in the plane, ``trajectories``, which are NaN after the end.
    """
    states, _, _ = learner.play(episode.support, learner.test_steps)
    rollouts = [episode.query.source.rollout(learner.policy(theta)) for theta in states]
    names = ("observations", "actions", "rewards", "running")
    traced = {n: torch.stack([getattr(rollout, n) for rollout in rollouts], 1) for n in names}
    if learner.family.spec.input_shape == (2,):
        traced["trajectories"] = traced["observations"].masked_fill(~traced["running"][..., None], torch.nan)
    return {**(episode.origin.fields if episode.origin else {}), **traced}
