"""2-D navigation: Finn, Abbeel & Levine, "Model-agnostic meta-learning", 2017 (1703.03400), section 5.3.

Letters: B tasks, E trajectories a task, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kshot import Episode, Origin, Rollout, TaskSpec, control
from kshot.episode import Policy, register_value
from kshot.errors import OptionError
from kshot.randomness import as_tensor, episode_keys, uniform
from kshot.sampling import check_split

STEP = 0.1
"""The farthest that a point moves in a step, in each coordinate."""

NEAR = 0.01
"""A trajectory ends with the step after which both coordinates are nearer to the goal's than this."""


@frozen(eq=False)
class Environment:
    """B tasks: points that start at the origin, each to be moved to its task's goal.

    The observation is the position, the action a displacement that is cut to ``STEP`` in each coordinate, the reward
    minus the distance to the goal after the move: the plain distance, as in the paper's code, where its text has the
    squared one.

    Attributes:
        goal: [B, 2], unseen by the policy.
        key: [B]; the points' own moves are not random, the policy's may be.
        trajectories, horizon: E and T of one rollout.
        rollouts: the budget, or None for any number.
    """

    goal: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Observations and actions [B, E, T, 2]; the score ``reached`` says which trajectories came near the goal."""
        key = control.rollout_key(self.key, number, self.rollouts)
        act = control.playing(policy, key, (self.trajectories, self.horizon), target_shape=(2,))
        at = self.goal.new_zeros(*key.shape, self.trajectories, 2)
        positions, actions = [at], []
        for _ in range(self.horizon):
            actions.append(act(at))
            at = at + actions[-1].clamp(-STEP, STEP)
            positions.append(at)
        path = torch.stack(positions, -2)
        away = path[..., 1:, :] - self.goal[..., None, None, :]
        near = away.abs().amax(-1) < NEAR
        rewards = -torch.linalg.vector_norm(away, dim=-1)
        scores = {"reached": near.any(-1)}
        return control.recorded(path[..., :-1, :], torch.stack(actions, -2), rewards, near, scores)


register_value(Environment, "goal", "key")


class Navigation2D:
    """Tasks that differ in the goal, uniform in [-0.5, 0.5]^2. Standing still has a return of -38.3 on average.

    Args:
        shot: trajectories of a rollout, from which a learner updates once.
        query: trajectories by which an adapted policy is judged.
        seed: fixes all episodes.
        rollouts: how many a learner may play while adapting; as many updates on trajectories of their own.
        horizon: steps of a trajectory, T.

    Raises:
        OptionError: a number is less than 1.
    """

    def __init__(
        self, shot: int = 20, query: int = 20, seed: int = 0, *, rollouts: int = 3, horizon: int = 100
    ) -> None:
        given = {"shot": shot, "query": query, "rollouts": rollouts, "horizon": horizon}
        if wrong := [f"{name} is {value}" for name, value in given.items() if value < 1]:
            raise OptionError(f"navigation2d: {', '.join(wrong)}; expected at least 1")
        self.seed, self._horizon = seed, horizon
        self._shot, self._query = shot, query
        self.spec = TaskSpec(
            kind="control",
            input_shape=(2,),
            input_range=(-STEP * horizon, STEP * horizon),
            target_shape=(2,),
            target_range=(-STEP, STEP),
            shot=shot,
            query=query,
            rollouts=rollouts,
            split_by="index",
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Tasks ``indices`` of ``split``; the origin's fields have their goals."""
        check_split(split, self.spec)
        keys = episode_keys(self.seed, split, indices)
        goal, key = torch.from_numpy(uniform(keys, "goal", 2) - 0.5).float(), as_tensor(keys)
        origin = Origin(
            split, tuple(indices), self.seed, shot=self._shot, query=self._query, fields={"goal": goal.numpy().copy()}
        )
        support = Environment(goal, control.own_key(key, "support"), self._shot, self._horizon, self.spec.rollouts)
        query = Environment(goal, control.own_key(key, "query"), self._query, self._horizon)
        return control.episode(support, query, key, origin, self.spec)
