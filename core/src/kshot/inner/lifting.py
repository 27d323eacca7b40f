"""Run a function that is written for one task for all B tasks of a meta-batch.

There are two methods to do so. A loop calls the function for one task after another. ``torch.func.vmap`` computes
several tasks in parallel; such a group of tasks is a chunk. ``per_episode`` is a decorator for the methods of a
learner, and always loops. ``Lift`` is for inner loops, and chooses between the loop and vmap.

Letters: B meta-batch, n examples. A pytree is a value that contains tensors, such as a tuple, a dict or an ``Episode``.
"""

from __future__ import annotations

import functools
import math
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kshot.errors import KshotError, OptionError, TrainingError
from kshot.inner.chunks import Chunk, first_task, with_tasks
from kshot.inner.cost import LOOP, Choice, cost_of
from kshot.inner.descent import State
from kshot.inner.identity import content_of, identity_of
from kshot.inner.looping import per_episode
from kshot.inner.programs import mean_loss
from kshot.inner.replays import Replays
from kshot.inner.rows import Rows

__all__ = ["CHUNK_BYTES", "LOOP_ABOVE", "Lift", "Strategy", "has_inner_loop", "per_episode"]

Strategy = Literal["auto", "vmap", "loop", "traced", "compiled"]

MOST_CHOICES = 256
"""Number of functions and shapes for which a ``Lift`` remembers how to run them; the oldest is forgotten."""

CHUNK_BYTES = 64 * 2**20
"""Memory in bytes for the intermediate results of one vmapped chunk. A chunk has as many tasks as fit into it."""

LOOP_ABOVE = 64 * 2**10
"""Mean size of an operation's result, in bytes, above which a loop is used on a CPU. One task with such large
operations already uses the processor fully, so vmap would not be faster."""


