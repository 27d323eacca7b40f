"""What the vectorised environments of this plugin have in common: parameters, and starts by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kshot.randomness import uniform

Numbers = NDArray[np.float64]


class BatchedEnv(VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """n environments that one call of NumPy steps. It never resets an environment by itself.

    Args:
        n: the number of environments.
        observation_space, action_space: of one environment.
        parameters: the initial value of each attribute that ``set_attr`` may set for each environment; it becomes an
            array [n].
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, n: int, observation_space: Any, action_space: Any, parameters: dict[str, float]) -> None:
        self.num_envs = n
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space, self.action_space = batch_space(observation_space, n), batch_space(action_space, n)
        self._names = tuple(parameters)
        for name, value in parameters.items():
            setattr(self, name, np.full(n, value))

    def set_attr(self, name: str, values: Any) -> None:
        """Set a parameter of all environments to a number, or to one number for each.

        Raises:
            AttributeError: there is no such parameter.
        """
        self._check_name(name)
        setattr(self, name, np.broadcast_to(np.asarray(values, np.float64), self.num_envs).copy())

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return a parameter of each environment.

        Raises:
            AttributeError: there is no such parameter.
        """
        self._check_name(name)
        return tuple(getattr(self, name).tolist())

    def _check_name(self, name: str) -> None:
        if name not in self._names:
            raise AttributeError(f"{type(self).__name__}: got the parameter {name!r}, expected one of {self._names}")

    def starts(self, seed: int | Sequence[int | None] | None, count: int) -> Numbers:
        """Draw ``count`` uniform numbers of [0, 1) for each environment [n, count].

        Args:
            seed: one per environment, which alone determines its numbers; or one number, to which the index of the
                environment is added; None draws seeds from the environment's own generator.
            count: of numbers per environment.
        """
        if seed is None or (isinstance(seed, Sequence) and None in seed):
            seeds = self.np_random.integers(2**63, size=self.num_envs).astype(np.uint64)
        elif isinstance(seed, Sequence):
            seeds = np.asarray(seed, np.uint64)
        else:
            seeds = np.uint64(seed) + np.arange(self.num_envs, dtype=np.uint64)
        return uniform(seeds, "start", count)
