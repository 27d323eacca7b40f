"""2-D navigation: Finn, Abbeel & Levine, "Model-agnostic meta-learning", 2017 (1703.03400), section 5.3.

Letters: B tasks, E trajectories per task, T steps.
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
"""The largest move of a point in one step, in each coordinate."""

NEAR = 0.01
"""A trajectory ends with the step after which both coordinates are closer to the goal than this."""


@frozen(eq=False)
class Environment:
    """Move points from the origin towards the goals of B tasks.

    The observation is the position. The action is a displacement, which is clipped to ``STEP`` in each coordinate. The
    reward is minus the distance to the goal after the move. The distance is not squared, as in the paper's code; the
    paper's text squares it.

    Attributes:
        goal: the goal of each task [B, 2], hidden from the policy.
        key: keys of the episodes [B], for policies with random actions; the moves themselves are not random.
        trajectories, horizon: E and T of one rollout.
        rollouts: the number of rollouts that may be played, or None for any number.
    """

    goal: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play E trajectories per task with the policy: observations and actions [B, E, T, 2].

        The score ``reached`` [B, E] tells which trajectories came near the goal.

        Args:
            policy: a function of the positions [B, E, 2].
            number: the number of the rollout; each number gives the policy other random numbers.
        """
        key = control.rollout_key(self.key, number, self.rollouts)
        act = control.playing(policy, key, (self.trajectories, self.horizon), target_shape=(2,))
        at = self.goal.new_zeros(*key.shape, self.trajectories, 2)
        positions, actions = [at], []
        for _ in range(self.horizon):
            actions.append(act(at))
            at = at + actions[-1].clamp(-STEP, STEP)
            positions.append(at)
        # Rewards and ends follow from the positions after each move.
        path = torch.stack(positions, -2)
        away = path[..., 1:, :] - self.goal[..., None, None, :]
        near = away.abs().amax(-1) < NEAR
        rewards = -torch.linalg.vector_norm(away, dim=-1)
        scores = {"reached": near.any(-1)}
        seen, taken = path[..., :-1, :], torch.stack(actions, -2)
        return control.recorded(seen, taken, rewards, near, scores, who="navigation2d")


register_value(Environment, "goal", "key")


class Navigation2D:
    """Control tasks that differ in the goal, uniform in [-0.5, 0.5]^2. Without moves the mean return is -38.3.

    Args:
        shot: number of trajectories in a rollout, from which a learner makes one update.
        query: number of trajectories by which an adapted policy is scored.
        seed: fixes all episodes.
        rollouts: number of rollouts that a learner may play while it adapts: one for each update.
        horizon: T, the number of steps in a trajectory.

    Raises:
        OptionError: a number is below 1.

    Example:
        >>> from kshot_navigation2d import Navigation2D
        >>> source = Navigation2D(query=5, horizon=7).sample("test", [0, 1]).query.source
        >>> source.rollout(lambda position: -0.1 * position).rewards.shape
        torch.Size([2, 5, 7])
    """

    def __init__(
        self, shot: int = 20, query: int = 20, seed: int = 0, *, rollouts: int = 3, horizon: int = 100
    ) -> None:
        given = {"shot": shot, "query": query, "rollouts": rollouts, "horizon": horizon}
        if wrong := [f"{name} {value}" for name, value in given.items() if value < 1]:
            raise OptionError(f"navigation2d: got {', '.join(wrong)}, expected at least 1")
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
        """Return tasks ``indices`` of ``split``; their goals [B, 2] are ``goal`` in the origin's fields."""
        check_split(split, self.spec)
        keys = episode_keys(self.seed, split, indices)
        goal, key = torch.from_numpy(uniform(keys, "goal", 2) - 0.5).float(), as_tensor(keys)
        origin = Origin(
            split, tuple(indices), self.seed, shot=self._shot, query=self._query, fields={"goal": goal.numpy().copy()}
        )
        support = Environment(goal, control.own_key(key, "support"), self._shot, self._horizon, self.spec.rollouts)
        query = Environment(goal, control.own_key(key, "query"), self._query, self._horizon)
        return control.episode(support, query, key, origin, self.spec)
