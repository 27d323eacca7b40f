"""Build the external memory of a learner, and test it before it is used.

Letters: M slots, W width of a slot, R vectors that are read at each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kshot.errors import KshotError, MisfitError


def memory(factory: Callable[..., Any], slots: int, width: int, reads: int) -> Any:
    """Build a memory by ``factory(slots, width, reads)`` and test it on one step.

    Args:
        factory: a ``kshot.MemoryFactory``. If a user's options in it set these sizes, they replace the learner's.
        slots: M, as the learner chooses it.
        width: W, as the learner chooses it.
        reads: R, as the learner chooses it.

    Returns:
        The ``kshot.Memory``.

    Raises:
        MisfitError: a step fails on an interface of the length ``interface_size``, or returns reads of another length
            than ``read_size``.

    Example:
        >>> class Register:  # a memory that returns what it was given at the step before
        ...     interface_size = read_size = 3
        ...     def initial_state(self, batch_size):
        ...         return torch.zeros(batch_size, 3)
        ...     def step(self, interface, state):
        ...         return state, interface
        >>> memory(lambda slots, width, reads: Register(), 1, 3, 1).read_size
        3
    """
    built = factory(slots, width, reads)
    stated = f"{type(built).__name__} says interface_size {built.interface_size} and read_size {built.read_size}"
    # One step on an interface of zeros, for a batch of 2.
    interface = torch.zeros(2, built.interface_size)
    with torch.no_grad():
        try:
            read, _ = built.step(interface, built.initial_state(2))
        except KshotError:
            raise
        except Exception as error:
            raise MisfitError(
                f"{stated}, but a step on an interface of shape {tuple(interface.shape)} raised "
                f"{type(error).__name__}: {error}; the sizes of the slices that step takes must add up to "
                "interface_size"
            ) from error
    if tuple(read.shape) != (2, built.read_size):
        raise MisfitError(f"{stated}, but got reads of shape {tuple(read.shape)} from a step, expected (2, read_size)")
    return built
