"""Run a function that is written for one task for all B tasks of a meta-batch.

There are two methods to do so. A loop calls the function for one task after another. ``torch.func.vmap`` computes
several tasks in parallel; such a group of tasks is a chunk. ``per_episode`` is a decorator for the methods of a
learner, and always loops. ``Lift`` is for inner loops, and chooses between the loop and vmap.

Letters: B meta-batch, n examples. A pytree is a value that contains tensors, such as a tuple, a dict or an ``Episode``.
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
from kshot.inner.rows import Rows
from kshot.inner.vmap_norms import AffineApart

Strategy = Literal["auto", "vmap", "loop"]

CHUNK_BYTES = 64 * 2**20
"""Memory in bytes for the intermediate results of one vmapped chunk. A chunk has as many tasks as fit into it."""

LOOP_ABOVE = 64 * 2**10
"""Mean size of an operation's result, in bytes, above which a loop is used on a CPU. One task with such large
operations already uses the processor fully, so vmap would not be faster."""


def per_episode(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Turn a method for one episode, whose tensors have no axis B, into a method for a meta-batch, by a loop.

    It can decorate two methods of a learner:

    - ``meta_gradient(self, episode)``. The method returns the loss of the episode, as a scalar tensor or in a mapping
      of metrics under ``loss``. The decorated method adds the gradient of the mean loss to ``.grad`` and returns the
      mean of each metric.
    - ``adapt(self, support)``. The method returns a function from [n, *input] to predictions [n, ...]. The decorated
      method returns a function from [B, n, *input] to [B, n, ...], which calls the function of each task and stacks
      the predictions.

    Raises:
        TrainingError: (by the decorated ``meta_gradient``) the result contains no scalar loss that depends on the
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
        # The type of the argument shows which method is decorated: ``meta_gradient`` is called with an episode, and
        # ``adapt`` with a support.
        if isinstance(value, Episode):
            return _mean_gradient(self, method, value)
        return _stacked_predictor([method(self, one_task(value, b)) for b in range(len(value.key))])

    return lifted


def _mean_gradient(self: Any, method: Callable[[Any, Any], Any], episodes: Episode) -> Mapping[str, Tensor]:
    """Add the gradient of the mean loss over the episodes to ``.grad``; return the mean of each metric."""
    sums: dict[str, Tensor] = {}
    for b in range(episodes.size):
        # The gradient of each episode is computed before the next episode, so only one graph is in memory.
        result = method(self, one_task(episodes, b))
        metrics = result if isinstance(result, Mapping) else {"loss": result}
        loss = metrics.get("loss")
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
            raise TrainingError(
                f"{type(self).__name__}.{method.__name__}: got {type(result).__name__}, expected the episode's loss, a "
                "scalar tensor that depends on the parameters, or a mapping with one under 'loss'; return one of them"
            )
        (loss / episodes.size).backward()
        for name, value in metrics.items():
            sums[name] = sums.get(name, torch.zeros(())) + torch.as_tensor(value).detach() / episodes.size
    return sums


def _stacked_predictor(predictors: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Combine the predictors of B tasks, each [n, *input] -> [n, ...], to one: [B, n, *input] -> [B, n, ...]."""

    def stacked(x: Tensor) -> Tensor:
        return torch.stack([predict(task) for predict, task in zip(predictors, x, strict=True)])

    # In control tasks a predictor is a policy. Some policies have a method ``begin``, which starts a rollout.
    return _StackedPolicies(stacked, predictors) if all(isinstance(p, Begins) for p in predictors) else stacked


@frozen(eq=False)
class _StackedPolicies:
    """Represent the policies of B tasks as one policy. Each task keeps its own random numbers and its own memory."""

    stacked: Callable[[Tensor], Tensor]
    policies: list[Any]

    def __call__(self, x: Tensor) -> Tensor:
        return self.stacked(x)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """Begin a rollout in every task: the policy of task b gets ``key[b]``, the random key of its episode."""
        return _stacked_predictor([p.begin(k, shape) for p, k in zip(self.policies, key, strict=True)])


