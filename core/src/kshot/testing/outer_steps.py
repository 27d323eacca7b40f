"""Run the outer steps of a learner as the engine does, and save and restore its state between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kshot.episode import Episode
from kshot.randomness import seeded
from kshot.testing.rulebook.rule import broken

OUTER_STEPS = 3
"""How many outer steps per meta-batch the kit looks at, if ``meta_gradient`` is a generator."""


def outer_steps(learner: Any, episode: Episode, seed: int = 0) -> Iterator[Mapping[str, Any]]:
    """Call ``meta_gradient`` as the engine does, and yield the metrics of each of at most ``OUTER_STEPS`` outer steps.

    Gradients are in ``.grad``. The caller clears them and updates the parameters between two steps.
    """
    answer: Any = None
    for step in range(OUTER_STEPS):
        learner.train()
        try:
            with seeded("conformance", seed, step):
                if step == 0:
                    answer = learner.meta_gradient(episode)
                metrics = next(answer, None) if isinstance(answer, Iterator) else answer
        finally:
            learner.eval()
        if metrics is None and step:
            return
        if not isinstance(metrics, Mapping):
            broken(
                f"meta_gradient: got {type(metrics).__name__}, expected a mapping of scalars, or a generator of such "
                "mappings"
            )
        yield metrics
        if not isinstance(answer, Iterator):
            return


def gradient(learner: Any, episode: Episode, seed: int = 0) -> Mapping[str, Any]:
    """Run the first outer step on a meta-batch, add its gradient to ``.grad``, and return its metrics."""
    return next(outer_steps(learner, episode, seed))


def clear(learner: Any) -> None:
    """Remove all gradients, as the engine does before each outer step."""
    for p in learner.parameters():
        p.grad = None


def take_step(learner: Any, gradients: Mapping[str, Tensor] | None = None) -> None:
    """Move each parameter by a twentieth of its norm against ``gradients``, or against ``.grad``, then clear ``.grad``.

    Args:
        learner: the module to update in place.
        gradients: by name of the parameter; None takes those in ``.grad``.
    """
    if gradients is not None:
        for n, p in learner.named_parameters():
            p.grad = gradients[n].clone() if n in gradients else None
    with torch.no_grad():
        for p in learner.parameters():
            if p.requires_grad and p.grad is not None:
                p -= 0.05 * p.norm().clamp_min(0.1) * p.grad / p.grad.norm().clamp_min(1e-12)
    clear(learner)


def grads(learner: Any) -> dict[str, Tensor]:
    """Copy the gradients that are not None, by name of the parameter."""
    return {n: p.grad.detach().clone() for n, p in learner.named_parameters() if p.grad is not None}


def gradients_of(learner: Any, *chunks: Episode, seed: int = 0) -> list[dict[str, Tensor]]:
    """Compute the mean gradient over ``chunks`` at each outer step; the learner's state is restored afterwards.

    The generators of all chunks advance together, as in the engine: within one outer step, each chunk sees the same
    parameters and buffers; after it, the parameters are updated with the mean gradient.
    """
    before = state_of(learner)
    running = [outer_steps(learner, chunk, seed) for chunk in chunks]
    means: list[dict[str, Tensor]] = []
    while True:
        # Run one outer step on each chunk, always from the same state.
        start = state_of(learner)
        of_chunks: list[dict[str, Tensor]] = []
        for steps in running:
            restore(learner, start)
            clear(learner)
            if next(steps, None) is not None:
                of_chunks.append(grads(learner))
        # Either all chunks have another outer step, or none has.
        if len(of_chunks) < len(running):
            if of_chunks:
                broken(
                    f"meta_gradient: got more than {len(means)} outer steps on {len(of_chunks)} of {len(running)} "
                    "tasks, expected the same number on each, so that chunks of a meta-batch can advance together"
                )
            restore(learner, before)
            clear(learner)
            return means
        # Average over the chunks and update the parameters.
        names = {n for each in of_chunks for n in each}
        mean = {
            n: sum((each[n] for each in of_chunks if n in each), torch.zeros(())) / len(of_chunks)
            for n in sorted(names)
        }
        means.append(mean)
        restore(learner, start)
        take_step(learner, mean)


def after(learner: Any, episode: Episode, taken: Sequence[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Any]]:
    """Run the first outer steps, updating with the gradients ``taken``, and return the generator of the next ones.

    The learner is then in the same state as in ``gradients_of`` at that outer step.
    """
    steps = outer_steps(learner, episode)
    for gradients in taken:
        start = state_of(learner)
        next(steps)
        restore(learner, start)
        take_step(learner, gradients)
    return steps


def state_of(learner: Any) -> dict[str, Tensor]:
    """Copy all parameters and all buffers, by name."""
    both = [*learner.named_parameters(), *learner.named_buffers()]
    return {name: t.detach().clone() for name, t in both}


def restore(learner: Any, state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of ``state`` back into the parameters and buffers of these names, in place."""
    with torch.no_grad():
        for name, t in [*learner.named_parameters(), *learner.named_buffers()]:
            if name in state:
                t.copy_(state[name])
