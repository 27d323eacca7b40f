"""Bernoulli bandits as in Duan et al., "RL^2: Fast reinforcement learning via slow reinforcement learning", 2016
(1611.02779), section 3.1: the arms' probabilities are uniform in [0, 1].

Letters: B tasks, N arms, E trajectories a task, T pulls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from kshot import Episode, Origin, Rollout, TaskSpec, control
from kshot.episode import Policy, register_value
from kshot.errors import OptionError
from kshot.randomness import as_tensor, episode_keys, uniform
from kshot.sampling import check_split


@frozen(eq=False)
class Environment:
    """B bandits: pulling arm a of task b pays 1 with probability ``chances[b, a]``, else 0.

    The observation is 1 and tells nothing; with ``history`` it is the arm pulled last, one-hot, and what it paid,
    all zeros before the first pull.

    Attributes:
        chances: [B, N], unseen by the policy.
        key: of the payments' chance [B].
        trajectories, horizon: E and T of one rollout.
        history: whether the last pull is observed.
        rollouts: the budget, or None for any number.
    """

    chances: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    history: bool = False
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Actions int64 [B, E, T]; the score ``regret`` is what always pulling the best arm would pay on average more
        than the arms that were pulled, summed over the pulls."""
        key = control.rollout_key(self.key, number, self.rollouts)
        E, T, N = self.trajectories, self.horizon, self.chances.shape[-1]
        act = control.playing(policy, key, (E, T), way=N)
        pays = control.uniforms(key, "payments", E, T).to(self.chances)
        chances = self.chances[..., None, :].expand(*key.shape, E, N)
        seen = self.chances.new_zeros(*key.shape, E, N + 1) if self.history else self.chances.new_ones(*key.shape, E, 1)
        observations, actions, rewards, missed = [], [], [], []
        for t in range(T):
            observations.append(seen)
            action = act(seen)
            chance = chances.gather(-1, action[..., None])[..., 0]
            actions.append(action)
            rewards.append((pays[..., t] < chance).to(pays))
            missed.append(chances.amax(-1) - chance)
            if self.history:
                seen = torch.cat([F.one_hot(action, N).to(pays), rewards[-1][..., None]], -1)
        paid = torch.stack(rewards, -1)
        scores = {"regret": torch.stack(missed, -1).sum(-1)}
        return control.recorded(torch.stack(observations, -2), torch.stack(actions, -1), paid, scores=scores)


register_value(Environment, "chances", "key")


class Bandits:
    """Tasks that differ in what the arms pay. Pulling at random pays horizon / 2 on average.

    Args:
        shot: trajectories of a rollout, from which a learner updates once.
        query: trajectories by which an adapted policy is judged.
        seed: fixes all episodes.
        arms: N.
        horizon: pulls of a trajectory, T.
        history: let the policy see its last pull and what it paid, for policies that remember.
        rollouts: how many a learner may play while adapting; as many updates on trajectories of their own.

    Raises:
        OptionError: fewer than two arms, or another number less than 1.
    """

    def __init__(
        self,
        shot: int = 5,
        query: int = 20,
        seed: int = 0,
        *,
        arms: int = 5,
        horizon: int = 10,
        history: bool = False,
        rollouts: int = 3,
    ) -> None:
        given = {"shot": shot, "query": query, "horizon": horizon, "rollouts": rollouts, "arms": arms}
        if wrong := [f"{name} is {value}" for name, value in given.items() if value < (2 if name == "arms" else 1)]:
            raise OptionError(f"bandits: {', '.join(wrong)}; expected at least 1, and 2 arms")
        self.seed, self._horizon, self._history = seed, horizon, history
        self._shot, self._query, self._arms = shot, query, arms
        self.spec = TaskSpec(
            kind="control",
            input_shape=(arms + 1,) if history else (1,),
            input_range=(0.0, 1.0),
            way=arms,
            shot=shot,
            query=query,
            rollouts=rollouts,
            split_by="index",
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Tasks ``indices`` of ``split``; the origin's fields have the arms' ``chances``."""
        check_split(split, self.spec)
        keys = episode_keys(self.seed, split, indices)
        chances, key = torch.from_numpy(uniform(keys, "chances", self._arms)).float(), as_tensor(keys)
        fields = {"chances": chances.numpy().copy()}
        origin = Origin(split, tuple(indices), self.seed, shot=self._shot, query=self._query, fields=fields)

        def played(purpose: str, trajectories: int, rollouts: int | None) -> Environment:
            own = control.own_key(key, purpose)
            return Environment(chances, own, trajectories, self._horizon, self._history, rollouts)

        support, query = played("support", self._shot, self.spec.rollouts), played("query", self._query, None)
        return control.episode(support, query, key, origin, self.spec)
