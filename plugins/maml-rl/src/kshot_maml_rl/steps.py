"""The steps that a task learns from: the data of a rollout without the steps after the end, and means over the others.

Letters: B tasks, E trajectories per task, T steps. ``running`` is true for a step that was taken and false after the
end of its trajectory.
"""

from __future__ import annotations

import attrs
import torch
from attrs import frozen
from torch import Tensor

from kshot.episode import Rollout, register_value


@frozen(eq=False)
class Batch:
    """Store the data that a task learns from: E trajectories per task, each field [B, E, T, ...].

    Attributes:
        observations, actions: as the rollout has them.
        advantages: A_t [B, E, T].
        running: the weight of the step in means [B, E, T], from ``step_weights``: 0 after the end, and 1 if all steps
            were taken.
        log_probability: log pi(a_t | o_t) of the policy that played [B, E, T].

    Example:
        >>> zeros = torch.zeros(2, 3, 4)
        >>> batch = Batch(zeros[..., None], zeros, zeros, zeros == 0, zeros)
        >>> tuple(batch.advantages.shape)
        (2, 3, 4)
    """

    observations: Tensor
    actions: Tensor
    advantages: Tensor
    running: Tensor
    log_probability: Tensor


register_value(Batch, *(f.name for f in attrs.fields(Batch)))


def taken(played: Rollout) -> Rollout:
    """Return a rollout with the observations, actions and rewards of the steps after the end set to 0.

    They have no meaning and may be anything, such as NaN or the number of no action. So they are replaced before
    anything is computed from them: a product with a mask would leave NaN, in the gradient too.

    Example:
        >>> rewards, running = torch.tensor([[[1.0, torch.nan]]]), torch.tensor([[[True, False]]])
        >>> taken(Rollout(rewards[..., None], rewards, rewards, running)).actions
        tensor([[[1., 0.]]])
    """
    running = played.running.bool()

    def kept(values: Tensor) -> Tensor:
        """Keep the values of steps that were taken [B, E, T, ...]."""
        return torch.where(running.reshape(*running.shape, *[1] * (values.ndim - running.ndim)), values, 0)

    return attrs.evolve(
        played,
        observations=kept(played.observations),
        actions=kept(played.actions),
        rewards=kept(played.rewards),
    )


def step_weights(running: Tensor) -> Tensor:
    """Return the weights [B, E, T] of steps: 0 after the end, else E T / (the number of steps that the task took).

    They are float64. Their mean over E and T is 1. So the mean of ``weights * values`` is the mean of the values over
    the taken steps, however long the horizon is.

    Example:
        >>> step_weights(torch.tensor([[[True, True, False, False]]]))
        tensor([[[2., 2., 0., 0.]]], dtype=torch.float64)
    """
    weights = running.double()
    return weights / weights.mean((-2, -1), keepdim=True)


def mean_over_steps(values: Tensor, running: Tensor | None = None) -> Tensor:
    """Compute the mean of ``values`` [E, T] over the steps that were taken, or over all if ``running`` is None.

    Args:
        values: [E, T].
        running: whether the step was taken, or its weight [E, T].

    Example:
        >>> mean_over_steps(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[True, True, False]]))
        tensor(2.)
    """
    return values.mean() if running is None else (values * running).sum() / running.sum()
