"""The four protocols, API level 1. A class that satisfies one needs no base class of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from kshot.episode import Episode, Predictor, Support
from kshot.preparing import Preparation
from kshot.spec import Needs, TaskSpec

T = TypeVar("T")
Metrics = Mapping[str, "Tensor | float"]
"""Scalars of one meta-batch, means over its tasks; ``loss`` is the customary first."""


@runtime_checkable
class TaskDistribution(Protocol):
    """Where episodes come from. Episode i of a split is a pure function of (seed, split, i)."""

    @property
    def spec(self) -> TaskSpec:
        """The shape of the episodes."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``, stacked: B = len(indices).

        Raises:
            DataError: an unknown split, or indices of blocks with different shapes.
        """


@runtime_checkable
class Learner(Protocol):
    """A meta-learner: an ``nn.Module`` with three members more. Built as ``factory(spec, **options)``."""

    needs: Needs

    def meta_gradient(self, episodes: Episode) -> Metrics | Iterator[Metrics]:
        """Add the mean meta-gradient over the tasks to ``.grad`` and return scalars.

        A learner that takes several outer steps on one meta-batch yields after each; the engine then steps.
        """

    def adapt(self, support: Support) -> Predictor:
        """Learn B tasks from their support. Returns a function and changes nothing in the learner."""


@runtime_checkable
class Memory(Protocol):
    """An external memory: an ``nn.Module``. Made by ``factory(slots, width, reads, **options)``.

    ``interface`` [B, interface_size] is the controller's output, any real numbers; how it is cut into keys, gates and
    so on, and squashed, is the memory's own affair. ``state`` is any pytree of tensors that begin with B. Reads before
    the first step are zeros. A state with the fields (of a named tuple) or keys (of a dict) ``read_weights``
    [B, R, M] and ``write_weights`` [B, *, M] can be drawn: what learners trace takes them from there.
    """

    interface_size: int
    read_size: int

    def initial_state(self, batch_size: int) -> Any:
        """A wiped memory for ``batch_size`` episodes."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One time step -> (reads [B, read_size], new state). Never changes ``state`` itself."""


MemoryFactory = Callable[..., Memory]
"""``factory(slots, width, reads, **options) -> Memory``."""


@runtime_checkable
class World(Protocol):
    """The processes that train together. One process is rank 0 of size 1.

    All ranks make the same calls in the same order, with tensors of the same type and shape, on the CPU or on the
    backend's device; what comes back is there too, and what came may be overwritten. A call raises, whatever error,
    where a rank is no longer there: it never waits for ever.
    """

    rank: int
    size: int

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each."""

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in order of rank."""

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, on every rank."""


@runtime_checkable
class Backend(Protocol):
    """Where and how precisely things are computed. Built as ``factory(**options)``.

    May wrap another: one of several processes says only who they are, and takes the rest from a local backend.
    """

    device: torch.device
    world: World

    def place(self, x: T) -> T:
        """A module, tensor or value of tensors, on the device and in its memory format; modules in place."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which ``meta_gradient`` and ``adapt`` run."""

    def describe(self) -> Mapping[str, Any]:
        """Plain values that a result records: name, precision, threads and the like."""


class EngineView(Protocol):
    """What a hook may read of the engine that calls it. A hook changes none of it.

    Attributes:
        learner: the learner on the backend's device.
        tasks: what it trains on.
        evaluation_tasks: what it is validated and evaluated on.
        backend: where it computes.
        meta_batch: tasks per outer step (B).
        chunk: the most tasks computed at once.
        seed: of training.
        iteration: outer steps taken.
        folder: the run folder, whose ``path`` is a directory; None where nothing is written.
    """

    learner: Any
    tasks: TaskDistribution
    evaluation_tasks: TaskDistribution
    backend: Backend
    meta_batch: int
    chunk: int
    seed: int
    iteration: int

    @property
    def parameters_iteration(self) -> int:
        """Outer steps after which the learner had the parameters that it has now."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What a checkpoint must agree with to be resumed, as plain values."""

    @property
    def folder(self) -> Any:
        """The run folder, or None."""


# --- Optional abilities: never required, found by looking for the member ---------------------------------------------


@runtime_checkable
class PerTask(Protocol):
    """A learner whose meta-gradient parts by task: for wrappers that weigh tasks, such as gradient agreement.

    The gradient of ``losses[b]`` is what ``meta_gradient`` adds for task b alone; that of their mean what it adds for
    all, with the same chance and the same move of running statistics. So a wrapper differentiates what it makes of the
    losses and knows of no method: one whose meta-gradient is no loss's (Reptile) gives losses that have it in place of
    their own gradient.
    """

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """-> losses [B], each with its graph; and the displacement theta - theta' of each task in its inner loop,
        {name: [B, *]} of whatever parameters adapt, which may have a graph."""


@runtime_checkable
class Pooled(Protocol):
    """Tasks made from a table of labelled examples: for views and for prediction on files."""

    def pool(self, split: str) -> Any:
        """The split's ``kshot.Pool``."""

    def prepare(self, raw: Any) -> Tensor:
        """Raw examples (paths, images) as inputs [n, *input] in the spec's range."""


@runtime_checkable
class Portable(Protocol):
    """Tasks whose ``prepare`` can be written down, so that a run predicts on files where the data are not."""

    @property
    def preparation(self) -> Preparation | None:
        """What ``prepare`` does, as a value; None where it can't be one."""


@runtime_checkable
class Embeds(Protocol):
    """A learner with an embedding."""

    def embed(self, x: Tensor) -> Tensor:
        """``x`` [.., *input] -> [.., D]."""


@runtime_checkable
class Compares(Embeds, Protocol):
    """A learner with a distance of its own between embeddings; without it, theirs is Euclidean."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How unlike two inputs are, by their embeddings ``a`` and ``b`` [.., D] -> [..]; any real numbers."""


@runtime_checkable
class Explains(Protocol):
    """A learner that can show how it came to its predictions."""

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """Named arrays: attention, memory, trajectories."""
