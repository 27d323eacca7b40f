"""The adapter: environments of gymnasium as control tasks, all tasks and trajectories stepped at once.

Letters: B tasks, E trajectories per task, T steps, P parameters of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from kshot import Episode, Origin, Rollout, TaskSpec, control
from kshot.episode import Policy, register_value
from kshot.errors import OptionError
from kshot.randomness import as_tensor, episode_keys
from kshot.sampling import check_split
from kshot_gymnasium.families import Family, seeds_of
from kshot_gymnasium.spaces import action_fields, observation_fields


@frozen(eq=False)
class Environment:
    """Play the environments of B tasks.

    Continuous actions are clipped to the bounds of the action space. A trajectory ends when its environment terminates
    or truncates it, at the latest after T steps.

    Attributes:
        parameters: of each task [B, P], hidden from the policy.
        key: keys of the random starts [B].
        family: the environments.
        spec: the specification of the tasks.
        trajectories, horizon: E and T of one rollout.
        rollouts: the number of rollouts that may be played, or None for any number.
    """

    parameters: Tensor
    key: Tensor
    family: Family
    spec: TaskSpec
    trajectories: int
    horizon: int
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play E trajectories per task with the policy: observations [B, E, T, *o] and actions [B, E, T, *a].

        Args:
            policy: a function of the observations [B, E, *o].
            number: the number of the rollout; each number has its own random starts.

        Raises:
            DataError: an environment gave a reward or an observation that is not finite.
        """
        key, E = control.rollout_key(self.key, number, self.rollouts), self.trajectories
        way = self.spec.way if isinstance(self.spec.way, int) else None
        act = control.playing(policy, key, (E, self.horizon), target_shape=self.spec.target_shape, way=way)
        # One row of parameters and one seed for each trajectory.
        seeds = seeds_of(key.reshape(-1).cpu().numpy().view(np.uint64), E).reshape(-1)
        values = self.parameters.reshape(-1, self.parameters.shape[-1]).cpu().double().numpy().repeat(E, 0)
        vector, seen = self.family.start(values, seeds)
        shape = (*key.shape, E)

        def tensor(array: Any, *rest: int) -> Tensor:
            """Return a copy of the numbers of all trajectories [B, E, *rest]."""
            return torch.tensor(array, dtype=self.parameters.dtype, device=self.parameters.device).reshape(
                *shape, *rest
            )

        observations, actions, rewards, ended = [], [], [], []
        for _ in range(self.horizon):
            observations.append(tensor(seen, *self.spec.input_shape))
            actions.append(act(observations[-1]))
            seen, reward, terminated, truncated, _ = vector.step(self._native(actions[-1]))
            rewards.append(tensor(reward))
            ended.append(np.logical_or(terminated, truncated))
        over = torch.from_numpy(np.stack(ended, -1)).to(self.key.device).reshape(*shape, -1)
        # T is the axis after E, before those of an observation or of an action.
        states, taken = torch.stack(observations, len(shape)), torch.stack(actions, len(shape))
        return control.recorded(states, taken, torch.stack(rewards, -1), over, who=self.family.name)

    def _native(self, action: Tensor) -> Any:
        """Return actions [B, E, *a] as an environment takes them: clipped, [B E, *a]."""
        rows = action.reshape(-1, *self.spec.target_shape).cpu()
        if self.spec.target_range is None:
            return rows.numpy()
        return rows.float().clamp(*self.spec.target_range).numpy()


register_value(Environment, "parameters", "key")


class GymnasiumTasks:
    """Control tasks whose environments differ in the values of some of their parameters.

    Args:
        family: the environments and the distribution of their parameters.
        shot: number of trajectories in a rollout, from which a learner makes one update.
        query: number of trajectories by which an adapted policy is scored.
        seed: fixes all episodes.
        rollouts: number of rollouts that a learner may play while it adapts: one for each update.
        horizon: T, the greatest number of steps in a trajectory.

    Raises:
        OptionError: a number is below 1.
        DataError: the environments have spaces that no policy of kshot fits, or lack a parameter.

    Example:
        >>> import gymnasium
        >>> from kshot_gymnasium import Family, GymnasiumTasks, Uniform
        >>> make = lambda n: gymnasium.make_vec("MountainCar-v0", n, vectorization_mode="sync")
        >>> tasks = GymnasiumTasks(Family("cars", make, {"force": Uniform(0.001, 0.002)}), query=3, horizon=5)
        >>> source = tasks.sample("test", [0, 1]).query.source
        >>> source.rollout(lambda x: torch.zeros(x.shape[:2], dtype=torch.int64)).rewards.shape
        torch.Size([2, 3, 5])
    """

    def __init__(
        self, family: Family, shot: int = 20, query: int = 20, seed: int = 0, *, rollouts: int = 3, horizon: int = 200
    ) -> None:
        given = {"shot": shot, "query": query, "rollouts": rollouts, "horizon": horizon}
        if wrong := [f"{name} {value}" for name, value in given.items() if value < 1]:
            raise OptionError(f"{family.name}: got {', '.join(wrong)}, expected at least 1; raise them")
        self.family, self.seed = family, seed
        self._shot, self._query, self._horizon = shot, query, horizon
        # The spaces are those of the environments of one rollout of one task, which are kept.
        vector = family.vector(shot)
        self.spec = TaskSpec(
            kind="control",
            **observation_fields(vector.single_observation_space, family.name),
            **action_fields(vector.single_action_space, family.name),
            shot=shot,
            query=query,
            rollouts=rollouts,
            split_by="index",
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return tasks ``indices`` of ``split``; the origin's fields have the values [B] of each parameter by name."""
        check_split(split, self.spec)
        keys = episode_keys(self.seed, split, indices)
        values, key = self.family.draw(keys).astype(np.float32), as_tensor(keys)
        fields = {name: values[:, i].copy() for i, name in enumerate(self.family.parameters)}
        origin = Origin(split, tuple(indices), self.seed, shot=self._shot, query=self._query, fields=fields)
        parameters = torch.from_numpy(values)

        def environment(purpose: str, trajectories: int, rollouts: int | None) -> Environment:
            """Make the environment of support or query, with its own random starts."""
            own = control.own_key(key, purpose)
            return Environment(parameters, own, self.family, self.spec, trajectories, self._horizon, rollouts)

        support = environment("support", self._shot, self.spec.rollouts)
        return control.episode(support, environment("query", self._query, None), key, origin, self.spec)
