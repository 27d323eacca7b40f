"""The navigation as a single gymnasium environment: ``gymnasium.make("kshot/Navigation2D-v0")``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from kshot_navigation2d.tasks import NEAR, STEP

ID = "kshot/Navigation2D-v0"

Vector = NDArray[np.float32]


class Navigation2DEnv(gymnasium.Env[Vector, Vector]):
    """Move a single point from the origin to a goal that only the rewards depend on.

    ``reset`` draws a goal from the environment's own generator, uniform in [-0.5, 0.5]^2, or takes it from
    ``options={"goal": (x, y)}``. ``info["goal"]`` contains it.

    Args:
        horizon: number of steps after which an episode is truncated.

    Example:
        >>> from kshot_navigation2d.gym import Navigation2DEnv
        >>> observation, info = Navigation2DEnv().reset(options={"goal": (0.5, -0.25)})
        >>> observation.tolist(), info["goal"].tolist()
        ([0.0, 0.0], [0.5, -0.25])
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, horizon: int = 100) -> None:
        far = np.float32(STEP * horizon)
        self.observation_space = gymnasium.spaces.Box(-far, far, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(np.float32(-STEP), np.float32(STEP), (2,), np.float32)
        self.horizon = horizon
        self._goal, self._at, self._steps = np.zeros(2, np.float32), np.zeros(2, np.float32), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, dict[str, Any]]:
        """Start an episode, and return the origin and an ``info`` with the goal."""
        super().reset(seed=seed)
        given = (options or {}).get("goal")
        self._goal = np.asarray(self.np_random.uniform(-0.5, 0.5, 2) if given is None else given, np.float32)
        self._at, self._steps = np.zeros(2, np.float32), 0
        return self._at.copy(), {"goal": self._goal.copy()}

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Move by ``action``. The reward is minus the distance to the goal, and the episode terminates near it."""
        self._at = self._at + np.clip(action, np.float32(-STEP), np.float32(STEP)).astype(np.float32)
        self._steps += 1
        away = self._at - self._goal
        near = bool(np.abs(away).max() < np.float32(NEAR))
        truncated = self._steps >= self.horizon and not near
        return self._at.copy(), -float(np.hypot(*away)), near, truncated, {"goal": self._goal.copy()}


def register() -> None:
    """Register the environment with gymnasium as ``ID``; a second call does nothing."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point="kshot_navigation2d.gym:Navigation2DEnv")
