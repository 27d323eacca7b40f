"""What a trained ``MIL`` does on an episode, as arrays for pictures.

Letters: B tasks, k numbers of inner steps, E trajectories per task, T steps, D demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kshot import Episode
from kshot.errors import DataError


def rollouts_by_step(learner: Any, episode: Episode) -> Mapping[str, Any]:
    """Return rollout 0 of the query's environment, as ``learner``, a ``MIL``, plays it after 0 to ``test_steps`` steps.

    If the environment has a function ``from_above``, from observations [..., T, *o] to named arrays for a picture,
    such as paths in the plane, its arrays are in the result: of the rollouts, and with ``shown_`` before their names of
    the demonstrations in the support.

    Returns:
        ``observations``, ``actions`` and ``rewards`` [B, k, E, T, ...]; and the fields of the origin.

    Raises:
        DataError: the query of the episode has no environment.
    """
    source = episode.query.source
    if source is None or not hasattr(source, "rollout"):
        raise DataError(
            "mil: got an episode without an environment, expected one in which the policy can play; trace tasks "
            "whose spec provides an environment"
        )
    played = []
    for steps in range(learner.test_steps + 1):
        policy = learner.adapt(episode.support, steps=steps)
        classes = learner.kind == "classification"
        played.append(source.rollout((lambda seen, act=policy: act(seen).argmax(-1)) if classes else policy))
    names = ("observations", "actions", "rewards")
    traced: dict[str, Any] = {n: torch.stack([getattr(rollout, n) for rollout in played], 1) for n in names}
    if hasattr(source, "from_above"):
        traced |= source.from_above(traced["observations"])
        # A support has the steps of D demonstrations one after the other, each as long as a rollout.
        shown, T = learner.demonstrated(episode.support).x, traced["rewards"].shape[-1]
        if shown.shape[1] % T == 0:
            above = source.from_above(shown.unflatten(1, (-1, T)))
            traced |= {f"shown_{name}": values for name, values in above.items()}
    return {**(episode.origin.fields if episode.origin else {}), **traced}
