"""External memories as parts of a learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kshot.errors import KshotError, MisfitError


def memory(factory: Callable[..., Any], slots: int, width: int, reads: int) -> Any:
    """The ``kshot.Memory`` that ``factory(slots, width, reads)`` makes, tried on one step.

    Args:
        factory: a ``kshot.MemoryFactory``; a user's options in it win over these sizes.
        slots, width, reads: M, W and R that the learner would choose.

    Raises:
        MisfitError: it does not cut an interface of the length that it says, or reads of another length come out.
    """
    made = factory(slots, width, reads)
    said = f"{type(made).__name__} says interface_size {made.interface_size} and read_size {made.read_size}"
    tried = torch.zeros(2, made.interface_size)
    with torch.no_grad():
        try:
            answer, _ = made.step(tried, made.initial_state(2))
        except KshotError:
            raise
        except Exception as error:
            raise MisfitError(
                f"{said}, but a step on an interface of shape {tuple(tried.shape)} raised {type(error).__name__}: "
                f"{error}; what step cuts must add up to interface_size"
            ) from error
    if tuple(answer.shape) != (2, made.read_size):
        raise MisfitError(f"{said}, but a step gave reads of shape {tuple(answer.shape)}, expected (2, read_size)")
    return made
