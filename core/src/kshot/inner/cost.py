"""Measure the cost of one task by the number and the size of its intermediate results, to choose vmap or a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kshot.inner.vmap_norms import AffineApart


@frozen
class Choice:
    """Store how to run the tasks of one shape.

    Attributes:
        chunk: the number of tasks to vmap at once; None to loop.
        apart: whether normalisation must be separated from its weights, see ``kshot.inner.vmap_norms``.

    Example:
        >>> Choice(chunk=8)
        Choice(chunk=8, apart=False)
    """

    chunk: int | None
    apart: bool = False


LOOP = Choice(None)


@frozen
class Cost:
    """Store what running one task costs.

    Attributes:
        operations: the number of operations.
        bytes: the size of all their results.
        device: the type of device that computed the last result.
        apart: as in ``Choice``.

    Example:
        >>> Cost(operations=10, bytes=4000, device="cpu", apart=False).bytes
        4000
    """

    operations: int
    bytes: int
    device: str
    apart: bool


class _Counting(TorchDispatchMode):
    """Count the operations inside, and the bytes of their results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.bytes = 0
        self.device = "cpu"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.operations += 1
        for t in results if isinstance(results, tuple | list) else (results,):
            if isinstance(t, Tensor):
                self.bytes += t.numel() * t.element_size()
                self.device = t.device.type
        return results


def cost_of(function: Callable[..., Any], *task: Any) -> Cost:
    """Measure one task by running it; the state of torch's random generator for the CPU is restored afterwards.

    Example:
        >>> cost_of(lambda x: x + 1, torch.zeros(4))
        Cost(operations=1, bytes=16, device='cpu', apart=False)
    """
    state = torch.default_generator.get_state()
    with _Counting() as counted, AffineApart(only_look=True) as layers:
        function(*task)
    torch.default_generator.set_state(state)
    return Cost(counted.operations, counted.bytes, counted.device, layers.met)
