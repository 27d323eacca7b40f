"""The rule for learners whose meta-gradient is a sum over tasks, see ``kshot.protocols.PerTask``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kshot.episode import Episode
from kshot.protocols import PerTask
from kshot.randomness import seeded
from kshot.testing.cases import Case, precise
from kshot.testing.compare import clones, difference, gap, tolerance
from kshot.testing.outer_steps import clear, gradient, grads, restore, state_of
from kshot.testing.rulebook.learner_rule import learner_rule
from kshot.testing.rulebook.rule import broken


def _without_task_losses(case: Case) -> str | None:
    return None if isinstance(case.build(), PerTask) else "it has no task_losses"


@learner_rule(_without_task_losses)
def task_losses_part_the_gradient(case: Case) -> None:
    """If a learner has ``task_losses`` (``PerTask``), its losses [B] and displacements {name: [B, *]} are finite, and
    those of a task do not depend on the other tasks of the meta-batch, unless ``needs.couples_tasks``. The gradient of
    the mean loss is what ``meta_gradient`` adds at its first outer step, and buffers change in the same way.
    """
    learner, cast, dtype = precise(case)
    state = state_of(learner)
    episode = cast(case.episode(split=case.training))
    clear(learner)
    gradient(learner, episode)
    expected, moved = grads(learner), state_of(learner)
    restore(learner, state)
    losses, displacements = _task_losses(learner, episode)
    _check_shapes(losses, displacements, episode.size)
    clear(learner)
    losses.mean().backward()
    by_losses = grads(learner)
    largest = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    for name, p in learner.named_parameters():
        zero = torch.zeros_like(p)
        far = float((by_losses.get(name, zero) - expected.get(name, zero)).abs().max()) / max(largest, 1e-30)
        if not far <= tolerance(dtype):
            broken(
                f"task_losses: got a gradient of the mean loss that differs in {name} by {far:.2g} of the greatest "
                "gradient, expected the gradient that meta_gradient adds"
            )
    if where := difference(moved, state_of(learner), tolerance(dtype)):
        broken(f"task_losses: got other buffers than after meta_gradient, expected the same: {where}")
    restore(learner, state)
    clear(learner)
    if not learner.needs.couples_tasks:
        _check_alone(case, learner, cast, losses.detach(), clones(displacements), dtype)


def _task_losses(learner: Any, episode: Episode, seed: int = 0) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Call ``task_losses`` in training mode, with the random numbers of a first outer step."""
    learner.train()
    try:
        with seeded("conformance", seed, 0):
            losses, displacements = learner.task_losses(episode)
    finally:
        learner.eval()
    return losses, displacements


def _check_shapes(losses: Any, displacements: Any, B: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (B,) or not losses.requires_grad:
        shape = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        broken(f"task_losses: got losses of {shape} for {B} tasks, expected shape ({B},) with a graph")
    if not isinstance(displacements, Mapping) or not displacements:
        broken(f"task_losses: got displacements {type(displacements).__name__}, expected one or more tensors by name")
    shapes = {n: tuple(d.shape) for n, d in displacements.items() if d.shape[:1] != (B,)}
    if shapes:
        broken(f"task_losses: got displacements of shapes {shapes} for {B} tasks, expected B = {B} as first axis")
    for name, values in {"losses": losses, **displacements}.items():
        if not bool(torch.isfinite(values.detach().sum())):
            broken(f"task_losses: got NaN or infinite values in {name}, expected finite ones")


def _check_alone(
    case: Case, learner: Any, cast: Any, losses: Tensor, displacements: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Compare each task's loss and displacements with those of the same task alone in a meta-batch."""
    state = state_of(learner)
    other, _ = _task_losses(learner, cast(case.episode(split=case.training)), seed=1)
    restore(learner, state)
    if gap(losses, other) > 0:
        return  # it draws from torch's generator (dropout), whose numbers differ between one task and three
    for b in range(len(losses)):
        own, own_displacements = _task_losses(learner, cast(case.single(b, case.training)))
        restore(learner, state)
        where = difference({"its loss": losses[b : b + 1]}, {"its loss": own.detach()}, tolerance(dtype))
        where = where or _differs(displacements, b, own_displacements, tolerance(dtype))
        if where:
            broken(f"task_losses: got other values for task {b} among {len(losses)} tasks than alone: {where}")


def _differs(among: Mapping[str, Tensor], b: int, alone: Mapping[str, Tensor], allowed: float) -> str | None:
    """Say where the displacements of task b differ, measured by the greatest number of all of them.

    Some tensors may be rounding errors only, such as the displacement of a bias before normalisation.
    """
    if among.keys() != alone.keys():
        return f"{sorted(among.keys() ^ alone.keys())} is in one of them only"
    largest = max((float(d.detach().abs().max()) for d in alone.values() if d.numel()), default=0.0)
    for name, d in alone.items():
        far = float((among[name][b] - d[0]).detach().abs().max()) / max(largest, 1e-30) if d.numel() else 0.0
        if not far <= allowed:
            return f"{name} differs by {far:.2g} of the greatest displacement (allowed: {allowed:.2g})"
    return None
