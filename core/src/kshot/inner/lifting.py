"""Mathematics written for one episode, lifted over the meta-batch: by a loop, or by vmap in chunks."""

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
from torch.utils._python_dispatch import TorchDispatchMode

from kshot.episode import Begins, Episode, Support, one_task
from kshot.errors import KshotError, OptionError, TrainingError
from kshot.inner.descent import State
from kshot.inner.vmap_norms import AffineApart

Strategy = Literal["auto", "vmap", "loop"]

CHUNK_BYTES = 64 * 2**20
"""What the intermediate results of one vmapped chunk may take; the chunk is as many tasks as fit."""

LOOP_ABOVE = 64 * 2**10
"""Mean bytes of an operation's result above which a task fills a processor by itself: then a loop is faster."""


def per_episode(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Lift a method written for one episode, without B, over the meta-batch, by a loop.

    For ``meta_gradient(self, episode)`` that returns the episode's loss (a scalar tensor), or a mapping whose
    ``loss`` is it: the mean loss is differentiated and the means are returned.
    For ``adapt(self, support)`` that returns a function from [n, *input] to predictions [n, ...]: the functions are
    called one for each task and their predictions stacked.

        @kshot.per_episode
        def meta_gradient(self, episode):
            return F.cross_entropy(self.logits(episode.support, episode.query.x), episode.query.y)
    """

    @functools.wraps(method)
    def lifted(self: Any, value: Episode | Support) -> Any:
        if isinstance(value, Episode):
            return _mean_gradient(self, method, value)
        return _stacked_predictor([method(self, one_task(value, b)) for b in range(len(value.key))])

    return lifted


def _mean_gradient(self: Any, method: Callable[[Any, Any], Any], episodes: Episode) -> Mapping[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for b in range(episodes.size):
        answer = method(self, one_task(episodes, b))
        metrics = answer if isinstance(answer, Mapping) else {"loss": answer}
        loss = metrics.get("loss")
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
            raise TrainingError(
                f"{type(self).__name__}.{method.__name__} returned {type(answer).__name__}, expected the episode's "
                "loss: a scalar tensor that depends on the parameters, or a mapping with one under 'loss'"
            )
        (loss / episodes.size).backward()
        for name, value in metrics.items():
            sums[name] = sums.get(name, torch.zeros(())) + torch.as_tensor(value).detach() / episodes.size
    return sums


def _stacked_predictor(predictors: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def stacked(x: Tensor) -> Tensor:
        return torch.stack([predict(task) for predict, task in zip(predictors, x, strict=True)])

    return _StackedPolicies(stacked, predictors) if all(isinstance(p, Begins) for p in predictors) else stacked


@frozen(eq=False)
class _StackedPolicies:
    """Policies of single tasks, each with chance or memory of its own, as one of all tasks."""

    stacked: Callable[[Tensor], Tensor]
    policies: list[Any]

    def __call__(self, x: Tensor) -> Tensor:
        return self.stacked(x)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        return _stacked_predictor([p.begin(k, shape) for p, k in zip(self.policies, key, strict=True)])


class Lift:
    """Runs a function of one task, ``function(state, *values)`` without B, for the B tasks of a meta-batch.

    All at once by ``torch.func.vmap``, in chunks that bound the memory, or one after another. The ways agree to
    rounding. ``auto`` measures one task's intermediate results by size, never by time, so that the same run chooses
    the same way again; where vmap can't take the function it warns once and loops.

    Args:
        strategy: ``auto``, ``vmap`` or ``loop``.
        chunk: the most tasks of one vmap; None bounds it by ``CHUNK_BYTES``.
    """

    def __init__(self, strategy: Strategy = "auto", chunk: int | None = None) -> None:
        if strategy not in ("auto", "vmap", "loop") or (chunk is not None and chunk < 1):
            raise OptionError(
                f"Lift: strategy {strategy!r}, chunk {chunk}; expected 'auto', 'vmap' or 'loop', and at least 1 task"
            )
        self.strategy, self.chunk = strategy, chunk
        self._chosen: dict[Any, Choice] = {}

    def map(self, function: Callable[..., Any], state: State, *values: Any) -> Any:
        """``function(state, *values)`` of every task, stacked: each of its tensors begins with B.

        Args:
            state: shared by all tasks, which see copies of its buffers; or one that carries B.
            values: pytrees of tensors that begin with B.
        """
        parts = [found for _, found in self._run(function, state, values)]
        return _concatenate(parts)

    def mean_gradient(
        self, function: Callable[..., Any], state: State, *values: Any
    ) -> tuple[dict[str, Tensor], State]:
        """Add the gradient of the mean ``loss`` over the tasks to ``.grad``, a chunk at a time.

        Args:
            function: -> (metrics with the scalar ``loss`` among them, the task's state at the end).

        Returns:
            Each metric for each task, without a graph, [B, ...]; and the states' buffers [B, *] (no parameters).
        """
        tasks = state.tasks or len(pytree.tree_leaves(values)[0])
        rows = Rows(tasks)
        for share, (found, end) in self._run(function, state, values):
            loss = found["loss"]
            if loss.ndim != 1 or not loss.requires_grad:
                raise TrainingError(
                    f"the loss of a task is of shape {tuple(loss.shape[1:])}, expected a scalar that depends on the "
                    "parameters"
                )
            (loss.mean() * share).backward()
            rows.add((dict(found), dict(end.buffers)))
            del found, end, loss
        metrics, buffers = rows.whole
        return metrics, State({}, buffers, tasks)

    def _run(self, function: Callable[..., Any], state: State, values: Any) -> Any:
        """(share of the tasks, stacked results) of one chunk after another."""
        B = state.tasks or len(pytree.tree_leaves(values)[0])
        if state.tasks is None:
            # A module in training writes running statistics, and vmap needs them one for each task.
            state = State(state.parameters, {n: b.expand(B, *b.shape) for n, b in state.buffers.items()})
            dims: int | None = None
        else:
            dims = 0
        key = (function.__code__, torch.is_grad_enabled(), _shapes(state), _shapes(values))
        if key not in self._chosen:
            self._chosen[key] = self._choose(function, state, dims, values)
        first = 0
        while first < B:
            choice = self._chosen[key]
            last = min(first + (choice.chunk or 1), B)
            found = None
            if choice.chunk is not None:
                try:
                    with AffineApart() if choice.apart else nullcontext():
                        found = _vmapped(function, state, dims, values, first, last)
                except KshotError:
                    raise
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    self._give_up(function, error, lambda: function(*_task(state, dims, values, 0)))
                    self._chosen[key] = LOOP
                    continue
            else:
                found = _stacked(function(*_task(state, dims, values, first)))
            yield (last - first) / B, found
            first = last

    def _choose(self, function: Callable[..., Any], state: State, dims: int | None, values: Any) -> Choice:
        if self.strategy == "loop":
            return LOOP
        cost = _cost(function, *_task(state, dims, values, 0))
        heavy = cost.bytes / max(1, cost.operations) > LOOP_ABOVE
        chunk = self.chunk or max(1, CHUNK_BYTES // max(1, cost.bytes))
        if self.strategy == "auto" and ((heavy and cost.device == "cpu") or chunk == 1):
            return LOOP
        return Choice(chunk, cost.apart)

    def _give_up(self, function: Callable[..., Any], error: Exception, alone: Callable[[], Any]) -> None:
        """After vmap refused: raise if it was told to vmap, or if the function fails by itself; else warn."""
        if self.strategy == "vmap":
            raise TrainingError(
                f"vmap can't run {function.__qualname__} for several tasks at once: {error}; use strategy='loop'"
            ) from error
        alone()
        warnings.warn(
            f"vmap can't run {function.__qualname__} for several tasks at once ({str(error).splitlines()[0]}); they "
            "run one after another, which is slower for small nets",
            stacklevel=4,
        )


def _vmapped(function: Callable[..., Any], state: State, dims: int | None, values: Any, first: int, last: int) -> Any:
    def part(value: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda t: t[first:last], value)

    def one(parameters: Any, buffers: Any, values: Any) -> Any:
        return function(State(parameters, buffers), *values)

    parameters = state.parameters if dims is None else part(dict(state.parameters))
    run = torch.func.vmap(one, in_dims=(dims, 0, 0), randomness="different")
    buffers = {n: b[first:last].clone() for n, b in state.buffers.items()}
    return _with_tasks(run(dict(parameters), buffers, part(values)), last - first)


def _task(state: State, dims: int | None, values: Any, b: int) -> tuple[Any, ...]:
    """State and values of task ``b``, its buffers its own."""
    parameters = state.parameters if dims is None else {n: p[b] for n, p in state.parameters.items()}
    return State(parameters, {n: t[b].clone() for n, t in state.buffers.items()}), *one_task(values, b)


def _stacked(found: Any) -> Any:
    return _with_tasks(pytree.tree_map_only(Tensor, lambda t: t[None], found), 1)


def _with_tasks(found: Any, tasks: int) -> Any:
    """Results of B tasks, where states say that they carry B."""

    def marked(value: Any) -> Any:
        return State(value.parameters, value.buffers, tasks) if isinstance(value, State) else value

    return pytree.tree_map(marked, found, is_leaf=lambda value: isinstance(value, State))


def _concatenate(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    flat = [pytree.tree_flatten(_with_tasks(p, 0)) for p in parts]
    leaves = [torch.cat(ts) for ts in zip(*(f[0] for f in flat), strict=True)]
    tasks = len(leaves[0]) if leaves else len(parts)
    return _with_tasks(pytree.tree_unflatten(leaves, flat[0][1]), tasks)


class Rows:
    """Results of chunk after chunk, copied into tensors for all ``tasks`` that the first one makes room for.

    Nothing small of a task outlives it, between the large blocks that the next one needs again: kept apart and joined
    at the end, the results of 64 tasks made malloc take five times the memory.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks, self.done = tasks, 0
        self.whole: Any = None

    def add(self, part: Any) -> None:
        """The next tasks' results, a pytree of tensors that begin with their number; without their graph."""
        part = pytree.tree_map_only(Tensor, Tensor.detach, part)
        count = len(pytree.tree_leaves(part)[0])
        if count == self.tasks:
            self.whole = part
            return
        if self.whole is None:
            self.whole = pytree.tree_map_only(Tensor, lambda t: t.new_empty(self.tasks, *t.shape[1:]), part)
        for room, rows in zip(pytree.tree_leaves(self.whole), pytree.tree_leaves(part), strict=True):
            room[self.done : self.done + count] = rows
        self.done += count


def _shapes(value: Any) -> tuple[Any, ...]:
    return tuple((t.shape[1:], t.dtype) if isinstance(t, Tensor) else None for t in pytree.tree_leaves(value))


@frozen
class Choice:
    """How to run the tasks of one shape.

    Attributes:
        chunk: how many to vmap at once; None to loop.
        apart: whether normalisation must take its weights apart, see ``kshot.inner.vmap_norms``.
    """

    chunk: int | None
    apart: bool = False


LOOP = Choice(None)


@frozen
class Cost:
    """What running one task makes: operations, the bytes of their results, where; and ``Choice.apart``."""

    operations: int
    bytes: int
    device: str
    apart: bool


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.bytes = 0
        self.device = "cpu"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations += 1
        for t in found if isinstance(found, tuple | list) else (found,):
            if isinstance(t, Tensor):
                self.bytes += t.numel() * t.element_size()
                self.device = t.device.type
        return found


def _cost(function: Callable[..., Any], *task: Any) -> Cost:
    state = torch.default_generator.get_state()
    with _Counting() as counted, AffineApart(only_look=True) as layers:
        function(*task)
    torch.default_generator.set_state(state)
    return Cost(counted.operations, counted.bytes, counted.device, layers.met)
