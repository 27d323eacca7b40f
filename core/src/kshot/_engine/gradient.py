"""From a meta-batch to its mean meta-gradient in ``.grad``: over chunks, over processes, and over several outer steps.

The learner adds the mean gradient of the tasks it is given; here the means of the parts become the meta-batch's,
weighted by their number of tasks. A rank's part are the episodes ``indices[rank::size]``; where tasks are coupled,
every rank computes all of them and rank 0's count. Buffers go the same way: every chunk starts from those before the
meta-batch, and afterwards running statistics have moved by the weighted mean of the chunks' moves, while counters and
flags are those of the first chunk. So no division into chunks or processes changes what is learnt.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from kshot._engine.processes import everywhere, exchange, meeting
from kshot.errors import TrainingError
from kshot.protocols import Backend, Metrics, TaskDistribution, World
from kshot.randomness import seeded
from kshot.spec import Needs


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


def check_finite_metrics(metrics: Mapping[str, float], iteration: int, batch: MetaBatch) -> None:
    """Raise TrainingError if a metric is NaN or infinite; names the iteration and its episodes."""
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise everywhere(
            TrainingError(
                f"iteration {iteration + 1}: {', '.join(f'{name} is {metrics[name]}' for name in bad)} on episodes "
                f"{batch.indices[0]}..{batch.indices[-1]} of split {batch.split!r}; lower the learning rate, clip "
                "gradients (optimizer.clip), or look at these episodes: tasks.sample(split, indices)"
            )
        )


def division(needs: Needs, meta_batch: int, size: int) -> str:
    """How ``size`` processes share a meta-batch, as the end of a sentence; nothing where there is one."""
    if size == 1:
        return ""
    if needs.couples_tasks:
        return f"; the tasks are coupled, so each of the {size} processes computes the whole meta-batch"
    if meta_batch < size:
        return f"; meta_batch {meta_batch} leaves {size - meta_batch} of the {size} processes without work in training"
    return f"; {size} processes share the {meta_batch} tasks of a meta-batch"


class MetaGradient:
    """Computes the meta-gradients of one learner.

    Args:
        learner: on the backend's device.
        parameters: those that are trained.
        backend: where to compute, and with which other processes.
    """

    def __init__(self, learner: Any, parameters: Sequence[nn.Parameter], backend: Backend) -> None:
        self.learner, self.parameters, self.backend = learner, parameters, backend
        self._names: tuple[str, ...] = ()  # of the metrics, the same on every rank; unknown before the first answer

    def steps(self, batch: MetaBatch) -> Iterator[Mapping[str, float]]:
        """For each outer step on this meta-batch: leave its gradient in ``.grad`` and yield its metrics.

        One step for most learners; as many as it yields for a learner whose ``meta_gradient`` is a generator. Chunks
        and processes advance together; a rank without episodes takes part all the same.

        Raises:
            TrainingError: the learner returned no scalars, or took more outer steps on some episodes than on others.
        """
        world = self.backend.world
        whole = world.size == 1 or self.learner.needs.couples_tasks
        mine = batch.indices if whole else batch.indices[world.rank :: world.size]
        chunks = [mine[i : i + batch.chunk] for i in range(0, len(mine), batch.chunk)]
        answers = [self._answers(batch, chunk) for chunk in chunks]
        if world.size == 1 and len(chunks) == 1:
            _clear(self.parameters)
            for metrics, _ in answers[0]:
                yield {name: float(value) for name, value in metrics.items()}
                _clear(self.parameters)
            return
        more = True
        while more:
            mean = _Mean(self.parameters, self.learner)
            for chunk, answer in zip(chunks, answers, strict=True):
                mean.begin()
                mean.add(next(answer, None), len(chunk) / len(batch.indices))
            if world.size > 1:
                self._sum(mean, world, counts=not whole or world.rank == 0)
            if mean.ended and mean.answered:
                raise everywhere(
                    TrainingError(
                        f"{type(self.learner).__name__}.meta_gradient took more outer steps on some of the episodes "
                        f"{batch.indices[0]}..{batch.indices[-1]} than on others, so they can't be divided into chunks "
                        "or over processes; yield as often on any episodes, or declare Needs(couples_tasks=True)"
                    )
                )
            if mean.ended:
                return
            yield mean.finish()
            more = mean.more > 0

    def _answers(self, batch: MetaBatch, chunk: Sequence[int]) -> Iterator[tuple[Metrics, bool]]:
        """What the learner says of a chunk, once or, where it answers with a generator, several times; and whether
        there may be more."""
        episodes = self.backend.place(batch.tasks.sample(batch.split, chunk))
        answer: Any = None
        for step in itertools.count():
            with seeded("training", *batch.seed, chunk[0], step), self.backend.autocast():
                if step == 0:
                    answer = self.learner.meta_gradient(episodes)
                several = isinstance(answer, Iterator)
                metrics = next(answer, None) if several else answer
            if metrics is None and step and several:
                return
            if not isinstance(metrics, Mapping):
                raise TrainingError(
                    f"{type(self.learner).__name__}.meta_gradient gave {type(metrics).__name__}, expected a mapping of "
                    "scalars, e.g. {'loss': loss.detach()}, or a generator of them"
                )
            yield metrics, several
            if not several:
                return

    def _sum(self, mean: _Mean, world: World, *, counts: bool) -> None:
        """Sum a part over all ranks, in one all_reduce of one flat tensor.

        It ends with a number for each parameter (whether any rank has a gradient), some for how the ranks are doing,
        and the metrics by the names that are known. Where a rank has others, names are told, and it is summed again.

        Args:
            counts: whether this rank's figures are among those summed.
        """
        metrics = mean.metrics if counts else {}
        tensors = mean.tensors(counts, first=world.rank == 0)
        marks = [float(counts and gradient is not None) for gradient in mean.gradients]
        wide = [t.dtype for t in tensors if _averaged(t)]
        dtype = functools.reduce(torch.promote_types, wide, torch.float32)
        device = tensors[0].device if tensors else torch.device(self.backend.device)
        parts = [t.to_dense().flatten().to(dtype) for t in tensors]
        while True:
            unknown = not set(metrics) <= set(self._names)
            told = [number for name in self._names for number in metrics.get(name, (0.0, 0.0))]
            # Always as long as this: by the length goes in what order ranks are summed, and a resumed run, which knows
            # no names at first, would differ in its last bits from an unbroken one.
            told += [0.0] * (16 - len(told) % 16)
            tail = [*marks, float(mean.answered), float(mean.ended), float(mean.more), float(unknown), *told]
            flat = torch.cat([*parts, torch.tensor(tail, dtype=dtype, device=device)])
            with meeting(world):
                flat = world.all_reduce(flat)
            *summed, end = torch.split(flat, [*(t.numel() for t in tensors), len(tail)])
            n, tail = len(marks), end.real.tolist()
            answered, ended, more, strangers = (round(number) for number in tail[n : n + 4])
            if not strangers:
                break
            everyones = exchange(world, list(metrics))
            self._names = tuple(dict.fromkeys([*self._names, *(name for names in everyones for name in names)]))
        mean.answered, mean.ended, mean.more = answered, ended, more
        mean.take(summed, tail[:n])
        told = tail[n + 4 :]
        mean.metrics = {name: (told[2 * i], told[2 * i + 1]) for i, name in enumerate(self._names) if told[2 * i + 1]}


class _Mean:
    """The weighted mean of gradients, metrics and buffers over the parts of a meta-batch.

    Attributes:
        gradients: for each parameter the weighted sum so far, or None where no part had one.
        start, moves: the buffers before, and the weighted sum of how the parts moved them; of counters and flags the
            first part's move.
        metrics: for each name the weighted sum of its values, and of the weights.
        answered, ended: chunks that took this outer step, and that had no further one.
        more: chunks that may take another.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learner: nn.Module) -> None:
        self.parameters, self.learner = parameters, learner
        self.start = {name: b.clone() for name, b in self.buffers()}
        self.moves = {name: torch.zeros_like(b) for name, b in self.start.items()}
        self.gradients: list[Tensor | None] = [None] * len(parameters)
        self.metrics: dict[str, tuple[float, float]] = {}
        self.answered = self.ended = self.more = 0

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """As they are now: a learner may have assigned new tensors to their names."""
        return ((name, b.detach()) for name, b in self.learner.named_buffers())

    def begin(self) -> None:
        """Before a chunk: no gradient, and the buffers from before the meta-batch."""
        _clear(self.parameters)
        for name, b in self.buffers():
            b.copy_(self.start[name])

    def add(self, answer: tuple[Metrics, bool] | None, share: float) -> None:
        """After a chunk that is ``share`` of the meta-batch: what the learner said of it, or None at the end."""
        if answer is None:
            self.ended += 1
            return
        metrics, more = answer
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                held = self.gradients[i]
                self.gradients[i] = p.grad * share if held is None else held.add_(p.grad, alpha=share)
        for name, b in self.buffers():
            start, move = self.start[name], self.moves[name]
            if _averaged(b):
                move.add_(torch.where(b == start, 0, b - start), alpha=share)  # a constant may be infinite
            elif not self.answered:
                move.copy_(b ^ start if b.dtype == torch.bool else b - start)
        for name, value in metrics.items():
            total, weight = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = total + float(value) * share, weight + share
        self.answered += 1
        self.more += more

    def tensors(self, counts: bool, first: bool) -> list[Tensor]:
        """What is summed over ranks: a gradient for each parameter, and the moves of the buffers.

        Args:
            counts: whether this rank's count; else they are zeros.
            first: whether this is rank 0, whose counters and flags are everybody's.
        """
        whole = zip(self.gradients, self.parameters, strict=True)
        gradients = [torch.zeros_like(p) if g is None or not counts else g for g, p in whole]
        kept = [counts and (first or _averaged(m)) for m in self.moves.values()]
        moves = [m if keep else torch.zeros_like(m) for m, keep in zip(self.moves.values(), kept, strict=True)]
        return [*(g.detach() for g in gradients), *moves]

    def take(self, summed: Sequence[Tensor], marks: Sequence[float]) -> None:
        """The sums over ranks, flat, instead of this rank's part; ``marks``: which parameters have a gradient."""
        for i, (p, mark) in enumerate(zip(self.parameters, marks, strict=True)):
            self.gradients[i] = torch.empty_like(p).copy_(summed[i].view(p.shape)) if mark else None
        for move, total in zip(self.moves.values(), summed[len(marks) :], strict=True):
            move.copy_((total if _averaged(move) else total.real.round()).view(move.shape))

    def finish(self) -> dict[str, float]:
        """Leave the means in ``.grad`` and in the buffers; returns those of the metrics."""
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient
        for name, b in self.buffers():
            start, move = self.start[name], self.moves[name]
            b.copy_(start ^ move if b.dtype == torch.bool else start + move)
        return {name: total / weight for name, (total, weight) in self.metrics.items()}


def _averaged(tensor: Tensor) -> bool:
    """Whether a tensor is a running statistic, of which means make sense; else it is a counter or a flag."""
    return tensor.is_floating_point() or tensor.is_complex()


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        p.grad = None
