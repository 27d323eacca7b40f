"""Compute the mean meta-gradient of a meta-batch into ``.grad``, over chunks, processes and several outer steps.

A learner adds the mean gradient of the tasks that it is given. This module combines the means of all chunks and
processes into the mean of the whole meta-batch, so that the division does not change what is learnt:

- **Gradients and metrics** are averaged with weights proportional to the number of tasks: g = sum_c (B_c / B) g_c.
- **Processes**: rank r computes the episodes ``indices[r::size]``. If the learner couples the tasks of a meta-batch,
  every rank computes all of them, and only rank 0's figures are summed.
- **Running statistics** (floating-point buffers): every chunk starts from the values before the meta-batch, and
  afterwards each has moved by the weighted mean of the chunks' moves: s' = s + sum_c (B_c / B) (s_c - s).
- **Counters and flags** (integer and boolean buffers) take the value that the first chunk gave them. Sparse
  buffers are left alone, as a constant matrix of a graph is.
- **Random numbers**: a learner that draws from torch's global generator, as dropout does, computes one episode at a
  time, seeded by its number. Otherwise the numbers drawn for an episode would depend on the others in its chunk.
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
from kshot.devices import sample_on
from kshot.errors import TrainingError
from kshot.protocols import Backend, Metrics, TaskDistribution, World
from kshot.randomness import global_generators, seeded
from kshot.spec import Needs


@frozen(eq=False)
class MetaBatch:
    """Describe the meta-batch of one iteration.

    Attributes:
        tasks, split, indices: the episodes, of all processes together; B = len(indices).
        chunk: the largest number of episodes that are computed at once.
        seed: (engine seed, iteration), from which dropout and the like are reseeded.
        stop: whether this process was asked to stop after this meta-batch.
    """

    tasks: TaskDistribution
    split: str
    indices: Sequence[int]
    chunk: int
    seed: tuple[int, int]
    stop: bool = False


def check_finite_metrics(metrics: Mapping[str, float], iteration: int, batch: MetaBatch) -> None:
    """Raise TrainingError if a metric is NaN or infinite; the message names the iteration and its episodes."""
    if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise everywhere(
            TrainingError(
                f"iteration {iteration + 1}: {', '.join(f'{name} is {metrics[name]}' for name in bad)} on "
                f"{_episodes(batch)}; lower the learning rate, clip "
                "gradients (optimizer.clip), or look at these episodes: tasks.sample(split, indices)"
            )
        )


def check_finite_gradient(
    learner: nn.Module, parameters: Sequence[nn.Parameter], iteration: int, batch: MetaBatch
) -> None:
    """Raise TrainingError if a number in ``.grad`` is NaN or infinite; the message names iteration and episodes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    # Compute one norm for each parameter, and check all of them at once.
    dense = [g.coalesce().values() if g.layout == torch.sparse_coo else g for g in gradients]
    norms = torch._foreach_norm([g for g in dense if g.numel()])
    if not norms or bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
        return
    # A norm may be infinite because squares of finite numbers overflow, so check the numbers themselves.
    named = [(name, p.grad) for name, p in learner.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in named if not bool(gradient.to_dense().isfinite().all())]
    if not bad:
        return
    shown = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    _clear(parameters)
    raise everywhere(
        TrainingError(
            f"iteration {iteration + 1}: the gradient of {shown} is NaN or infinite on {_episodes(batch)}, though the "
            "metrics are finite; expected finite numbers; no step was taken and the parameters are unchanged; lower "
            "the learning rate, or look for the slope of a square root or a logarithm at 0 "
            "(torch.autograd.set_detect_anomaly)"
        )
    )


def _episodes(batch: MetaBatch) -> str:
    return f"episodes {batch.indices[0]}..{batch.indices[-1]} of split {batch.split!r}"


def division(needs: Needs, meta_batch: int, size: int) -> str:
    """Describe how ``size`` processes share a meta-batch, as the end of a sentence; empty for a single process."""
    if size == 1:
        return ""
    if needs.couples_tasks:
        return f"; the tasks are coupled, so each of the {size} processes computes the whole meta-batch"
    if meta_batch < size:
        return f"; meta_batch {meta_batch} leaves {size - meta_batch} of the {size} processes without work in training"
    return f"; {size} processes share the {meta_batch} tasks of a meta-batch"


