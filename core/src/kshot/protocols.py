"""The four protocols, API level 1, and the optional abilities. A class that satisfies one needs no base class.

Letters: B tasks or episodes, S support size, n examples, N way, D embedding, R reads, M slots, T time.
"""

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
"""Scalars of one meta-batch, means over its tasks; by convention ``loss`` is the first, e.g. {"loss": 0.3}."""


@runtime_checkable
class TaskDistribution(Protocol):
    """A source of episodes. Episode i of a split is a pure function of (seed, split, i).

    Example:
        >>> import kshot
        >>> tasks = kshot.ClassificationTasks({"train": kshot.Pool.of(torch.zeros(4, 2), [0, 0, 1, 1])}, way=2, query=1)
        >>> isinstance(tasks, TaskDistribution)
        True
    """

    @property
    def spec(self) -> TaskSpec:
        """The shape of the episodes."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices`` of ``split``, stacked: B = len(indices).

        Raises:
            DataError: an unknown split, or indices of blocks with different shapes.
        """


@runtime_checkable
class Learner(Protocol):
    """A meta-learner: an ``nn.Module`` with three more members. Built as ``factory(spec, **options)``.

    Example:
        >>> class Majority(torch.nn.Module):
        ...     needs = Needs(kinds=("classification",))
        ...     def meta_gradient(self, episodes):
        ...         return {"loss": 0.0}  # nothing to train
        ...     def adapt(self, support):
        ...         counts = torch.nn.functional.one_hot(support.y, support.way).sum(1)
        ...         return lambda x: counts[:, None].expand(-1, x.shape[1], -1).float()
        >>> isinstance(Majority(), Learner)
        True
    """

    needs: Needs

    def meta_gradient(self, episodes: Episode) -> Metrics | Iterator[Metrics]:
        """Add the mean meta-gradient over the tasks to ``.grad`` and return scalars.

        A learner that takes several outer steps on one meta-batch yields the scalars of each; after each yield the
        engine steps its optimizer.
        """

    def adapt(self, support: Support) -> Predictor:
        """Learn B tasks from their support. Return a function of the query inputs; change nothing in the learner."""


