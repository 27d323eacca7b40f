"""The bandit as a single gymnasium environment: ``gymnasium.make("kshot/Bandit-v0")``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

ID = "kshot/Bandit-v0"

Vector = NDArray[np.float32]


class BanditEnv(gymnasium.Env[Vector, np.int64]):
    """Play a single bandit whose arms pay 1 with fixed probabilities, else 0.

    ``reset`` draws the probabilities from the environment's own generator, uniform in [0, 1], or takes them from
    ``options={"chances": [...]}``. ``info["chances"]`` contains them.

    Args:
        arms: N, the number of arms.
        horizon: number of pulls after which an episode is truncated.
        history: observe the previous pull, one-hot, and its payment; otherwise the observation is always 1.

    Example:
        >>> from kshot_bandits.gym import BanditEnv
        >>> observation, info = BanditEnv(arms=2).reset(options={"chances": [0.1, 0.9]})
        >>> info["chances"].tolist()
        [0.1, 0.9]
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, arms: int = 5, horizon: int = 10, history: bool = False) -> None:
        self.action_space: gymnasium.spaces.Discrete = gymnasium.spaces.Discrete(arms)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (arms + 1 if history else 1,), np.float32)
        self.horizon, self.history = horizon, history
        self._chances, self._pulls = np.zeros(arms), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, dict[str, Any]]:
        """Start an episode, and return the first observation and an ``info`` with the probabilities."""
        super().reset(seed=seed)
        given = (options or {}).get("chances")
        self._chances = self.np_random.uniform(0, 1, len(self._chances)) if given is None else np.asarray(given)
        self._pulls = 0
        return self._observation(None, 0.0), self._info()

    def step(self, action: np.int64) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Pull arm ``action``. An episode never terminates, but is truncated after ``horizon`` pulls."""
        paid = float(self.np_random.random() < self._chances[action])
        self._pulls += 1
        return self._observation(action, paid), paid, False, self._pulls >= self.horizon, self._info()

    def _observation(self, action: np.int64 | None, paid: float) -> Vector:
        if not self.history:
            return np.ones(1, np.float32)
        seen = np.zeros(len(self._chances) + 1, np.float32)
        if action is not None:
            seen[action], seen[-1] = 1, paid
        return seen

    def _info(self) -> dict[str, Any]:
        return {"chances": self._chances.copy()}


def register() -> None:
    """Register the environment with gymnasium as ``ID``; a second call does nothing."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point="kshot_bandits.gym:BanditEnv")
