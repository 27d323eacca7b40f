"""Bernoulli bandits as in Duan et al., "RL^2: Fast reinforcement learning via slow reinforcement learning", 2016
(1611.02779), section 3.1: the arms' probabilities are uniform in [0, 1].

Letters: B tasks, N arms, E trajectories per task, T pulls.
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
    """Play B bandits: pulling arm a of task b pays 1 with probability ``chances[b, a]``, else 0.

    The observation is always 1. With ``history`` it is the previous arm, one-hot, and its payment; before the first
    pull it is all zeros.

    Attributes:
        chances: payment probabilities [B, N], hidden from the policy.
        key: keys of the random payments [B].
        trajectories, horizon: E and T of one rollout.
        history: whether the previous pull is observed.
        rollouts: the number of rollouts that may be played, or None for any number.
    """

    chances: Tensor
    key: Tensor
    trajectories: int
    horizon: int
    history: bool = False
    rollouts: int | None = None

    @torch.no_grad()
    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        """Play E trajectories per task with the policy, whose actions are int64 [B, E, T].

        The score ``regret`` [B, E] is the sum over pulls of the best arm's probability minus that of the pulled arm.

        Args:
            policy: a function of the observations [B, E, 1], or [B, E, N + 1] with ``history``.
            number: the number of the rollout; each number has its own random payments.
        """
        key = control.rollout_key(self.key, number, self.rollouts)
        E, T, N = self.trajectories, self.horizon, self.chances.shape[-1]
        act = control.playing(policy, key, (E, T), way=N)
        pays = control.uniforms(key, "payments", E, T).to(self.chances)
        chances = self.chances[..., None, :].expand(*key.shape, E, N)
        # The first observation, before any pull.
        seen = self.chances.new_zeros(*key.shape, E, N + 1) if self.history else self.chances.new_ones(*key.shape, E, 1)
        observations, actions, rewards, regrets = [], [], [], []
        for t in range(T):
            observations.append(seen)
            action = act(seen)
            chance = chances.gather(-1, action[..., None])[..., 0]
            actions.append(action)
            rewards.append((pays[..., t] < chance).to(pays))
            regrets.append(chances.amax(-1) - chance)
            if self.history:
                seen = torch.cat([F.one_hot(action, N).to(pays), rewards[-1][..., None]], -1)
        paid = torch.stack(rewards, -1)
        scores = {"regret": torch.stack(regrets, -1).sum(-1)}
        return control.recorded(torch.stack(observations, -2), torch.stack(actions, -1), paid, scores=scores)


register_value(Environment, "chances", "key")


class Bandits:
    """Control tasks that differ in the arms' payment probabilities. Random pulls pay horizon / 2 on average.

    Args:
        shot: number of trajectories in a rollout, from which a learner makes one update.
        query: number of trajectories by which an adapted policy is scored.
        seed: fixes all episodes.
        arms: N, the number of arms.
        live: how many arms may pay, at random places in each task; the others never pay. None is all of them. So a
            policy can be tested with more paying arms than it was trained with.
        horizon: T, the number of pulls in a trajectory.
        history: show the policy its previous pull and the payment, for policies with a memory.
        rollouts: number of rollouts that a learner may play while it adapts: one for each update.

    Raises:
        OptionError: arms is below 2, another number is below 1, or ``live`` is greater than ``arms``.

    Example:
        >>> import torch
        >>> from kshot_bandits import Bandits
        >>> source = Bandits(arms=3, horizon=4, query=6).sample("test", [0, 1]).query.source
        >>> source.rollout(lambda x: torch.zeros(x.shape[:2], dtype=torch.int64)).rewards.shape
        torch.Size([2, 6, 4])
    """

    def __init__(
        self,
        shot: int = 5,
        query: int = 20,
        seed: int = 0,
        *,
        arms: int = 5,
        live: int | None = None,
        horizon: int = 10,
        history: bool = False,
        rollouts: int = 3,
    ) -> None:
        given = {"shot": shot, "query": query, "horizon": horizon, "rollouts": rollouts, "arms": arms}
        if wrong := [f"{name} {value}" for name, value in given.items() if value < (2 if name == "arms" else 1)]:
            raise OptionError(f"bandits: got {', '.join(wrong)}, expected at least 1, and at least 2 arms")
        if live is not None and not 1 <= live <= arms:
            raise OptionError(f"bandits: got {live} live arms, expected 1 to {arms}, the number of arms; change live")
        self.seed, self._horizon, self._history, self._live = seed, horizon, history, live
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
        """Return tasks ``indices`` of ``split``; the origin's field ``chances`` has the arms' probabilities [B, N]."""
        check_split(split, self.spec)
        keys = episode_keys(self.seed, split, indices)
        chances, key = torch.from_numpy(uniform(keys, "chances", self._arms)).float(), as_tensor(keys)
        if self._live is not None:
            # The live arms are those with the smallest of random numbers.
            rank = uniform(keys, "live", self._arms).argsort(-1).argsort(-1)
            chances = chances * torch.from_numpy(rank < self._live)
        fields = {"chances": chances.numpy().copy()}
        origin = Origin(split, tuple(indices), self.seed, shot=self._shot, query=self._query, fields=fields)

        def environment(purpose: str, trajectories: int, rollouts: int | None) -> Environment:
            """Make the environment of support or query, with its own random payments."""
            own = control.own_key(key, purpose)
            return Environment(chances, own, trajectories, self._horizon, self._history, rollouts)

        support = environment("support", self._shot, self.spec.rollouts)
        query = environment("query", self._query, None)
        return control.episode(support, query, key, origin, self.spec)