class Lift:
    """Run a function of one task, ``function(state, *values)``, for all B tasks of a meta-batch.

    The function sees tensors without the axis B. Its first argument is a ``State``: the parameters and the buffers of
    a module. The strategy says how the tasks run:

    - ``vmap``: in parallel by ``torch.func.vmap``, one chunk after another. Small chunks need little memory.
    - ``loop``: one task after another.
    - ``auto``: the faster of the two, judged by the size of the intermediate results of the first task. It never
      measures time, so a repeated or resumed run makes the same choice. If vmap can't run the function, ``auto``
      warns once and loops.

    The results of the strategies differ by rounding only.

    Args:
        strategy: ``auto``, ``vmap`` or ``loop``.
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
        if strategy not in ("auto", "vmap", "loop") or (chunk is not None and chunk < 1):
            raise OptionError(
                f"Lift: got strategy {strategy!r} and chunk {chunk}, expected 'auto', 'vmap' or 'loop', and None or at "
                "least 1 task; change them"
            )
        self.strategy, self.chunk = strategy, chunk
        self._chosen: dict[Any, Choice] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to copy or pickle: not the choices, whose keys (code) can't be pickled."""
        return {**vars(self), "_chosen": {}}

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
        return _concatenate([chunk for _, chunk in self._run(function, state, values)])

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
        tasks = state.tasks or len(pytree.tree_leaves(values)[0])
        rows = Rows(tasks)
        for share, (chunk, end) in self._run(function, state, values):
            loss = chunk["loss"]
            if loss.ndim != 1 or not loss.requires_grad:
                raise TrainingError(
                    f"Lift.mean_gradient: got a loss of shape {tuple(loss.shape[1:])} for each task, expected a "
                    "scalar that depends on the parameters; return its mean or sum, and do not detach it"
                )
            # share = (tasks of the chunk) / B. The mean over all tasks is the sum of share * (mean over the chunk).
            (loss.mean() * share).backward()
            rows.add((dict(chunk), dict(end.buffers)))
            del chunk, end, loss  # free the graph before the next chunk is computed
        metrics, buffers = rows.joined
        return metrics, State({}, buffers, tasks)

    def _run(self, function: Callable[..., Any], state: State, values: Any) -> Any:
        """Yield two values for each chunk: its share of the tasks, between 0 and 1, and its stacked results."""
        B = state.tasks or len(pytree.tree_leaves(values)[0])
        if state.tasks is None:
            # All tasks share this state. A module in training writes running statistics into its buffers, so each
            # task needs a copy of them. Parameters stay shared (None tells vmap that they have no axis B): then the
            # first inner step of all tasks is one large operation instead of B small ones.
            state = State(state.parameters, {n: b.expand(B, *b.shape) for n, b in state.buffers.items()})
            dims: int | None = None
        else:
            dims = 0
        # Choose between vmap and the loop once for each function and each set of shapes, by running the first task.
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
                    raise  # the function reports an error of the user, which is not about vmap
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    self._report_vmap_error(function, error, lambda: function(*_task(state, dims, values, 0)))
                    self._chosen[key] = LOOP
                    continue  # run the same tasks again, by the loop
            else:
                results = _stacked(function(*_task(state, dims, values, first)))
            yield (last - first) / B, results
            first = last

    def _choose(self, function: Callable[..., Any], state: State, dims: int | None, values: Any) -> Choice:
        """Choose between vmap and the loop for tasks of these shapes, by the cost of the first task."""
        if self.strategy == "loop":
            return LOOP
        # One task whose operations have large results already uses all of a CPU. Then vmap is not faster, and needs
        # more memory.
        cost = cost_of(function, *_task(state, dims, values, 0))
        heavy = cost.bytes / max(1, cost.operations) > LOOP_ABOVE
        chunk = self.chunk or max(1, CHUNK_BYTES // max(1, cost.bytes))
        if self.strategy == "auto" and ((heavy and cost.device == "cpu") or chunk == 1):
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


def _vmapped(function: Callable[..., Any], state: State, dims: int | None, values: Any, first: int, last: int) -> Any:
    """Run the function by vmap for the tasks ``first``, ..., ``last - 1``.

    Args:
        dims: the ``in_dims`` of vmap for the parameters: 0 if they begin with B, None if the tasks share them.

    Returns:
        The results, in which every tensor begins with the number of these tasks, ``last - first``.
    """

    def tasks_of(value: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda t: t[first:last], value)

    def run_one(parameters: Any, buffers: Any, values: Any) -> Any:
        return function(State(parameters, buffers), *values)

    parameters = state.parameters if dims is None else tasks_of(dict(state.parameters))
    # Parameters and buffers are passed separately, because only the buffers always begin with B. With "different" each
    # task has its own random numbers, such as those of dropout.
    run = torch.func.vmap(run_one, in_dims=(dims, 0, 0), randomness="different")
    buffers = {n: b[first:last].clone() for n, b in state.buffers.items()}
    return _with_tasks(run(dict(parameters), buffers, tasks_of(values)), last - first)


def _task(state: State, dims: int | None, values: Any, b: int) -> tuple[Any, ...]:
    """Return the arguments of the function for task ``b``: its state, with a copy of the buffers, and its values."""
    parameters = state.parameters if dims is None else {n: p[b] for n, p in state.parameters.items()}
    return State(parameters, {n: t[b].clone() for n, t in state.buffers.items()}), *one_task(values, b)


def _stacked(result: Any) -> Any:
    """Return the result of one task as the result of a chunk of one task: add an axis B = 1 to every tensor."""
    return _with_tasks(pytree.tree_map_only(Tensor, lambda t: t[None], result), 1)


def _with_tasks(results: Any, tasks: int) -> Any:
    """Return the results with the number of tasks written into every ``State`` in them."""

    def marked(value: Any) -> Any:
        return State(value.parameters, value.buffers, tasks) if isinstance(value, State) else value

    return pytree.tree_map(marked, results, is_leaf=lambda value: isinstance(value, State))


def _concatenate(chunks: list[Any]) -> Any:
    """Join the results of all chunks along B."""
    if len(chunks) == 1:
        return chunks[0]
    # A State stores its number of tasks, and pytrees of different structure can't be joined. So the number is set to 0
    # in all chunks before they are joined, and to the right number afterwards.
    flat = [pytree.tree_flatten(_with_tasks(chunk, 0)) for chunk in chunks]
    leaves = [torch.cat(ts) for ts in zip(*(f[0] for f in flat), strict=True)]
    tasks = len(leaves[0]) if leaves else len(chunks)
    return _with_tasks(pytree.tree_unflatten(leaves, flat[0][1]), tasks)


def _code(function: Any) -> Any:
    """Return the code of a callable: the same for every new partial or bound method of the same function."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", type(function))


def _name(function: Any) -> str:
    """Return the name of a function for a message."""
    return str(getattr(getattr(function, "func", function), "__qualname__", type(function).__qualname__))


def _shapes(value: Any) -> tuple[Any, ...]:
    """Return the shape, without B, and the type of every tensor in the value."""
    return tuple((t.shape[1:], t.dtype) if isinstance(t, Tensor) else None for t in pytree.tree_leaves(value))
