"""The rule for learners whose meta-gradient parts by task, see ``kshot.protocols.PerTask``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kshot.episode import Episode
from kshot.protocols import PerTask
from kshot.randomness import seeded
from kshot.testing.compare import clones, difference, gap, tolerance
from kshot.testing.rulebook.learner_rule import learner_rule
from kshot.testing.rulebook.rule import broken
from kshot.testing.subjects import Case, clear, gradient, grads, precise, restore, state_of


def _whole(case: Case) -> str | None:
    return None if isinstance(case.build(), PerTask) else "it has no task_losses"


@learner_rule(_whole)
def task_losses_part_the_gradient(case: Case) -> None:
    """Where a learner has ``task_losses`` (``PerTask``): losses [B] and displacements {name: [B, *]} are finite, and
    each task's own, whatever tasks are beside it, unless tasks are coupled; the gradient of the losses' mean is what
    ``meta_gradient`` adds, at its first outer step, and running statistics move alike.
    """
    learner, cast, dtype = precise(case)
    state = state_of(learner)
    episode = cast(case.episode(split=case.training))
    clear(learner)
    gradient(learner, episode)
    expected, moved = grads(learner), state_of(learner)
    restore(learner, state)
    losses, away = _parts(learner, episode)
    _check_shapes(losses, away, episode.size)
    clear(learner)
    losses.mean().backward()
    found = grads(learner)
    largest = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    for name, p in learner.named_parameters():
        zero = torch.zeros_like(p)
        apart = float((found.get(name, zero) - expected.get(name, zero)).abs().max()) / max(largest, 1e-30)
        if not apart <= tolerance(dtype):
            broken(
                f"the gradient of the mean of its losses differs in {name} from what meta_gradient adds, by "
                f"{apart:.2g} of the greatest gradient"
            )
    if where := difference(moved, state_of(learner), tolerance(dtype)):
        broken(f"after task_losses its buffers are not as after meta_gradient: {where}")
    restore(learner, state)
    clear(learner)
    if not learner.needs.couples_tasks:
        _check_alone(case, learner, cast, losses.detach(), clones(away), dtype)


def _parts(learner: Any, episode: Episode, seed: int = 0) -> tuple[Tensor, Mapping[str, Tensor]]:
    """``task_losses`` in the mode and with the chance of a first outer step."""
    learner.train()
    try:
        with seeded("conformance", seed, 0):
            losses, away = learner.task_losses(episode)
    finally:
        learner.eval()
    return losses, away


def _check_shapes(losses: Any, away: Any, B: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (B,) or not losses.requires_grad:
        shape = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        broken(f"the losses of {B} tasks are of {shape}, expected ({B},), with a graph")
    if not isinstance(away, Mapping) or not away:
        broken(f"the displacements are {type(away).__name__}, expected one or more tensors by name")
    shapes = {n: tuple(d.shape) for n, d in away.items() if d.shape[:1] != (B,)}
    if shapes:
        broken(f"displacements of {B} tasks have shapes {shapes}, expected each to begin with {B}")
    for name, values in {"losses": losses, **away}.items():
        if not bool(torch.isfinite(values.detach().sum())):
            broken(f"{name} is not finite")


def _check_alone(
    case: Case, learner: Any, cast: Any, losses: Tensor, away: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    state = state_of(learner)
    other, _ = _parts(learner, cast(case.episode(split=case.training)), seed=1)
    restore(learner, state)
    if gap(losses, other) > 0:
        return  # it draws from torch's generator (dropout), whose numbers differ between one task and three
    for b in range(len(losses)):
        own, own_away = _parts(learner, cast(case.single(b, case.training)))
        restore(learner, state)
        together = {"its loss": losses[b : b + 1], **{n: d[b : b + 1] for n, d in away.items()}}
        if where := difference(together, clones({"its loss": own, **own_away}), tolerance(dtype)):
            broken(f"task {b} of {len(losses)} together and the same task alone: {where}")
