"""Sample tasks of the kind control, with continuous and with discrete actions, and their environments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kshot import control
from kshot.episode import Episode, Policy, Rollout, register_value
from kshot.randomness import as_tensor, episode_keys, uniform
from kshot.spec import TaskSpec
from kshot.testing.sample_tasks.drawing import normals, origin_of


@frozen(eq=False)
class PointEnvironment:
    """An environment in which points in the plane have to be moved to their task's goal.

    Attributes:
        goal: [B, 2], not visible to the policy.
        key: [B], keys of the environment's random numbers.
        trajectories, horizon: E and T of one rollout.
        rollouts: the budget, or None for any number of rollouts.

    Example:
        >>> environment = Points(query=3).sample("train", [0, 1]).query.source
        >>> tuple(environment.rollout(lambda x: -x).rewards.shape)  # [B, E, T]
        (2, 3, 5)
    """

    goal: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play a rollout: actions are displacements [B, E, 2], clipped to [-1, 1].

        The reward is the negative distance to the goal.
        """
        key = control.rollout_key(self.key, number, self.rollouts)
        act = control.playing(policy, key, (self.trajectories, self.horizon), target_shape=(2,))
        at = 0.1 * control.normals(key, "start", self.trajectories, 2).to(self.goal)
        observations, actions, rewards = [], [], []
        for _ in range(self.horizon):
            observations.append(at)
            actions.append(act(at))
            at = at + 0.3 * actions[-1].clamp(-1, 1)
            rewards.append(-(at - self.goal[..., None, :]).norm(dim=-1))
        return control.recorded(torch.stack(observations, -2), torch.stack(actions, -2), torch.stack(rewards, -1))


@frozen(eq=False)
class CorridorEnvironment:
    """An environment in which walkers step left (0) or right (1) until they reach their task's end of a corridor.

    Attributes:
        end: [B], the rewarded position, 3 or -3, not visible to the policy.
        key: [B], keys of the environment's random numbers.
        trajectories, horizon: E and T of one rollout.
        rollouts: the budget, or None for any number of rollouts.

    Example:
        >>> import torch
        >>> environment = Corridors(query=4).sample("train", [0]).query.source
        >>> played = environment.rollout(lambda x: torch.ones(x.shape[:-1], dtype=torch.int64))  # always right
        >>> tuple(played.scores["reached"].shape)  # [B, E]
        (1, 4)
    """

    end: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play a rollout: each step costs 0.1, except the one that reaches the end, which is rewarded with 1.

        One step in ten slips in the opposite direction.
        """
        key = control.rollout_key(self.key, number, self.rollouts)
        E, T = self.trajectories, self.horizon
        act = control.playing(policy, key, (E, T), way=2)
        slips = control.uniforms(key, "slips", E, T) < 0.1
        at = self.end.new_zeros(*key.shape, E)
        observations, actions, ended = [], [], []
        for t in range(T):
            observations.append(at[..., None] / 3)
            actions.append(act(observations[-1]))
            step = torch.where(slips[..., t], 1 - actions[-1], actions[-1])
            at = at + 2 * step - 1
            ended.append(at == self.end[..., None])
        over = torch.stack(ended, -1)
        rewards = torch.where(over, 1.0, -0.1).to(self.end)
        scores = {"reached": over.any(-1)}
        return control.recorded(torch.stack(observations, -2), torch.stack(actions, -1), rewards, over, scores)


register_value(PointEnvironment, "goal", "key")
register_value(CorridorEnvironment, "end", "key")


class Points:
    """Control tasks with continuous actions: move points to a goal of which only the rewards inform the policy.

    Args:
        shot, query: number of trajectories in one rollout of the support and of the query.
        seed: determines all episodes.
        rollouts: how many rollouts a learner may play while it adapts.

    Example:
        >>> episode = Points(rollouts=8).sample("train", [0])
        >>> episode.support.source.rollouts
        8
    """

    def __init__(self, shot: int = 4, query: int = 3, seed: int = 0, rollouts: int = 8) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="control",
            input_shape=(2,),
            target_shape=(2,),
            target_range=(-1.0, 1.0),
            shot=shot,
            query=query,
            rollouts=rollouts,
            split_by="index",
        )
        self._shot, self._query = shot, query

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Sample episodes whose ``source`` is an environment, in support and query; x and y are empty."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        key, goal = as_tensor(keys), normals(keys, "goal", 2)
        support = PointEnvironment(goal, control.own_key(key, "support"), self._shot, 5, self.spec.rollouts)
        query = PointEnvironment(goal, control.own_key(key, "query"), self._query, 5)
        return control.episode(support, query, key, origin, self.spec)


class Corridors:
    """Control tasks with two discrete actions and trajectories that end: walk to the rewarded end of a corridor.

    Args:
        shot, query: number of trajectories in one rollout of the support and of the query.
        seed: determines all episodes.
        rollouts: how many rollouts a learner may play while it adapts.

    Example:
        >>> Corridors().spec.way  # the number of discrete actions
        2
    """

    def __init__(self, shot: int = 4, query: int = 3, seed: int = 0, rollouts: int = 8) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="control", input_shape=(1,), way=2, shot=shot, query=query, rollouts=rollouts, split_by="index"
        )
        self._shot, self._query = shot, query

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Sample episodes whose ``source`` is an environment, in support and query; x and y are empty."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        key, end = as_tensor(keys), torch.where(torch.from_numpy(uniform(keys, "left", 1)[:, 0] < 0.5), -3.0, 3.0)
        support = CorridorEnvironment(end, control.own_key(key, "support"), self._shot, 6, self.spec.rollouts)
        query = CorridorEnvironment(end, control.own_key(key, "query"), self._query, 6)
        return control.episode(support, query, key, origin, self.spec)
