"""The spaces of an environment as the fields of a task specification."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from kshot.errors import DataError


def observation_fields(space: spaces.Space[Any], who: str) -> dict[str, Any]:
    """Return the ``input_shape`` and, if all bounds are finite, the ``input_range`` of observations.

    Args:
        space: the observation space of one environment.
        who: the name of the environment, for messages.

    Raises:
        DataError: the space is not a ``Box``.

    Example:
        >>> observation_fields(spaces.Box(-1.0, 2.0, (3,)), "mine")
        {'input_shape': (3,), 'input_range': (-1.0, 2.0)}
    """
    if not isinstance(space, spaces.Box):
        raise DataError(
            f"{who}: got observations of the space {space}, expected a Box; wrap the environment, for example in "
            "gymnasium.wrappers.FlattenObservation"
        )
    shape = tuple(int(n) for n in space.shape) or (1,)
    low, high = float(space.low.min()), float(space.high.max())
    bounded = math.isfinite(low) and math.isfinite(high)
    return {"input_shape": shape, **({"input_range": (low, high)} if bounded else {})}


def action_fields(space: spaces.Space[Any], who: str) -> dict[str, Any]:
    """Return the ``way`` of discrete actions, or the ``target_shape`` and ``target_range`` of continuous ones.

    Args:
        space: the action space of one environment.
        who: the name of the environment, for messages.

    Raises:
        DataError: the space is neither ``Discrete`` from 0 on nor a ``Box`` of finite real numbers with the same
            bounds for each number.

    Example:
        >>> action_fields(spaces.Discrete(4), "mine")
        {'way': 4}
        >>> action_fields(spaces.Box(-2.0, 2.0, (1,)), "mine")
        {'target_shape': (1,), 'target_range': (-2.0, 2.0)}
    """
    if isinstance(space, spaces.Discrete):
        if int(space.start) != 0 or int(space.n) < 2:
            raise DataError(
                f"{who}: got actions of the space {space}, expected at least two, counted from 0; wrap the "
                "environment in gymnasium.wrappers.TransformAction"
            )
        return {"way": int(space.n)}
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise DataError(
            f"{who}: got actions of the space {space}, expected a Discrete space or a Box of real numbers; wrap the "
            "environment in gymnasium.wrappers.TransformAction"
        )
    low, high = float(space.low.min()), float(space.high.max())
    one_range = bool((space.low == low).all() and (space.high == high).all())
    if not (one_range and math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(
            f"{who}: got actions between {space.low.tolist()} and {space.high.tolist()}, expected the same finite "
            "bounds for each number; wrap the environment in gymnasium.wrappers.RescaleAction"
        )
    return {"target_shape": tuple(int(n) for n in space.shape), "target_range": (low, high)}
