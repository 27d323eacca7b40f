"""Run a chunk, which is a group of tasks of a meta-batch: by ``torch.func.vmap``, or a single task in a loop.

Letters: B meta-batch, n the tasks of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot.episode import one_task
from kshot.inner.cost import Choice
from kshot.inner.descent import State
from kshot.inner.vmap_norms import AffineApart


@frozen(eq=False)
class Chunk:
    """Run a function of one task for the tasks of a chunk.

    Attributes:
        function: maps a state and the values of one task to a pytree of tensors.
        choice: between vmap and a loop.
        shared: whether all tasks share the state; otherwise its tensors begin with n.
        tasks: n; 1 in a loop.

    Example:
        >>> chunk = Chunk(lambda state, x: state.parameters["a"] * x, Choice(2), shared=True, tasks=2)
        >>> chunk.run({"a": torch.tensor(3.0)}, {}, (torch.tensor([1.0, 2.0]),))
        tensor([3., 6.])
    """

    function: Callable[..., Any]
    choice: Choice
    shared: bool
    tasks: int

    def run(self, parameters: Any, buffers: Any, values: Any) -> Any:
        """Return the results of the tasks, in which every tensor begins with n.

        Args:
            parameters, buffers: of the state, by name.
            values: the arguments of the function after the state; every tensor begins with n.
        """
        if self.choice.chunk is None:
            result = self.function(*first_task(State(parameters, buffers), self.shared, values))
            return with_tasks(pytree.tree_map_only(Tensor, lambda t: t[None], result), 1)

        def run_one(parameters: Any, buffers: Any, values: Any) -> Any:
            return self.function(State(parameters, buffers), *values)

        # A module in training writes running statistics into its buffers, so each task needs a copy of them. Shared
        # parameters stay shared (None tells vmap that they have no axis B): then the first inner step of all tasks is
        # one large operation instead of n small ones.
        copies = {n: (b.expand(self.tasks, *b.shape) if self.shared else b).clone() for n, b in buffers.items()}
        # With "different" each task has its own random numbers, such as those of dropout.
        run = torch.func.vmap(run_one, in_dims=(None if self.shared else 0, 0, 0), randomness="different")
        with AffineApart() if self.choice.apart else nullcontext():
            return with_tasks(run(parameters, copies, values), self.tasks)


def first_task(state: State, shared: bool, values: Any) -> tuple[Any, ...]:
    """Return the arguments of the function for the first task: its state, with a copy of the buffers, and its values.

    Example:
        >>> state, x = first_task(State({}, {"a": torch.zeros(2)}), True, (torch.tensor([[1.0], [2.0]]),))
        >>> x
        tensor([1.])
    """
    if not shared:
        state = State({n: p[0] for n, p in state.parameters.items()}, {n: b[0] for n, b in state.buffers.items()})
    return State(state.parameters, {n: b.clone() for n, b in state.buffers.items()}), *one_task(values, 0)


def with_tasks(results: Any, tasks: int) -> Any:
    """Return the results with the number of tasks written into every ``State`` in them.

    Example:
        >>> with_tasks([State({}, {})], 3)[0].tasks
        3
    """

    def marked(value: Any) -> Any:
        return State(value.parameters, value.buffers, tasks) if isinstance(value, State) else value

    return pytree.tree_map(marked, results, is_leaf=lambda value: isinstance(value, State))