class MetaGradient:
    """Compute the meta-gradients of one learner.

    Args:
        learner: the learner, on the backend's device.
        parameters: its trained parameters.
        backend: where to compute, and with which other processes.

    Attributes:
        stop: whether any process was asked to stop after the last meta-batch; the same on every rank.
    """

    def __init__(self, learner: Any, parameters: Sequence[nn.Parameter], backend: Backend) -> None:
        self.learner, self.parameters, self.backend = learner, parameters, backend
        self.stop = False
        # Names of the metrics, in the same order on every rank; empty until the learner has returned metrics once.
        self._names: tuple[str, ...] = ()
        # Whether the learner was seen to draw from torch's global generator.
        self._draws = False

    def steps(self, batch: MetaBatch) -> Iterator[Mapping[str, float]]:
        """For each outer step on this meta-batch, put its mean gradient into ``.grad`` and yield its metrics.

        Most learners take one outer step on a meta-batch. A learner whose ``meta_gradient`` is a generator takes as
        many as it yields. Chunks and processes advance together; a rank without episodes takes part all the same.

        Raises:
            TrainingError: the learner returned no scalars, or took more outer steps on some episodes than on others.
        """
        # That a learner draws random numbers is known only once it has done so. Its gradient of several episodes is
        # then discarded before another process gets it, and from now on episodes are computed one at a time.
        self.stop = batch.stop
        separable = batch.chunk > 1 and not self.learner.needs.couples_tasks
        if separable and not self._draws:
            start = {name: b.detach().clone() for name, b in self.learner.named_buffers()}
            try:
                yield from self._steps(batch, batch.chunk, watched=True)
                return
            except _Draws:
                self._draws = True
                for name, b in self.learner.named_buffers():
                    b.detach().copy_(start[name])
        yield from self._steps(batch, 1 if separable else batch.chunk, watched=False)

    def _steps(self, batch: MetaBatch, size: int, *, watched: bool) -> Iterator[Mapping[str, float]]:
        """Do what ``steps`` does, in chunks of ``size`` episodes.

        Args:
            watched: whether to raise ``_Draws`` if the learner draws random numbers for several episodes at once.
        """
        # 1. Divide the meta-batch over ranks, and this rank's share into chunks.
        world = self.backend.world
        computes_all = world.size == 1 or self.learner.needs.couples_tasks
        share = batch.indices if computes_all else batch.indices[world.rank :: world.size]
        chunks = [share[i : i + size] for i in range(0, len(share), size)]
        outputs = [self._outputs(batch, chunk, watched=watched and len(chunk) > 1) for chunk in chunks]

        # One chunk in one process: the learner's own .grad is the mean already.
        if world.size == 1 and len(chunks) == 1:
            _clear(self.parameters)
            for metrics, _ in outputs[0]:
                yield {name: float(value) for name, value in metrics.items()}
                _clear(self.parameters)
            return

        more = True
        while more:
            # 2. Add the chunks' means, each weighted by its number of tasks: g = sum_c (B_c / B) g_c.
            mean = _Mean(self.parameters, self.learner)
            for chunk, output in zip(chunks, outputs, strict=True):
                mean.begin()
                mean.add(next(output, None), len(chunk) / len(batch.indices))
            # 3. Add the ranks' weighted sums. If tasks are coupled, all ranks have the same, and rank 0's count once.
            if world.size > 1:
                self._sum(mean, world, counts=not computes_all or world.rank == 0, stop=batch.stop)
            # 4. Every chunk must take the same number of outer steps, otherwise there is no common gradient.
            if mean.ended and mean.stepped:
                raise everywhere(
                    TrainingError(
                        f"{type(self.learner).__name__}.meta_gradient took more outer steps on some of the episodes "
                        f"{batch.indices[0]}..{batch.indices[-1]} than on others, so they can't be divided into chunks "
                        "or over processes; yield as often on any episodes, or declare Needs(couples_tasks=True)"
                    )
                )
            if mean.ended:
                return
            # 5. Write the mean into .grad. The caller takes the optimizer's step before it asks for the next mean.
            yield mean.finish()
            more = mean.more > 0

    def _outputs(self, batch: MetaBatch, chunk: Sequence[int], *, watched: bool) -> Iterator[tuple[Metrics, bool]]:
        """Yield for each outer step on a chunk the learner's metrics, and whether another step may follow.

        Args:
            watched: whether to raise ``_Draws`` if the learner draws random numbers in the first step.
        """
        episodes = sample_on(self.backend, batch.tasks, batch.split, chunk)
        device = torch.device(self.backend.device)
        output: Any = None
        for step in itertools.count():
            # Dropout and the like are drawn from (seed, iteration, first episode, step), whatever was drawn before.
            with seeded("training", *batch.seed, chunk[0], step, device=device), self.backend.autocast():
                before = [each.get_state() for each in global_generators(device)] if watched and step == 0 else []
                if step == 0:
                    output = self.learner.meta_gradient(episodes)
                several = isinstance(output, Iterator)
                metrics = next(output, None) if several else output
                after = [each.get_state() for each in global_generators(device)] if before else []
                if not all(map(torch.equal, before, after)):
                    raise _Draws
            if metrics is None and step and several:
                return
            if not isinstance(metrics, Mapping):
                raise TrainingError(
                    f"{type(self.learner).__name__}.meta_gradient: got {type(metrics).__name__}, expected a mapping of "
                    "scalars, e.g. {'loss': loss.detach()}, or a generator of them"
                )
            yield metrics, several
            if not several:
                return

    def _sum(self, mean: _Mean, world: World, *, counts: bool, stop: bool) -> None:
        """Replace this rank's weighted sums by those over all ranks, with one all_reduce of one flat tensor.

        The flat tensor holds the gradients and the moves of the buffers; then for each parameter whether this rank
        has a gradient; then four numbers about the progress of the ranks; then for each known metric its sum and its
        weight; last, whether this rank was asked to stop. If a rank has a metric whose name the others don't know, all
        exchange the names and sum again.

        Args:
            counts: whether this rank's figures are among those that are summed.
            stop: whether this rank was asked to stop.
        """
        metrics = mean.metrics if counts else {}
        tensors = mean.tensors(counts, first=world.rank == 0)
        has_gradient = [float(counts and gradient is not None) for gradient in mean.gradients]
        # One type for all: the widest of the averaged tensors, at least float32.
        averaged_dtypes = [t.dtype for t in tensors if _averaged(t)]
        dtype = functools.reduce(torch.promote_types, averaged_dtypes, torch.float32)
        device = tensors[0].device if tensors else torch.device(self.backend.device)
        flat_tensors = [t.to_dense().flatten().to(dtype) for t in tensors]
        while True:
            # Lay out the numbers behind the tensors: [has_gradient, stepped, ended, more, unknown, sums and weights].
            unknown = not set(metrics) <= set(self._names)
            figures = [number for name in self._names for number in metrics.get(name, (0.0, 0.0))]
            # Pad to a constant length: the order in which ranks are summed depends on the length, and a resumed run,
            # which knows no names at first, would differ in its last bits from an unbroken one.
            figures += [0.0] * (16 - len(figures) % 16)
            figures[-1] = float(stop)  # there is at least one number of padding
            progress = [float(mean.stepped), float(mean.ended), float(mean.more), float(unknown)]
            tail = [*has_gradient, *progress, *figures]
            flat = torch.cat([*flat_tensors, torch.tensor(tail, dtype=dtype, device=device)])
            with meeting(world):
                flat = world.all_reduce(flat)
            # Split the sums again.
            *summed, end = torch.split(flat, [*(t.numel() for t in tensors), len(tail)])
            n, tail = len(has_gradient), end.real.tolist()
            stepped, ended, more, ranks_with_unknown = (round(number) for number in tail[n : n + 4])
            if not ranks_with_unknown:
                break
            # Some rank has a metric that is not in the layout: agree on the names, and sum again.
            names_of_ranks = exchange(world, list(metrics))
            self._names = tuple(dict.fromkeys([*self._names, *(name for names in names_of_ranks for name in names)]))
        mean.stepped, mean.ended, mean.more = stepped, ended, more
        self.stop = tail[-1] > 0
        mean.take(summed, tail[:n])
        sums, weights = tail[n + 4 :: 2], tail[n + 5 :: 2]
        each = zip(self._names, sums, weights, strict=False)  # the padding has no names
        mean.metrics = {name: (total, weight) for name, total, weight in each if weight}