class Lift:
    """Run a function of one task, ``function(state, *values)``, for all B tasks of a meta-batch.

    The function sees tensors without the axis B. Its first argument is a ``State``: the parameters and the buffers of
    a module. The strategy says how the tasks run:

    - ``vmap``: in parallel by ``torch.func.vmap``, one chunk after another. Small chunks need little memory.
    - ``loop``: one task after another.
    - ``auto``: the faster of the two, judged by the size of the intermediate results of the first task. It never
      measures time, so a repeated or resumed run makes the same choice. If vmap can't run the function, ``auto``
      warns once and loops. A function that has run a hundred times on the same shapes is traced: its operations are
      recorded once and then replayed, which computes the same numbers with much less Python.
    - ``traced``: as ``auto``, but traced from the second run on.
    - ``compiled``: as ``traced``, and the trace is compiled by torch's inductor. This takes a minute or more and needs
      a C++ compiler.

    A trace is made again when an attribute changes on which the function depends, at most three times. A function that
    can't be traced, for example because it decides by the numbers in a tensor, runs as usual, and a warning says why.
    Results of ``map`` that have a graph are always computed by the function.

    If torch has several threads on the CPU, they share the chunks of a traced meta-batch: each chunk runs in one
    thread. Chunks that draw random numbers run in order.

    The results of ``vmap``, ``loop`` and ``compiled`` differ by rounding only.

    Args:
        strategy: ``auto``, ``vmap``, ``loop``, ``traced`` or ``compiled``.
        chunk: the greatest number of tasks in one chunk; None for as many as ``CHUNK_BYTES`` allows.

    Raises:
        OptionError: the strategy is unknown, or the chunk is less than one task.

    Example:
        Three tasks share the initial value theta = 0 and have the loss (theta - goal)^2, each with its own goal. One
        inner step with learning rate 0.5 is theta' = theta - 0.5 * 2 (theta - goal) = goal:

        >>> from kshot.inner import descend
        >>> def adapt(theta, goal):
        ...     loss = lambda state, _: (state.parameters["theta"] - goal).square()
        ...     return descend(loss, theta, None, lr=0.5, steps=1)
        >>> start = State({"theta": torch.tensor(0.0)}, {})
        >>> adapted, losses = Lift("vmap").map(adapt, start, torch.tensor([1.0, 2.0, 3.0]))
        >>> adapted.parameters["theta"], adapted.tasks
        (tensor([1., 2., 3.]), 3)
    """

    def __init__(self, strategy: Strategy = "auto", chunk: int | None = None) -> None:
        if strategy not in get_args(Strategy) or (chunk is not None and chunk < 1):
            raise OptionError(
                f"Lift: got strategy {strategy!r} and chunk {chunk}, expected one of {', '.join(get_args(Strategy))}, "
                "and None or at least 1 task; change them"
            )
        self.strategy, self.chunk = strategy, chunk
        self._chosen: dict[Any, Choice] = {}
        self._replays = Replays(strategy)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to copy or pickle: not the choices, whose keys (code) can't be pickled."""
        return {**vars(self), "_chosen": {}, "_replays": Replays(self.strategy)}

    def map(self, function: Callable[..., Any], state: State, *values: Any) -> Any:
        """Run the function for every task and stack the results.

        Args:
            function: maps the state and the values of one task, without the axis B, to a pytree of tensors.
            state: a state that all tasks share (then each task has its own copy of the buffers), or a state whose
                tensors begin with B.
            values: pytrees of tensors that begin with B.

        Returns:
            The pytree that the function returns, in which every tensor begins with B.

        Raises:
            TrainingError: the strategy is ``vmap``, and vmap can't run the function.
        """
        arguments = dict(state.parameters), dict(state.buffers), values
        found = self._replays.find("map", function, *arguments, state.tasks)
        if found is not None and found[0].traces:
            return _concatenate([results for _, results in self._replays.replay(*found)])
        chunks, results = [], []
        for first, last, chunk, result in self._run(function, state, values, alone=False):
            chunks.append((first, last, chunk))
            results.append(result)
        joined = _own_memory(_concatenate(results), arguments)
        # A trace has no graph, so results that have one are always computed by the function.
        if found is not None and not any(t.requires_grad for t in pytree.tree_leaves(joined) if isinstance(t, Tensor)):
            self._replays.ran("map", function, arguments, *found, chunks)
        return joined

    def mean_gradient(
        self, function: Callable[..., Any], state: State, *values: Any
    ) -> tuple[dict[str, Tensor], State]:
        """Add the gradient of the mean loss over the tasks to ``.grad``.

        Chunks are differentiated one after another, so only the graph of one chunk is in memory.

        Args:
            function: returns two values: the metrics of one task, a mapping with the scalar ``loss``, and the final
                state of the task.
            state, values: as in ``map``.

        Returns:
            The metrics of all tasks, each [B, ...] and without a graph. A state with the final buffers [B, *] of all
            tasks, and without parameters.

        Raises:
            TrainingError: the loss is not a scalar that depends on the parameters, or the strategy is ``vmap`` and
                vmap can't run the function.

        Example:
            The gradient of the mean of theta * x with respect to theta is the mean of x:

            >>> theta = torch.nn.Parameter(torch.tensor(2.0))
            >>> def task(state, x):
            ...     return {"loss": state.parameters["theta"] * x}, state
            >>> metrics, end = Lift("loop").mean_gradient(task, State({"theta": theta}, {}), torch.tensor([1.0, 3.0]))
            >>> metrics["loss"], theta.grad
            (tensor([2., 6.]), tensor(2.))
        """
        arguments = dict(state.parameters), dict(state.buffers), values
        found = self._replays.find("gradient", function, *arguments, state.tasks) if torch.is_grad_enabled() else None
        if found is not None and found[0].traces:
            rows = Rows(found[0].tasks)
            for tasks, results in self._replays.replay(*found):
                rows.add(results, tasks, graph=False)
        else:
            rows, chunks = Rows(state.tasks or len(pytree.tree_leaves(values)[0])), []
            for first, last, chunk, (metrics, end) in self._run(function, state, values, alone=True):
                # The mean over all tasks is the sum of (tasks of the chunk) / B * (mean over the chunk).
                (mean_loss(metrics) * (chunk.tasks / rows.tasks)).backward()
                rows.add((dict(metrics), dict(end.buffers)), chunk.tasks)
                chunks.append((first, last, chunk))
                del metrics, end  # free the graph before the next chunk is computed
            if found is not None:
                self._replays.ran("gradient", function, arguments, *found, chunks)
        metrics, buffers = rows.joined
        return metrics, State({}, buffers, rows.tasks)

    def _run(
        self, function: Callable[..., Any], state: State, values: Any, *, alone: bool
    ) -> Iterator[tuple[int, int, Chunk, Any]]:
        """Yield for each chunk its first and its last task, the chunk, and its stacked results.

        Args:
            function, state, values: as in ``map``.
            alone: whether a meta-batch of a single task runs without vmap, which is faster. The results of ``map`` do
                not depend on the number of tasks, not even by rounding.
        """
        B = state.tasks or len(pytree.tree_leaves(values)[0])
        shared = state.tasks is None
        # Choose between vmap and the loop once for each function and each set of shapes, by running the first task.
        one = alone and B == 1 and self.strategy != "vmap"
        what = identity_of(function, by_shape=True), _layers(function)
        key = (*what, one, torch.is_grad_enabled(), _shapes(state), _shapes(values))
        if key not in self._chosen:
            if len(self._chosen) >= MOST_CHOICES:
                self._chosen.pop(next(iter(self._chosen)))
            self._chosen[key] = LOOP if one else self._choose(function, state, values)
        first = 0
        while first < B:
            choice = self._chosen[key]
            # Chunks of nearly the same size: threads that share them finish together.
            left = B - first
            last = first + math.ceil(left / math.ceil(left / (choice.chunk or 1)))
            chunk = Chunk(function, choice, shared, last - first)
            own = _tasks(values, first, last)
            parameters, buffers = dict(state.parameters), dict(state.buffers)
            if not shared:
                parameters, buffers = _tasks(parameters, first, last), _tasks(buffers, first, last)
            try:
                results = chunk.run(parameters, buffers, own)
            except KshotError:
                raise  # the function reports an error of the user, which is not about vmap
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if choice is LOOP:
                    raise
                self._report_vmap_error(function, error, lambda: function(*first_task(state, shared, values)))
                self._chosen[key] = LOOP
                continue  # run the same tasks again, by the loop
            yield first, last, chunk, results
            del results
            first = last

    def _choose(self, function: Callable[..., Any], state: State, values: Any) -> Choice:
        """Choose between vmap and the loop for tasks of these shapes, by the cost of the first task."""
        if self.strategy == "loop":
            return LOOP
        # One task whose operations have large results already uses all of a CPU. Then vmap is not faster, and needs
        # more memory.
        cost = cost_of(function, *first_task(state, state.tasks is None, values))
        heavy = cost.bytes / max(1, cost.operations) > LOOP_ABOVE
        chunk = self.chunk or max(1, CHUNK_BYTES // max(1, cost.bytes))
        if self.strategy != "vmap" and ((heavy and cost.device == "cpu") or chunk == 1):
            return LOOP
        return Choice(chunk, cost.apart)

    def _report_vmap_error(self, function: Callable[..., Any], error: Exception, run_one: Callable[[], Any]) -> None:
        """Report that vmap can't run the function.

        With the strategy ``vmap`` this is an exception. Otherwise it is a warning, and the caller uses the loop.

        Args:
            function: the function of one task.
            error: the exception of vmap.
            run_one: runs one task without vmap. If the function itself is wrong, this raises its exception.
        """
        if self.strategy == "vmap":
            raise TrainingError(
                f"Lift: got {_name(function)}, which vmap can't run for several tasks in parallel ({error}), "
                "expected a function that vmap can run; use strategy='loop'"
            ) from error
        run_one()
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"Lift: vmap can't run {_name(function)} for several tasks in parallel ({reason}); the tasks "
            "run one after another, which is slower for small networks",
            stacklevel=4,
        )


