"""What environments and policies are made of: a rollout's own chance, actions checked, ends, noise.

An environment of B tasks is a loop over T steps; see ``kshot.episode.Environment`` for what it promises:

    @torch.no_grad()
    def rollout(self, policy, number=0):
        key = rollout_key(self.key, number, self.rollouts)
        act = playing(policy, key, (self.trajectories, self.horizon), target_shape=(2,))
        at, seen, taken = ..., [], []
        for _ in range(self.horizon):
            seen.append(at)
            taken.append(act(at))
            at = at + taken[-1]
        return recorded(torch.stack(seen, -2), torch.stack(taken, -2), rewards)

Letters: B tasks, E trajectories a task, T steps. Where an environment is of one task, without B, so is all else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from kshot.episode import Begins, Environment, Episode, Examples, Origin, Policy, Rollout, Support
from kshot.errors import DataError, TrainingError
from kshot.randomness import as_tensor, draws, generator
from kshot.spec import TaskSpec


def own_key(key: Tensor, purpose: str) -> Tensor:
    """Keys [B] made of ``key`` [B] for one purpose: those of a support's environments, or of a query's."""
    words = key.reshape(-1).cpu().numpy().view(np.uint64)
    return as_tensor(draws(words, purpose, 1)[:, 0]).reshape(key.shape).to(key.device)


def episode(support: Environment, query: Environment, key: Tensor, origin: Origin, spec: TaskSpec) -> Episode:
    """B control tasks: two environments each, which differ in chance and in budget, and no table of examples."""
    x = torch.zeros(len(key), 0, *spec.input_shape)
    y = torch.zeros(len(key), 0, *spec.target_shape, dtype=torch.float32 if spec.way is None else torch.int64)
    return Episode(Support(x, y, source=support, key=key), Examples(x, y, source=query), origin=origin)


def rollout_key(key: Tensor, number: int, rollouts: int | None = None) -> Tensor:
    """The keys [B] of rollout ``number`` of environments with ``key`` [B]; all its chance comes from them.

    Raises:
        DataError: the number is negative, or not below ``rollouts``, the budget.
    """
    if number < 0 or (rollouts is not None and number >= rollouts):
        has = "numbers from 0 on" if rollouts is None else f"0 to {rollouts - 1}, a budget of {rollouts}"
        raise DataError(
            f"rollout {number} was asked for, the environment has {has}; learn from what was seen, take fewer updates, "
            "or give the tasks more rollouts"
        )
    return own_key(key, f"rollout {number}")


def playing(
    policy: Policy, key: Tensor, shape: tuple[int, int], *, target_shape: tuple[int, ...] = (), way: int | None = None
) -> Callable[[Tensor], Tensor]:
    """What plays one rollout of ``shape`` (E, T): the policy, or what its ``begin`` returns; each action is checked.

    Args:
        key: of the rollout [B], from ``rollout_key``.
        target_shape: of a continuous action.
        way: the number of discrete actions, or None where they are continuous.

    Raises:
        TrainingError: (by what is returned) actions of another shape or type, or none of the ``way``.
    """
    act = policy.begin(key, shape) if isinstance(policy, Begins) else policy
    expected = torch.Size([*key.shape, shape[0], *target_shape])
    sort = "real numbers" if way is None else "int64"

    def checked(observation: Tensor) -> Tensor:
        action = act(observation)
        right = action.dtype == torch.int64 if way is not None else action.is_floating_point()
        if action.shape != expected or not right:
            raise TrainingError(
                f"the policy's actions are {action.dtype} of shape {list(action.shape)}, expected {sort} of shape "
                f"{list(expected)}: one action of each trajectory; see kshot.episode.Policy"
            )
        if way is not None:
            least, greatest = (int(end) for end in action.aminmax())
            if least < 0 or greatest >= way:
                raise TrainingError(f"the policy's actions are {least} to {greatest}, expected some of 0 to {way - 1}")
        return action

    return checked


def recorded(
    observations: Tensor,
    actions: Tensor,
    rewards: Tensor,
    ended: Tensor | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> Rollout:
    """A rollout as it is to be told: no rewards after the end, and no actions that are no numbers.

    Args:
        observations, actions, rewards: of all T steps, those after the end included: [B, E, T, ...].
        ended: whether the step was its trajectory's last [B, E, T], or None where all run to the end.
        scores: what else the environment judges [B, E].

    Raises:
        TrainingError: an action is NaN or infinite.
    """
    running = torch.ones_like(rewards, dtype=torch.bool)
    if ended is not None:
        running = ended.cumsum(-1) - ended.long() == 0
        rewards = rewards * running
    if actions.is_floating_point() and not bool(torch.isfinite(actions.sum())):
        bad = (
            ~torch.isfinite(actions) & running.reshape(*running.shape, *[1] * (actions.ndim - rewards.ndim))
        ).nonzero()
        if len(bad):
            *task, trajectory, step = bad[0][: rewards.ndim].tolist()
            raise TrainingError(
                f"the policy's action is NaN or infinite in step {step} of trajectory {trajectory}"
                f"{f' of task {task[0]}' if task else ''}; lower the learning rates, or look at the policy's parameters"
            )
    return Rollout(observations, actions, rewards, running, dict(scores or {}))


def normals(key: Tensor, purpose: str, *shape: int) -> Tensor:
    """Standard normal numbers [B, *shape], float32; those of task b are of ``kshot.generator(key[b], purpose)``."""
    return _drawn(key, purpose, lambda chance: torch.randn(shape, generator=chance))


def uniforms(key: Tensor, purpose: str, *shape: int) -> Tensor:
    """Uniform numbers of [0, 1) [B, *shape], float32; those of task b are of ``kshot.generator(key[b], purpose)``."""
    return _drawn(key, purpose, lambda chance: torch.rand(shape, generator=chance))


def _drawn(key: Tensor, purpose: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
    found = [draw(generator(k, purpose)) for k in key.reshape(-1).cpu()]  # a generator a task; the draws are few
    return torch.stack(found).reshape(*key.shape, *found[0].shape).to(key.device)
