"""A family of environments: how to make n of them, and the distribution of the parameters that make a task.

Letters: B tasks, n environments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot.errors import DataError, OptionError
from kshot.randomness import draws, uniform

Vector = Any
"""A ``gymnasium.vector.VectorEnv`` with ``set_attr`` and ``get_attr``, which that class does not declare itself."""

KEPT = 4
"""How many vector environments of different sizes are kept for the next rollouts."""


@frozen
class Uniform:
    """A parameter that is uniform between two numbers.

    Attributes:
        low, high: the least and the greatest value.

    Raises:
        OptionError: the numbers are not finite, or ``low`` is greater than ``high``.

    Example:
        >>> Uniform(0.5, 2.0).values(np.array([0.0, 0.5]))
        array([0.5 , 1.25])
    """

    low: float
    high: float

    def __attrs_post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise OptionError(
                f"gymnasium: got a range from {self.low} to {self.high}, expected two finite numbers (least, "
                "greatest); give the smaller one first"
            )

    def values(self, chance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map uniform numbers of [0, 1) [B] to values of the parameter [B]."""
        return self.low + (self.high - self.low) * chance


@frozen
class OneOf:
    """A parameter that has each of several values with the same probability.

    Attributes:
        choices: the values.

    Example:
        >>> OneOf((-1.0, 1.0)).values(np.array([0.2, 0.7]))
        array([-1.,  1.])
    """

    choices: tuple[float, ...]

    def values(self, chance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map uniform numbers of [0, 1) [B] to values of the parameter [B]."""
        return np.asarray(self.choices, np.float64)[(chance * len(self.choices)).astype(np.int64)]


class Family:
    """Environments that differ in the values of their parameters.

    Args:
        name: of the family, for messages and as the purpose of its random numbers.
        make: returns n environments as one ``gymnasium.vector.VectorEnv``, such as ``SyncVectorEnv``. Its ``reset``
            accepts a list of seeds, of which each alone determines the start of its environment, and its ``set_attr``
            sets an attribute of all environments to a list of values.
        parameters: the distribution of each attribute that differs by task.

    Example:
        >>> import gymnasium
        >>> make = lambda n: gymnasium.make_vec("Pendulum-v1", n, vectorization_mode="sync")
        >>> family = Family("pendulums", make, {"m": Uniform(0.5, 2.0)})
        >>> family.vector(3).num_envs
        3
    """

    def __init__(self, name: str, make: Callable[[int], Vector], parameters: Mapping[str, Uniform | OneOf]) -> None:
        self.name, self.make, self.parameters = name, make, dict(parameters)
        self._kept: dict[int, Vector] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; it makes its own environments."""
        return {**vars(self), "_kept": {}}

    def draw(self, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Draw the parameters of tasks by their keys [B]: [B, number of parameters]."""
        drawn = [p.values(uniform(keys, f"{self.name}: {name}", 1)[:, 0]) for name, p in self.parameters.items()]
        return np.stack(drawn, -1)

    def vector(self, n: int) -> Vector:
        """Return n environments, made at the first call; those of the last few sizes are kept.

        Raises:
            DataError: an attribute to be set does not exist, or is no real number.
        """
        if (kept := self._kept.pop(n, None)) is None:
            kept = self.make(n)
            for name in self.parameters:
                self._check_attribute(kept, name)
            while len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept))).close()
        self._kept[n] = kept  # the last used is the last to be closed
        return kept

    def start(self, values: NDArray[np.float64], seeds: NDArray[np.uint64]) -> tuple[Vector, NDArray[Any]]:
        """Set the parameters of n environments and start them.

        Args:
            values: of the parameters [n, number of parameters].
            seeds: one per environment [n].

        Returns:
            The environments, and their first observations [n, ...].
        """
        vector = self.vector(len(seeds))
        for i, name in enumerate(self.parameters):
            vector.set_attr(name, values[:, i].tolist())
        observations, _ = vector.reset(seed=seeds.tolist())
        return vector, observations

    def _check_attribute(self, vector: Vector, name: str) -> None:
        """Check that the environments have the attribute: setting a misspelt one would change nothing."""
        try:
            values: Sequence[Any] = vector.get_attr(name)
        except AttributeError:
            raise DataError(
                f"{self.name}: got the parameter {name!r}, which its environments do not have, expected the name of "
                "an attribute; see the code of the environment"
            ) from None
        if not all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values):
            raise DataError(
                f"{self.name}: got the parameter {name!r}, whose value is {values[0]!r}, expected an attribute that "
                "is a number; name another one"
            )


def seeds_of(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Draw the seeds of ``count`` environments for each of the keys [B]: [B, count].

    Example:
        >>> seeds_of(np.array([1, 2], np.uint64), 3).shape
        (2, 3)
    """
    # 63 bits, so that the seeds are positive as signed numbers too.
    return draws(keys, "starts", count) >> np.uint64(1)
