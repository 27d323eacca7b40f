"""Half-cheetahs that are rewarded for a speed or for a direction: Finn, Abbeel & Levine, "Model-agnostic
meta-learning", 2017 (1703.03400), section 5.3. They need MuJoCo.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from kshot.errors import DataError, OptionError
from kshot_gymnasium.adapter import GymnasiumTasks
from kshot_gymnasium.families import Family, OneOf, Uniform, Vector

ID = "HalfCheetah-v5"

Goal = Literal["velocity", "direction"]


class WithGoal(gymnasium.Wrapper[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]):
    """Reward a half-cheetah for its goal: minus the distance to a speed, or the speed in a direction.

    The costs of an action are 0.05 times the sum of its squares, as in the paper's code.

    Args:
        env: a ``HalfCheetah-v5`` of gymnasium, whose ``info`` has the speed as ``x_velocity``.
        kind: ``velocity`` or ``direction``.

    Attributes:
        goal: the speed, or 1 for forward and -1 for backward.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], kind: Goal) -> None:
        super().__init__(env)
        self.kind, self.goal = kind, 1.0

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Step the half-cheetah, and replace its reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        speed = float(info["x_velocity"])
        forward = -abs(speed - self.goal) if self.kind == "velocity" else self.goal * speed
        return observation, forward - 0.05 * float(np.square(action).sum()), terminated, truncated, info


def half_cheetahs(kind: Goal, n: int) -> Vector:
    """Make n half-cheetahs with a goal, which ``SyncVectorEnv`` steps one after another.

    Raises:
        DataError: MuJoCo is not installed.
    """
    if importlib.util.find_spec("mujoco") is None:
        raise DataError(
            "half-cheetah: got no module mujoco, expected MuJoCo to be installed; run: pip install "
            "'kshot-gymnasium[mujoco]'"
        )

    def one() -> gymnasium.Env[Any, Any]:
        """Make one half-cheetah, without a limit of time."""
        return WithGoal(gymnasium.make(ID, max_episode_steps=-1, disable_env_checker=True), kind)

    return SyncVectorEnv([one] * n)


class HalfCheetah(GymnasiumTasks):
    """Control tasks of running at a speed, or in a direction, that only the rewards depend on.

    Args:
        shot: number of trajectories in a rollout, from which a learner makes one update.
        query: number of trajectories by which an adapted policy is scored.
        seed: fixes all episodes.
        goal: ``velocity`` or ``direction``.
        speeds: the range (least, greatest) of the goals of ``velocity``, in units of length per second; the paper's
            by default.
        rollouts: number of rollouts that a learner may play while it adapts: one for each update.
        horizon: T, the number of steps in a trajectory; the paper's by default.

    Raises:
        OptionError: a number is below 1, the range is empty, or the goal is unknown.
        DataError: MuJoCo is not installed.

    Example:
        >>> tasks = HalfCheetah(shot=2, horizon=10, goal="direction")  # needs MuJoCo # doctest: +SKIP
        >>> tasks.spec.input_shape, tasks.spec.target_shape  # doctest: +SKIP
        ((17,), (6,))
    """

    def __init__(
        self,
        shot: int = 20,
        query: int = 20,
        seed: int = 0,
        *,
        goal: Goal = "velocity",
        speeds: tuple[float, float] = (0.0, 2.0),
        rollouts: int = 3,
        horizon: int = 200,
    ) -> None:
        if goal not in ("velocity", "direction"):
            raise OptionError(
                f"half-cheetah: got goal {goal!r}, expected 'velocity' or 'direction'; choose one of them"
            )
        distribution: Uniform | OneOf = Uniform(*speeds) if goal == "velocity" else OneOf((-1.0, 1.0))
        family = Family("half-cheetah", partial(half_cheetahs, goal), {"goal": distribution})
        super().__init__(family, shot, query, seed, rollouts=rollouts, horizon=horizon)