class _Draws(Exception):
    """Report that a learner drew random numbers for several episodes at once."""


class _Mean:
    """Accumulate the weighted mean of gradients, metrics and buffers over the chunks of a meta-batch.

    Attributes:
        gradients: for each parameter the weighted sum so far; None if no chunk had a gradient.
        start: the buffers before the meta-batch.
        moves: the weighted sum of the chunks' changes of each running statistic; of counters and flags the first
            chunk's change.
        metrics: for each name the weighted sum of its values, and the sum of the weights.
        stepped, ended: numbers of chunks that took this outer step, and that had already taken their last.
        more: number of chunks that may take another outer step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learner: nn.Module) -> None:
        self.parameters, self.learner = parameters, learner
        self.start = {name: b.clone() for name, b in self.buffers()}
        self.moves = {name: torch.zeros_like(b) for name, b in self.start.items()}
        self.gradients: list[Tensor | None] = [None] * len(parameters)
        self.metrics: dict[str, tuple[float, float]] = {}
        self.stepped = self.ended = self.more = 0

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the present buffers by name; they are looked up anew, as a learner may have assigned new tensors."""
        return ((name, b.detach()) for name, b in self.learner.named_buffers() if b.layout == torch.strided)

    def begin(self) -> None:
        """Prepare for a chunk: clear the gradients, and restore the buffers from before the meta-batch."""
        _clear(self.parameters)
        for name, b in self.buffers():
            b.copy_(self.start[name])

    def add(self, output: tuple[Metrics, bool] | None, share: float) -> None:
        """Add what the learner computed on a chunk.

        Args:
            output: the metrics and whether more steps may follow; None if the chunk had already taken its last step.
            share: the chunk's number of tasks divided by B.
        """
        if output is None:
            self.ended += 1
            return
        metrics, more = output
        # Gradients: g <- g + (B_c / B) g_c.
        for i, p in enumerate(self.parameters):
            if p.grad is not None:
                total = self.gradients[i]
                self.gradients[i] = p.grad * share if total is None else total.add_(p.grad, alpha=share)
        # Buffers: running statistics by the weighted mean of their moves, counters and flags by the first chunk.
        for name, b in self.buffers():
            start, move = self.start[name], self.moves[name]
            if _averaged(b):
                # inf - inf is NaN, so a constant, which may be infinite, moves by exactly 0.
                move.add_(torch.where(b == start, 0, b - start), alpha=share)
            elif not self.stepped:
                move.copy_(b ^ start if b.dtype == torch.bool else b - start)
        # Metrics: the weights are summed too, as a chunk need not return every metric.
        for name, value in metrics.items():
            weighted_sum, weight = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = weighted_sum + float(value) * share, weight + share
        self.stepped += 1
        self.more += more

    def tensors(self, counts: bool, first: bool) -> list[Tensor]:
        """Return what is summed over ranks: a gradient for each parameter, then the moves of the buffers.

        Args:
            counts: whether this rank's figures count; otherwise they are zeros.
            first: whether this is rank 0, whose counters and flags all ranks take.
        """
        pairs = zip(self.gradients, self.parameters, strict=True)
        gradients = [torch.zeros_like(p) if g is None or not counts else g for g, p in pairs]
        kept = [counts and (first or _averaged(m)) for m in self.moves.values()]
        moves = [m if keep else torch.zeros_like(m) for m, keep in zip(self.moves.values(), kept, strict=True)]
        return [*(g.detach() for g in gradients), *moves]

    def take(self, summed: Sequence[Tensor], has_gradient: Sequence[float]) -> None:
        """Replace this rank's gradients and moves by the sums over ranks.

        Args:
            summed: flat tensors, in the order of ``tensors``.
            has_gradient: for each parameter the number of ranks that have a gradient for it.
        """
        for i, (p, ranks) in enumerate(zip(self.parameters, has_gradient, strict=True)):
            self.gradients[i] = torch.empty_like(p).copy_(summed[i].view(p.shape)) if ranks else None
        # Counters and flags were summed as floating-point numbers, so they are rounded back.
        for move, total in zip(self.moves.values(), summed[len(has_gradient) :], strict=True):
            move.copy_((total if _averaged(move) else total.real.round()).view(move.shape))

    def finish(self) -> dict[str, float]:
        """Write the means into ``.grad`` and into the buffers, and return those of the metrics."""
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient
        # s' = s + weighted mean of the moves; a flag changes if the first chunk changed it.
        for name, b in self.buffers():
            start, move = self.start[name], self.moves[name]
            b.copy_(start ^ move if b.dtype == torch.bool else start + move)
        return {name: total / weight for name, (total, weight) in self.metrics.items()}


def _averaged(tensor: Tensor) -> bool:
    """Return whether a buffer is a running statistic, which can be averaged; otherwise it is a counter or a flag."""
    return tensor.is_floating_point() or tensor.is_complex()


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        p.grad = None
