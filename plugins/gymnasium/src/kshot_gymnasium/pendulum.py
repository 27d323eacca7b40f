"""Pendulums that differ in their mass.

Letters: n environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kshot.errors import OptionError
from kshot_gymnasium.adapter import GymnasiumTasks
from kshot_gymnasium.families import Family, Uniform
from kshot_gymnasium.vectors import BatchedEnv

GRAVITY, SECONDS, MAX_TORQUE, MAX_SPEED = 10.0, 0.05, 2.0, 8.0


class PendulumVector(BatchedEnv):
    """Step n pendulums of gymnasium's ``Pendulum-v1`` at once, each with its own mass.

    An observation is the cosine and the sine of the angle from upright, and the angular speed. An action is the torque,
    between -2 and 2. The reward is ``-(angle^2 + 0.1 speed^2 + 0.001 torque^2)``, and a trajectory never ends.

    Args:
        n: the number of environments.

    Attributes:
        m: the mass of each pendulum [n]; 1 in gymnasium.

    Example:
        >>> vector = PendulumVector(2)
        >>> vector.set_attr("m", [0.5, 2.0])
        >>> observations, _ = vector.reset(seed=[3, 4])
        >>> observations.shape, vector.step(np.zeros((2, 1)))[1].shape
        ((2, 3), (2,))
    """

    m: NDArray[np.float64]

    def __init__(self, n: int) -> None:
        high = np.array([1.0, 1.0, MAX_SPEED], np.float32)
        actions = spaces.Box(-np.float32(MAX_TORQUE), np.float32(MAX_TORQUE), (1,))
        super().__init__(n, spaces.Box(-high, high), actions, {"m": 1.0})
        self._angle, self._speed = np.zeros(n), np.zeros(n)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start all environments, at any angle and with a speed uniform in [-1, 1]; ``starts`` reads ``seed``."""
        chance = 2 * self.starts(seed, 2) - 1
        self._angle, self._speed = np.pi * chance[:, 0], chance[:, 1]
        return self._observations(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Apply the torques [n, 1]."""
        torque = np.clip(actions[:, 0].astype(np.float64), -MAX_TORQUE, MAX_TORQUE)
        away = (self._angle + np.pi) % (2 * np.pi) - np.pi
        rewards = -(away**2 + 0.1 * self._speed**2 + 0.001 * torque**2)
        # A rod of length 1: the moment of inertia is m / 3.
        acceleration = 1.5 * GRAVITY * np.sin(self._angle) + 3 / self.m * torque
        self._speed = np.clip(self._speed + SECONDS * acceleration, -MAX_SPEED, MAX_SPEED)
        self._angle = self._angle + SECONDS * self._speed
        never = np.zeros(self.num_envs, np.bool_)
        return self._observations(), rewards, never, never, {}

    def _observations(self) -> NDArray[np.float32]:
        return np.stack([np.cos(self._angle), np.sin(self._angle), self._speed], -1).astype(np.float32)


class Pendulum(GymnasiumTasks):
    """Control tasks of swinging up pendulums of different masses by a bounded torque.

    Args:
        shot: number of trajectories in a rollout, from which a learner makes one update.
        query: number of trajectories by which an adapted policy is scored.
        seed: fixes all episodes.
        mass: the range (least, greatest) of the mass; 1 in gymnasium. The torque lifts one of 0.4 directly; a heavier
            one has to swing.
        rollouts: number of rollouts that a learner may play while it adapts: one for each update.
        horizon: T, the number of steps in a trajectory.

    Raises:
        OptionError: a number is below 1, or the range is empty or not above 0.

    Example:
        >>> import torch
        >>> source = Pendulum(query=3, horizon=7).sample("test", [0, 1]).query.source
        >>> source.rollout(lambda x: -x[..., 1:2]).rewards.shape
        torch.Size([2, 3, 7])
    """

    def __init__(
        self,
        shot: int = 20,
        query: int = 20,
        seed: int = 0,
        *,
        mass: tuple[float, float] = (0.2, 2.0),
        rollouts: int = 3,
        horizon: int = 200,
    ) -> None:
        if not mass[0] > 0:
            raise OptionError(f"pendulum: got a least mass of {mass[0]}, expected more than 0; raise it")
        family = Family("pendulum", PendulumVector, {"m": Uniform(*mass)})
        super().__init__(family, shot, query, seed, rollouts=rollouts, horizon=horizon)
