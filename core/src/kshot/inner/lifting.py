"""Functions of one episode, run for all episodes of a meta-batch: by a loop, or by vmap in chunks.

``per_episode`` is for a learner's methods and always loops. ``Lift`` is for inner loops and chooses between the two.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from attrs import frozen
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot.episode import Begins, Episode, Support, one_task
from kshot.errors import KshotError, OptionError, TrainingError
from kshot.inner.cost import LOOP, Choice, cost_of
from kshot.inner.descent import State
from kshot.inner.vmap_norms import AffineApart

Strategy = Literal["auto", "vmap", "loop"]

CHUNK_BYTES = 64 * 2**20
"""The memory for the intermediate results of one vmapped chunk; a chunk is as many tasks as fit."""

LOOP_ABOVE = 64 * 2**10
"""Mean bytes of an operation's result above which one task keeps a processor busy, so that a loop is faster."""


def per_episode(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Lift a method written for one episode, without B, over the meta-batch, by a loop.

    ``meta_gradient(self, episode)`` may return the episode's loss, a scalar tensor, or a mapping with that loss under
    ``loss``; then the gradient of the mean loss is added to ``.grad``, and the means of all metrics are returned.
    ``adapt(self, support)`` may return a function from [n, *input] to predictions [n, ...]; the lifted predictor calls
    the function of each task and stacks the predictions.

    Raises:
        TrainingError: (by the lifted ``meta_gradient``) the result contains no scalar loss that depends on the
            parameters.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> class Slope(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.zeros(2))
        ...     @per_episode
        ...     def meta_gradient(self, episode):
        ...         return (episode.query.x @ self.w - episode.query.y).square().mean()
        >>> learner = Slope()
        >>> sorted(learner.meta_gradient(sample_tasks.Lines().sample("train", range(4))))
        ['loss']
        >>> tuple(learner.w.grad.shape)
        (2,)
    """

    @functools.wraps(method)
    def lifted(self: Any, value: Episode | Support) -> Any:
        # An episode is an argument of ``meta_gradient``, a support one of ``adapt``.
        if isinstance(value, Episode):
            return _mean_gradient(self, method, value)
        return _stacked_predictor([method(self, one_task(value, b)) for b in range(len(value.key))])

    return lifted


def _mean_gradient(self: Any, method: Callable[[Any, Any], Any], episodes: Episode) -> Mapping[str, Tensor]:
    """Add the gradient of the mean loss over the episodes to ``.grad``; return the mean of each metric."""
    sums: dict[str, Tensor] = {}
    for b in range(episodes.size):
        # Each episode is differentiated at once, so that only one graph is in memory.
        answer = method(self, one_task(episodes, b))
        metrics = answer if isinstance(answer, Mapping) else {"loss": answer}
        loss = metrics.get("loss")
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
            raise TrainingError(
                f"{type(self).__name__}.{method.__name__}: got {type(answer).__name__}, expected the episode's loss, a "
                "scalar tensor that depends on the parameters, or a mapping with one under 'loss'; return one of them"
            )
        (loss / episodes.size).backward()
        for name, value in metrics.items():
            sums[name] = sums.get(name, torch.zeros(())) + torch.as_tensor(value).detach() / episodes.size
    return sums


def _stacked_predictor(predictors: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Return the predictor [B, n, *input] -> [B, n, ...] of all tasks from those of single tasks."""

    def stacked(x: Tensor) -> Tensor:
        return torch.stack([predict(task) for predict, task in zip(predictors, x, strict=True)])

    return _StackedPolicies(stacked, predictors) if all(isinstance(p, Begins) for p in predictors) else stacked


@frozen(eq=False)
class _StackedPolicies:
    """Combine the policies of single tasks, each with its own random numbers or memory, to one of all tasks."""

    stacked: Callable[[Tensor], Tensor]
    policies: list[Any]

    def __call__(self, x: Tensor) -> Tensor:
        return self.stacked(x)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """Begin a rollout with the policy of each task, each with its own key."""
        return _stacked_predictor([p.begin(k, shape) for p, k in zip(self.policies, key, strict=True)])


class Lift:
    """Run a function of one task, ``function(state, *values)`` without B, for the B tasks of a meta-batch.

    The tasks run at once by ``torch.func.vmap``, in chunks that bound the memory, or one after another in a loop. The
    results agree to rounding. ``auto`` measures the size of one task's intermediate results, never their time, so that
    the same run always chooses the same way. If vmap can't run the function, ``auto`` warns once and loops.

    Args:
        strategy: ``auto``, ``vmap`` or ``loop``.
        chunk: the greatest number of tasks in one vmap; None bounds it by ``CHUNK_BYTES``.

    Raises:
        OptionError: an unknown strategy, or a chunk of less than one task.

    Example:
        One step on a loss of each task, theta' = theta - 0.5 * 2 (theta - goal), from a shared start:

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
        if strategy not in ("auto", "vmap", "loop") or (chunk is not None and chunk < 1):
            raise OptionError(
                f"Lift: got strategy {strategy!r} and chunk {chunk}, expected 'auto', 'vmap' or 'loop', and None or at "
                "least 1 task; change them"
            )
        self.strategy, self.chunk = strategy, chunk
        self._chosen: dict[Any, Choice] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: not the choices, whose keys are code and which are made again alike."""
        return {**vars(self), "_chosen": {}}

    def map(self, function: Callable[..., Any], state: State, *values: Any) -> Any:
        """Return ``function(state, *values)`` of every task, stacked: each tensor of the result begins with B.

        Args:
            function: of one task's state and values, without B.
            state: a state that all tasks share, of which each sees its own copy of the buffers; or one with B.
            values: pytrees of tensors that begin with B.

        Raises:
            TrainingError: the strategy is ``vmap``, and vmap can't run the function.
        """
        return _concatenate([chunk for _, chunk in self._run(function, state, values)])

    def mean_gradient(
        self, function: Callable[..., Any], state: State, *values: Any
    ) -> tuple[dict[str, Tensor], State]:
        """Add the gradient of the mean ``loss`` over the tasks to ``.grad``, a chunk at a time.

        Only one chunk's graph is in memory at a time.

        Args:
            function: returns the metrics of one task, among them the scalar ``loss``, and the task's final state.
            state, values: as for ``map``.

        Returns:
            Each metric of each task [B, ...], without a graph; and a state with the final buffers [B, *] and without
            parameters.

        Raises:
            TrainingError: the loss is not a scalar that depends on the parameters, or vmap can't run the function
                and the strategy is ``vmap``.

        Example:
            The mean of theta * x has the gradient mean(x):

            >>> theta = torch.nn.Parameter(torch.tensor(2.0))
            >>> def task(state, x):
            ...     return {"loss": state.parameters["theta"] * x}, state
            >>> metrics, end = Lift("loop").mean_gradient(task, State({"theta": theta}, {}), torch.tensor([1.0, 3.0]))
            >>> metrics["loss"], theta.grad
            (tensor([2., 6.]), tensor(2.))
        """
        tasks = state.tasks or len(pytree.tree_leaves(values)[0])
        rows = Rows(tasks)
        for share, (chunk, end) in self._run(function, state, values):
            loss = chunk["loss"]
            if loss.ndim != 1 or not loss.requires_grad:
                raise TrainingError(
                    f"Lift.mean_gradient: got a loss of shape {tuple(loss.shape[1:])} of a task, expected a scalar "
                    "that depends on the parameters; take its mean or sum, without detaching it"
                )
            # The mean over all tasks is the sum over chunks of share * (the chunk's mean).
            (loss.mean() * share).backward()
            rows.add((dict(chunk), dict(end.buffers)))
            del chunk, end, loss  # free the graph before the next chunk is computed
        metrics, buffers = rows.joined
        return metrics, State({}, buffers, tasks)

    def _run(self, function: Callable[..., Any], state: State, values: Any) -> Any:
        """Yield the share of the tasks and the stacked results of one chunk after another."""
        B = state.tasks or len(pytree.tree_leaves(values)[0])
        if state.tasks is None:
            # A module in training writes running statistics, so vmap needs a copy of them for each task. Parameters
            # stay without B (dims None): the first step of all tasks is then one large operation.
            state = State(state.parameters, {n: b.expand(B, *b.shape) for n, b in state.buffers.items()})
            dims: int | None = None
        else:
            dims = 0
        # The choice is made once for each function and each set of shapes, on the first task.
        key = (_code(function), torch.is_grad_enabled(), _shapes(state), _shapes(values))
        if key not in self._chosen:
            self._chosen[key] = self._choose(function, state, dims, values)
        first = 0
        while first < B:
            choice = self._chosen[key]
            last = min(first + (choice.chunk or 1), B)
            results = None
            if choice.chunk is not None:
                try:
                    with AffineApart() if choice.apart else nullcontext():
                        results = _vmapped(function, state, dims, values, first, last)
                except KshotError:
                    raise  # the function's own message, which is not about vmap
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    self._give_up(function, error, lambda: function(*_task(state, dims, values, 0)))
                    self._chosen[key] = LOOP
                    continue  # the same tasks again, one by one
            else:
                results = _stacked(function(*_task(state, dims, values, first)))
            yield (last - first) / B, results
            first = last

    def _choose(self, function: Callable[..., Any], state: State, dims: int | None, values: Any) -> Choice:
        """Choose how to run tasks of these shapes, by the cost of the first task."""
        if self.strategy == "loop":
            return LOOP
        # A task whose operations have large results keeps the processor busy alone, and vmap would only move memory.
        cost = cost_of(function, *_task(state, dims, values, 0))
        heavy = cost.bytes / max(1, cost.operations) > LOOP_ABOVE
        chunk = self.chunk or max(1, CHUNK_BYTES // max(1, cost.bytes))
        if self.strategy == "auto" and ((heavy and cost.device == "cpu") or chunk == 1):
            return LOOP
        return Choice(chunk, cost.apart)

    def _give_up(self, function: Callable[..., Any], error: Exception, alone: Callable[[], Any]) -> None:
        """Raise if the strategy is ``vmap``, or if the function fails on one task too; otherwise warn."""
        if self.strategy == "vmap":
            raise TrainingError(
                f"Lift: got {_name(function)}, which vmap can't run for several tasks at once ({error}), "
                "expected a function that it can; use strategy='loop'"
            ) from error
        alone()  # if the function itself is wrong, its own exception propagates
        warnings.warn(
            f"Lift: vmap can't run {_name(function)} for several tasks at once ({str(error).splitlines()[0]}); "
            "the tasks run one after another, which is slower for small nets",
            stacklevel=4,
        )


def _vmapped(function: Callable[..., Any], state: State, dims: int | None, values: Any, first: int, last: int) -> Any:
    """Run the function for the tasks ``first`` to ``last`` - 1 by vmap; the results begin with their number."""

    def part(value: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda t: t[first:last], value)

    def one(parameters: Any, buffers: Any, values: Any) -> Any:
        return function(State(parameters, buffers), *values)

    parameters = state.parameters if dims is None else part(dict(state.parameters))
    run = torch.func.vmap(one, in_dims=(dims, 0, 0), randomness="different")
    buffers = {n: b[first:last].clone() for n, b in state.buffers.items()}
    return _with_tasks(run(dict(parameters), buffers, part(values)), last - first)


def _task(state: State, dims: int | None, values: Any, b: int) -> tuple[Any, ...]:
    """Return the state of task ``b``, with its own copy of the buffers, and its values."""
    parameters = state.parameters if dims is None else {n: p[b] for n, p in state.parameters.items()}
    return State(parameters, {n: t[b].clone() for n, t in state.buffers.items()}), *one_task(values, b)


def _stacked(result: Any) -> Any:
    """Return the result of one task as that of a chunk of one: each tensor begins with 1."""
    return _with_tasks(pytree.tree_map_only(Tensor, lambda t: t[None], result), 1)


def _with_tasks(results: Any, tasks: int) -> Any:
    """Return the results with ``tasks`` set in every state among them."""

    def marked(value: Any) -> Any:
        return State(value.parameters, value.buffers, tasks) if isinstance(value, State) else value

    return pytree.tree_map(marked, results, is_leaf=lambda value: isinstance(value, State))


def _concatenate(chunks: list[Any]) -> Any:
    """Join the results of all chunks along B."""
    if len(chunks) == 1:
        return chunks[0]
    # Chunks may differ in ``tasks``, which is part of the structure: make it equal first, and set the total afterwards.
    flat = [pytree.tree_flatten(_with_tasks(chunk, 0)) for chunk in chunks]
    leaves = [torch.cat(ts) for ts in zip(*(f[0] for f in flat), strict=True)]
    tasks = len(leaves[0]) if leaves else len(chunks)
    return _with_tasks(pytree.tree_unflatten(leaves, flat[0][1]), tasks)


class Rows:
    """Collect the results of one chunk after another in tensors that are allocated once for all ``tasks``.

    Keeping the results of each chunk and joining them at the end would leave many small tensors between the large
    blocks that the next chunk needs again. They fragment the heap: with 64 tasks, malloc took five times the memory.

    Example:
        >>> rows = Rows(3)
        >>> rows.add({"loss": torch.tensor([1.0, 2.0])})
        >>> rows.add({"loss": torch.tensor([3.0])})
        >>> rows.joined
        {'loss': tensor([1., 2., 3.])}
    """

    def __init__(self, tasks: int) -> None:
        self.tasks, self.done = tasks, 0
        self.joined: Any = None

    def add(self, chunk: Any) -> None:
        """Add the next tasks' results, a pytree of tensors that begin with their number; their graph is dropped."""
        chunk = pytree.tree_map_only(Tensor, Tensor.detach, chunk)
        count = len(pytree.tree_leaves(chunk)[0])
        if count == self.tasks:  # the only chunk needs no copy
            self.joined = chunk
            return
        if self.joined is None:  # the first chunk shows the shapes to allocate
            self.joined = pytree.tree_map_only(Tensor, lambda t: t.new_empty(self.tasks, *t.shape[1:]), chunk)
        for room, rows in zip(pytree.tree_leaves(self.joined), pytree.tree_leaves(chunk), strict=True):
            room[self.done : self.done + count] = rows
        self.done += count


def _code(function: Any) -> Any:
    """Return the code of a function, a method, a partial or a callable object, the same at every call of it."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", type(function))


def _name(function: Any) -> str:
    """Return the name of a function for a message."""
    return str(getattr(getattr(function, "func", function), "__qualname__", type(function).__qualname__))


def _shapes(value: Any) -> tuple[Any, ...]:
    """Return the shapes without B, and the types, of all tensors."""
    return tuple((t.shape[1:], t.dtype) if isinstance(t, Tensor) else None for t in pytree.tree_leaves(value))
