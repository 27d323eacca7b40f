"""Cart poles that differ in the length of the pole and in the force (Barto, Sutton & Anderson 1983).

Letters: n environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kshot.errors import OptionError
from kshot_gymnasium.adapter import GymnasiumTasks
from kshot_gymnasium.families import Family, OneOf, Uniform
from kshot_gymnasium.vectors import BatchedEnv

GRAVITY, MASS_OF_CART, MASS_OF_POLE, SECONDS = 9.8, 1.0, 0.1, 0.02
MAX_POSITION, MAX_ANGLE = 2.4, 12 * 2 * np.pi / 360


class CartPoleVector(BatchedEnv):
    """Step n cart poles of gymnasium's ``CartPole-v1`` at once, each with its own pole and force.

    An observation is the position, the speed, the angle and the angular speed. The actions 0 and 1 push the cart to
    the left and to the right. Each step is rewarded with 1. A trajectory ends when the cart is further than 2.4 from
    the middle, or the pole is more than 12 degrees from upright.

    Args:
        n: the number of environments.

    Attributes:
        length: half the length of each pole [n]; 0.5 in gymnasium.
        force: of each push [n]; 10 in gymnasium.
        sign: 1, or -1 if the two actions are exchanged [n].

    Example:
        >>> vector = CartPoleVector(2)
        >>> vector.set_attr("length", [0.25, 1.0])
        >>> _ = vector.reset(seed=[3, 4])
        >>> vector.step(np.array([0, 1]))[1].tolist()
        [1.0, 1.0]
    """

    length: NDArray[np.float64]
    force: NDArray[np.float64]
    sign: NDArray[np.float64]

    def __init__(self, n: int) -> None:
        high = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], np.float32)
        super().__init__(n, spaces.Box(-high, high), spaces.Discrete(2), {"length": 0.5, "force": 10.0, "sign": 1.0})
        self._state = np.zeros((4, n))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start all environments, with each number of the state uniform in [-0.05, 0.05]; ``starts`` reads ``seed``."""
        self._state = 0.1 * self.starts(seed, 4).T - 0.05
        return self._state.T.astype(np.float32), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Push all carts to the left (0) or to the right (1) [n]."""
        x, speed, angle, turning = self._state
        cos, sin, total = np.cos(angle), np.sin(angle), MASS_OF_CART + MASS_OF_POLE
        # Florian 2007, "Correct equations for the dynamics of the cart-pole system", without friction.
        force = np.where(actions == 1, self.force, -self.force) * self.sign
        pushed = (force + MASS_OF_POLE * self.length * turning**2 * sin) / total
        lever = self.length * (4 / 3 - MASS_OF_POLE * cos**2 / total)
        angular = (GRAVITY * sin - cos * pushed) / lever
        linear = pushed - MASS_OF_POLE * self.length * angular * cos / total
        # Euler's method.
        self._state = np.stack(
            [x + SECONDS * speed, speed + SECONDS * linear, angle + SECONDS * turning, turning + SECONDS * angular]
        )
        fallen = (np.abs(self._state[0]) > MAX_POSITION) | (np.abs(self._state[2]) > MAX_ANGLE)
        never = np.zeros(self.num_envs, np.bool_)
        return self._state.T.astype(np.float32), np.ones(self.num_envs), fallen, never, {}


class CartPole(GymnasiumTasks):
    """Control tasks of balancing poles of different lengths by different forces.

    Args:
        shot: number of trajectories in a rollout, from which a learner makes one update.
        query: number of trajectories by which an adapted policy is scored.
        seed: fixes all episodes.
        length: the range (least, greatest) of half the length of the pole; 0.5 in gymnasium.
        force: the range (least, greatest) of the force; 10 in gymnasium.
        actions: ``fixed``, or ``exchanged`` for tasks of which half exchange the two actions, so that no policy can
            balance the pole without adapting.
        rollouts: number of rollouts that a learner may play while it adapts: one for each update.
        horizon: T, the greatest number of steps in a trajectory and the greatest return.

    Raises:
        OptionError: a number is below 1, a range is empty or not above 0, or the choice is unknown.

    Example:
        >>> import torch
        >>> source = CartPole(query=3, horizon=7).sample("test", [0, 1]).query.source
        >>> source.rollout(lambda x: (x[..., 2] > 0).long()).rewards.sum(-1).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        shot: int = 20,
        query: int = 20,
        seed: int = 0,
        *,
        length: tuple[float, float] = (0.25, 1.0),
        force: tuple[float, float] = (5.0, 15.0),
        actions: Literal["fixed", "exchanged"] = "fixed",
        rollouts: int = 3,
        horizon: int = 200,
    ) -> None:
        if actions not in ("fixed", "exchanged"):
            raise OptionError(f"cartpole: got actions {actions!r}, expected 'fixed' or 'exchanged'; choose one of them")
        for name, (low, _) in {"length": length, "force": force}.items():
            if not low > 0:
                raise OptionError(f"cartpole: got a least {name} of {low}, expected more than 0; raise it")
        parameters: dict[str, Uniform | OneOf] = {"length": Uniform(*length), "force": Uniform(*force)}
        if actions == "exchanged":
            parameters["sign"] = OneOf((-1.0, 1.0))
        super().__init__(
            Family("cartpole", CartPoleVector, parameters), shot, query, seed, rollouts=rollouts, horizon=horizon
        )