@runtime_checkable
class Memory(Protocol):
    """An external memory: an ``nn.Module``. Made by ``factory(slots, width, reads, **options)``.

    ``interface`` [B, interface_size] is the controller's output, any real numbers. The memory cuts it into keys, gates
    and so on, and maps each to its own range. ``state`` is any pytree of tensors that begin with B. Reads before the
    first step are zeros. If the state has the fields (of a named tuple) or keys (of a dict) ``read_weights``
    [B, R, M] and ``write_weights`` [B, *, M], learners can trace them and plots can draw them.

    Example:
        >>> class LastInput(torch.nn.Module):  # a memory of one slot, which each step replaces
        ...     interface_size = read_size = 4
        ...     def initial_state(self, batch_size):
        ...         return torch.zeros(batch_size, 4)
        ...     def step(self, interface, state):
        ...         return state, interface
        >>> isinstance(LastInput(), Memory)
        True
    """

    interface_size: int
    read_size: int

    def initial_state(self, batch_size: int) -> Any:
        """Return the state of an empty memory for ``batch_size`` episodes."""

    def step(self, interface: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Compute one time step: (reads [B, read_size], new state). Never change ``state`` itself."""


LearnerFactory = Callable[[TaskSpec], Learner]
"""``factory(spec) -> Learner``: for a learner that contains another one, which learns tasks of another spec."""

MemoryFactory = Callable[..., Memory]
"""``factory(slots, width, reads, **options) -> Memory``: M slots of ``width`` numbers and R reads per step."""


@runtime_checkable
class World(Protocol):
    """The processes that train together. One process is rank 0 of size 1.

    All ranks make the same calls in the same order, with tensors of the same type and shape, on the CPU or on the
    backend's device. A result is on the same device as its argument, which may be overwritten. If a rank has ended, a
    call raises an exception, of any type: it never waits for ever.

    Example:
        >>> from kshot._engine.cpu import OneProcess
        >>> OneProcess().all_reduce(torch.ones(2))
        tensor([1., 1.])
    """

    rank: int
    size: int

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, the same bits on each."""

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor, in order of rank."""

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return rank 0's tensor, on every rank."""


@runtime_checkable
class Backend(Protocol):
    """A device and a precision to compute with. Built as ``factory(**options)``.

    A backend may wrap another: one for several processes adds only their ``world`` to a local backend.

    Example:
        >>> import kshot
        >>> isinstance(kshot.Cpu(), Backend)
        True
    """

    device: torch.device
    world: World

    def place(self, x: T) -> T:
        """Return a module, tensor or pytree on the device, in the backend's memory format; move modules in place."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the precision in which ``meta_gradient`` and ``adapt`` run."""

    def describe(self) -> Mapping[str, Any]:
        """Return plain values that a result records: name, precision, threads and the like."""


class EngineView(Protocol):
    """The part of the engine that a hook may read. A hook changes none of it.

    Attributes:
        learner: the learner on the backend's device.
        tasks: those it trains on.
        evaluation_tasks: those it is validated and evaluated on.
        backend: the device and precision that it computes with.
        meta_batch: tasks per outer step (B).
        chunk: the most tasks computed at once.
        seed: the seed of training.
        iteration: outer steps taken.
        folder: the run folder, whose ``path`` is a directory; None if nothing is written.
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


# --- Optional abilities: never required, detected by looking for the member -------------------------------------------


@runtime_checkable
class PerTask(Protocol):
    """A learner whose meta-gradient is a mean over tasks: for wrappers that weigh tasks, such as gradient agreement.

    The gradient of ``losses[b]`` is what ``meta_gradient`` adds for task b alone. The gradient of their mean is what
    it adds for all tasks, with the same random draws and the same update of running statistics. So a wrapper
    differentiates a function of the losses and needs to know nothing of the method. If the meta-gradient is not the
    gradient of a loss (Reptile), the learner returns losses whose gradient it is.
    """

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return losses [B], each with its graph, and the displacements theta - theta' of the inner loop.

        The displacements are {name: [B, *]} of the parameters that adapt, and may have a graph.
        """


@runtime_checkable
class Gathered(Protocol):
    """Tasks that gather their examples from pools by a function that a backend gives, such as one on its device."""

    def sample_with(self, split: str, indices: Sequence[int], gather: Callable[[Any, Any], Tensor]) -> Episode:
        """Return what ``sample(split, indices)`` does, with ``gather(pool, ids)`` in place of ``pool.gather(ids)``.

        ``ids`` are rows of the pool [B, n]; the result [B, n, *input] is on any device.
        """


@runtime_checkable
class Redrawn(Protocol):
    """Tasks whose episodes are examples of a pool and nothing else, so that others can be drawn from it."""

    def sample_drawn(
        self,
        split: str,
        indices: Sequence[int],
        draw: Callable[[Any, Any, int, int, int], Any],
        gather: Callable[[Any, Any], Tensor] | None = None,
    ) -> Episode:
        """Return episodes of which ``draw(pool, keys, way, shot, query)`` says the classes and the examples.

        ``draw`` returns a ``kshot.sampling.Drawn``. ``gather`` is as in ``Gathered.sample_with``.
        """


@runtime_checkable
class Samples(Protocol):
    """A backend that samples episodes on its device: the bits of ``place(tasks.sample(split, indices))``."""

    def sample_on_device(self, tasks: TaskDistribution, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes of the tasks, placed on the device."""


@runtime_checkable
class Pooled(Protocol):
    """Tasks that sample from a table of labelled examples: for views and for prediction on files."""

    def pool(self, split: str) -> Any:
        """Return the split's ``kshot.Pool``."""

    def prepare(self, raw: Any) -> Tensor:
        """Return raw examples (paths, images) as inputs [n, *input] in the spec's range."""


@runtime_checkable
class Portable(Protocol):
    """Tasks whose ``prepare`` can be stored, so that a run predicts on files without the data it was trained on."""

    @property
    def preparation(self) -> Preparation | None:
        """How ``prepare`` makes inputs, as a value; None if it can't be stored."""


@runtime_checkable
class Embeds(Protocol):
    """A learner with an embedding."""

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs ``x`` [.., *input]: [.., D]."""


@runtime_checkable
class Compares(Embeds, Protocol):
    """A learner that defines the distance between its embeddings; without this ability it is Euclidean."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return how different two inputs are, by their embeddings ``a`` and ``b`` [.., D]: [..], any real numbers."""


@runtime_checkable
class Inherits(Protocol):
    """A learner that makes the parameters of another run fit its own, for a start from that run.

    Without this ability, tensors of another shape than the learner's are left out.
    """

    def inherited(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return parameters and buffers of another run, by name, with those changed that the learner can fit.

        Neither the learner nor ``theirs`` changes. What matches the learner by name and shape is copied afterwards.

        Raises:
            KshotError: the tensors are not those of such a learner.
        """


@runtime_checkable
class Explains(Protocol):
    """A learner that can show how it reached its predictions."""

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """Return named arrays, such as attention, memory or trajectories."""
