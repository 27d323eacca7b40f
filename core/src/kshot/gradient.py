"""From a meta-batch to its mean meta-gradient in ``.grad``: over chunks, over processes, and over several outer steps.

The learner adds the mean gradient of the tasks it is given; here the chunks' means become the meta-batch's, weighted
by their number of tasks. Running statistics go the same way: every chunk starts from those before the meta-batch, and
afterwards they are the weighted mean. So no division into chunks or processes changes what is learnt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kshot.errors import TrainingError
from kshot.protocols import Backend, Metrics, TaskDistribution
from kshot.randomness import seeded


@frozen(eq=False)
class MetaBatch:
    """One iteration's work.

    Attributes:
        tasks, split, indices: the episodes, of all processes together.
        chunk: the most of them computed at once.
        seed: (engine seed, iteration), from which dropout and the like are reseeded.
    """

    tasks: TaskDistribution
    split: str
    indices: Sequence[int]
    chunk: int
    seed: tuple[int, int]


def outer_steps(
    learner: Any, parameters: Sequence[nn.Parameter], batch: MetaBatch, backend: Backend
) -> Iterator[Mapping[str, float]]:
    """For each outer step on this meta-batch: leave its gradient in ``.grad`` and yield its metrics.

    One step for most learners; as many as it yields for a learner whose ``meta_gradient`` is a generator. Several
    chunks' generators advance together.

    Raises:
        TrainingError: the learner returned no scalars.
    """
    world = backend.world
    shared = world.size > 1 and not learner.needs.couples_tasks
    mine = batch.indices[world.rank :: world.size] if shared else batch.indices
    chunks = [mine[i : i + batch.chunk] for i in range(0, len(mine), batch.chunk)]
    answers = [_answers(learner, batch, chunk, backend) for chunk in chunks]
    while True:
        if len(chunks) == 1 and not shared:
            _clear(parameters)
            metrics = next(answers[0], None)
            if metrics is None:
                return
            yield {name: float(value) for name, value in metrics.items()}
            continue
        mean = _Mean(parameters, _float_buffers(learner))
        for chunk, answer in zip(chunks, answers, strict=True):
            mean.begin()
            metrics = next(answer, None)
            if metrics is None:
                return
            mean.add(metrics, len(chunk) / len(batch.indices))
        yield mean.finish(backend if shared else None)


def _answers(learner: Any, batch: MetaBatch, chunk: Sequence[int], backend: Backend) -> Iterator[Metrics]:
    """What the learner says of a chunk, once or, where it answers with a generator, several times."""
    episodes = backend.place(batch.tasks.sample(batch.split, chunk))
    answer: Any = None
    for step in itertools.count():
        with seeded("training", *batch.seed, chunk[0], step), backend.autocast():
            if step == 0:
                answer = learner.meta_gradient(episodes)
            metrics = next(answer, None) if isinstance(answer, Iterator) else answer
        if metrics is None and step and isinstance(answer, Iterator):
            return
        if not isinstance(metrics, Mapping):
            raise TrainingError(
                f"{type(learner).__name__}.meta_gradient gave {type(metrics).__name__}, expected a mapping of "
                "scalars, e.g. {'loss': loss.detach()}, or a generator of them"
            )
        yield metrics
        if not isinstance(answer, Iterator):
            return


class _Mean:
    """The weighted mean of gradients, metrics and running statistics over chunks and processes."""

    def __init__(self, parameters: Sequence[nn.Parameter], buffers: dict[str, Tensor]) -> None:
        self.parameters = parameters
        self.buffers = buffers
        self.start = {n: b.clone() for n, b in buffers.items()}
        self.statistics = {n: torch.zeros_like(b) for n, b in buffers.items()}
        self.gradients: list[Tensor | None] = [None] * len(parameters)
        self.metrics: dict[str, float] = {}

    def begin(self) -> None:
        """Before a chunk: no gradient, and the statistics from before the meta-batch."""
        _clear(self.parameters)
        for name, b in self.buffers.items():
            b.copy_(self.start[name])

    def add(self, metrics: Metrics, share: float) -> None:
        """After a chunk that is ``share`` of the meta-batch."""
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                held = self.gradients[i]
                self.gradients[i] = p.grad * share if held is None else held.add_(p.grad, alpha=share)
        for name, b in self.buffers.items():
            self.statistics[name] += b * share
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0.0) + float(value) * share

    def finish(self, backend: Backend | None) -> dict[str, float]:
        """Leave the means in ``.grad`` and in the buffers; with a backend, summed over its processes."""
        if backend is not None:
            reduce = backend.world.all_reduce
            whole = zip(self.gradients, self.parameters, strict=True)
            self.gradients = [reduce(torch.zeros_like(p) if g is None else g) for g, p in whole]
            self.statistics = {n: reduce(s) for n, s in self.statistics.items()}
            names = sorted(self.metrics)
            summed = reduce(torch.tensor([self.metrics[n] for n in names], dtype=torch.float64))
            self.metrics = dict(zip(names, summed.tolist(), strict=True))
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient
        for name, b in self.buffers.items():
            b.copy_(self.statistics[name])
        return self.metrics


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        p.grad = None


def _float_buffers(module: nn.Module) -> dict[str, Tensor]:
    """A learner's floating-point buffers: running statistics, which are the engine's care."""
    return {n: b for n, b in module.named_buffers() if b.is_floating_point()}