def has_inner_loop(module: nn.Module) -> bool:
    """Return whether a learner, or a module within it, keeps a ``Lift``: then it adapts by gradient descent.

    The gradients of such a learner need all digits of float32. On 20-way Omniglot with five inner steps, the cosine of
    MAML's meta-gradient in bfloat16 to that in float64 is 0.2 to 0.45.

    Example:
        >>> has_inner_loop(nn.Linear(1, 1))
        False
    """
    return any(isinstance(value, Lift) for m in module.modules() for value in vars(m).values())


def _tasks(value: Any, first: int, last: int) -> Any:
    """Return the tasks ``first``, ..., ``last - 1`` of a pytree whose tensors begin with B."""
    return pytree.tree_map_only(Tensor, lambda t: t[first:last], value)


def _concatenate(chunks: list[Any]) -> Any:
    """Join the results of all chunks along B."""
    if len(chunks) == 1:
        return chunks[0]
    # A State stores its number of tasks, and pytrees of different structure can't be joined. So the number is set to 0
    # in all chunks before they are joined, and to the right number afterwards.
    flat = [pytree.tree_flatten(with_tasks(chunk, 0)) for chunk in chunks]
    leaves = [torch.cat(ts) for ts in zip(*(f[0] for f in flat), strict=True)]
    tasks = len(leaves[0]) if leaves else len(chunks)
    return with_tasks(pytree.tree_unflatten(leaves, flat[0][1]), tasks)


def _own_memory(results: Any, arguments: Any) -> Any:
    """Return the results, with copies of those without a graph that share the memory of an argument.

    Otherwise a state that was not changed for a task, such as that after no inner step, would change when the learner
    is trained further.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return results
    given = {_memory(t) for t in pytree.tree_leaves(arguments) if isinstance(t, Tensor)} - {None}
    # A view of a parameter that was made without gradients needs one, but has no graph: it is a leaf.
    return pytree.tree_map_only(Tensor, lambda t: t.clone() if t.is_leaf and _memory(t) in given else t, results)


def _memory(t: Tensor) -> int | None:
    """Return what identifies the memory of a tensor; None if it has no memory of its own, as a sparse one."""
    return t.untyped_storage()._cdata if t.layout == torch.strided else None


def _layers(function: Any) -> tuple[type, ...]:
    """Return the types of the layers that a function may call: those of its object, or of what it closes over.

    A layer that is replaced by another, of the same parameters, may be a normalisation.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, types.MethodType):
        owners: list[Any] = [function.__self__]
    else:
        owners = [content_of(cell) for cell in getattr(function, "__closure__", None) or ()]
    return tuple(type(m) for owner in owners if isinstance(owner, nn.Module) for m in owner.modules())


def _name(function: Any) -> str:
    """Return the name of a function for a message."""
    return str(getattr(getattr(function, "func", function), "__qualname__", type(function).__qualname__))


def _shapes(value: Any) -> tuple[Any, ...]:
    """Return the shape, without B, and the type of every tensor in the value."""
    return tuple((t.shape[1:], t.dtype) if isinstance(t, Tensor) else None for t in pytree.tree_leaves(value))
