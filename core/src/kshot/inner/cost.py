"""Measure the cost of one task by the number and the size of its intermediate results, to choose vmap or a loop."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kshot.inner.vmap_norms import AffineApart
from kshot.randomness import global_generators


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
    with same_chance(task), _Counting() as counted, AffineApart(only_look=True) as layers:
        function(*task)
    return Cost(counted.operations, counted.bytes, counted.device, layers.met)


@contextlib.contextmanager
def same_chance(values: Any) -> Iterator[None]:
    """Restore the global random states at the end, so that the next block draws the same numbers.

    They are those of Python, of NumPy, and of torch on the CPU and on the devices of the tensors in ``values``.

    Args:
        values: a pytree of tensors and other values.

    Example:
        >>> with same_chance([torch.zeros(2)]):
        ...     first = torch.rand(())
        >>> bool(torch.rand(()) == first)
        True
    """
    devices = {t.device for t in pytree.tree_leaves(values) if isinstance(t, Tensor)} | {torch.device("cpu")}
    generators = {id(each): each for device in devices for each in global_generators(device)}.values()
    states = [(each, each.get_state()) for each in generators]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        for each, state in states:
            each.set_state(state)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
