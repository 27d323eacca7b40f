"""Rules for learners: what ``meta_gradient`` leaves in ``.grad``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from kshot.randomness import seeded
from kshot.testing.cases import Case, floats_of, precise
from kshot.testing.compare import changed, clones, difference, gap, named_tensors, tolerance, watched
from kshot.testing.outer_steps import after, gradients_of, restore, state_of
from kshot.testing.rulebook.learner_rule import learner_rule
from kshot.testing.rulebook.rule import broken


@learner_rule()
def gradients_do_not_change_predictions(case: Case) -> None:
    """Predictions are the same with gradients enabled and disabled, up to rounding. A faster path for evaluation, such
    as one that folds batch norm into convolutions, computes the same function. The learner is in evaluation mode.
    """
    learner, cast, dtype = precise(case)
    without = case.predict(learner, cast(case.episode()))
    episode = cast(case.episode())
    with torch.enable_grad():
        x = case.probe(episode)
        x = x.to(floats_of(learner)) if x.is_floating_point() else x
        support = episode.for_adapting("independent")
        if learner.needs.queries == "at_adapt":
            support = attrs.evolve(support, query_x=x)
        within = learner.adapt(support)(x)
    if (far := gap(without, within)) > tolerance(dtype):
        broken(
            f"got predictions that differ by {far:.2g} of the greatest one with gradients enabled, expected those "
            "without; compute the same function in both cases"
        )


def at(step: int, steps: int) -> str:
    """Name an outer step for a message; return an empty string if there is only one."""
    return f"at outer step {step + 1} on a meta-batch, " if steps > 1 else ""


@learner_rule()
def gradient_accumulates(case: Case) -> None:
    """``meta_gradient`` adds to ``.grad``, does not change the parameters, and returns finite scalars. If it is a
    generator, this holds at each of its outer steps.
    """
    learner = case.warmed()
    state = state_of(learner)
    own = gradients_of(learner, case.episode(split=case.training))
    for step, added in enumerate(own):
        restore(learner, state)
        steps = after(learner, case.episode(split=case.training), own[:step])
        before = state_of(learner)
        for p in learner.parameters():
            p.grad = torch.full_like(p, 2.0) if p.requires_grad else None
        metrics = next(steps)
        _check_added(learner, before, added, at(step, len(own)))
        _check_scalars(metrics, at(step, len(own)))


@learner_rule()
def training_keeps_what_is_set(case: Case) -> None:
    """``meta_gradient`` leaves what the user and the engine have set: which parameters are trained
    (``requires_grad``), the mode of each submodule, their hooks, and the tensors of the episode. If it is a generator,
    this holds when its first outer step has ended.
    """
    learner = case.build()
    episode = case.episode(split=case.training)
    given = clones(named_tensors(attrs.evolve(episode, origin=None)))
    learner.train()
    before = watched(learner)
    with seeded("training-keeps", 0):
        answer = learner.meta_gradient(episode)
        if isinstance(answer, Iterator):
            next(answer)
    kept = ("requires_grad", "mode", "number of hooks")
    if names := [name for name in changed(before, watched(learner)) if name.startswith(kept)]:
        broken(
            f"got changes of {', '.join(names[:5])}, expected meta_gradient to leave them as they were; restore them "
            "at its end"
        )
    if where := difference(given, named_tensors(attrs.evolve(episode, origin=None)), 0):
        broken(
            f"got changes in the episode that meta_gradient was given, expected none: {where}; replace operations in "
            "place, such as x.mul_(2), by x * 2"
        )


def _check_added(learner: Any, before: Mapping[str, Tensor], own: Mapping[str, Tensor], when: str) -> None:
    stepped = [n for n, p in learner.named_parameters() if not torch.equal(p, before[n])]
    if stepped:
        broken(
            f"{when}got changed parameters {', '.join(stepped[:5])}, expected meta_gradient to leave them unchanged; "
            "the engine's optimizer updates them"
        )
    for name, p in learner.named_parameters():
        if not p.requires_grad:
            continue
        added = own.get(name, torch.zeros_like(p))
        far = math.inf if p.grad is None else float((p.grad - 2.0 - added).abs().max())
        if far > 1e-3 * (2.0 + float(added.abs().max())):
            broken(
                f"{when}got a .grad of {name} that is off by {far:.2g}, expected 2 + the gradient, because it was 2 "
                "everywhere before meta_gradient; add to .grad, do not overwrite or clear it"
            )


def _check_scalars(metrics: Mapping[str, Any], when: str) -> None:
    for name, value in metrics.items():
        if not (isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)):
            broken(f"{when}metric {name!r}: got {_kind_of(value)}, expected a scalar")
        if not math.isfinite(float(value)):
            broken(f"{when}metric {name!r}: got {float(value)}, expected a finite number")
        if isinstance(value, Tensor) and value.requires_grad:
            broken(f"{when}metric {name!r}: got a tensor with a graph, expected one without; return {name}.detach()")


def _kind_of(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _inexact(case: Case) -> str | None:
    return None if case.needs.exact_gradient else "needs.exact_gradient is False"


@learner_rule(_inexact)
def finite_differences(case: Case) -> None:
    """If ``needs.exact_gradient``, ``.grad`` is the derivative of ``metrics["loss"]``: central differences along at
    least six of eight random directions agree with it (kinks, as of ReLU and max pooling, may spoil a few). They are
    computed in float64 if the learner can, with the same random numbers and with buffers restored between evaluations.
    If ``meta_gradient`` is a generator, this holds at each outer step, for the parameters of that step; what earlier
    steps led to counts as a constant.
    """
    learner, cast, dtype = precise(case)
    own = gradients_of(learner, cast(case.episode(split=case.training)))
    for step in range(len(own)):
        _check_slopes(case, learner, cast, own[: step + 1], dtype == torch.float64, at(step, len(own)))


def _check_slopes(case: Case, learner: Any, cast: Any, taken: list[dict[str, Tensor]], exact: bool, when: str) -> None:
    """Compare the last of the gradients ``taken`` with the slopes of its outer step's loss."""
    start, own = state_of(learner), taken[-1]
    parameters = [(n, p) for n, p in learner.named_parameters() if p.requires_grad]

    def loss(change: float, along: Mapping[str, Tensor]) -> float:
        """Compute the loss of this outer step at parameters moved by ``change`` along a direction."""
        steps = after(learner, cast(case.episode(split=case.training)), taken[:-1])
        now = state_of(learner)
        restore(learner, {**now, **{n: now[n] + change * d for n, d in along.items()}})
        metrics = next(steps)
        restore(learner, start)
        if "loss" not in metrics:
            broken(f"got metrics {sorted(metrics)}, expected one called 'loss', because needs.exact_gradient is True")
        return float(metrics["loss"])

    total = math.sqrt(sum(float(g.double().square().sum()) for g in own.values()))
    generator = torch.Generator().manual_seed(11)
    eps, agree, shown = (1e-6, 1e-4, "") if exact else (3e-3, 0.1, "")
    good, directions = 0, 8
    for _ in range(directions):
        # Draw a random direction, scaled to the norm of each parameter.
        along = {}
        for n, p in parameters:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            scale = p.detach().norm().clamp_min(0.1) / noise.norm().clamp_min(1e-12)
            along[n] = noise * scale
            if not exact and n in own and total > 0:  # float32 is too coarse except along the gradient
                along[n] = along[n] / math.sqrt(len(parameters)) + own[n] / total
        # Compare the central difference with the directional derivative <gradient, direction>.
        values = [loss(sign * eps, along) for sign in (1, -1)]
        slope = (values[0] - values[1]) / (2 * eps)
        claimed = sum(float((own[n].double() * along[n].double()).sum()) for n in own if n in along)
        size = sum(float((own[n].double() * along[n].double()).square().sum()) for n in own if n in along) ** 0.5
        noise_floor = 1e-9 if exact else 1e-6 * (1 + abs(values[0])) / eps
        if abs(slope - claimed) <= agree * max(abs(slope), abs(claimed), size) + noise_floor:
            good += 1
        else:
            shown = f"got {claimed:.6g} by .grad, expected the slope {slope:.6g}"
    if good < 6:
        broken(
            f"{when}got a .grad that is not the derivative of metrics['loss'] along {directions - good} of "
            f"{directions} directions, expected it to be ({shown}); correct it, or set needs.exact_gradient = False"
        )
