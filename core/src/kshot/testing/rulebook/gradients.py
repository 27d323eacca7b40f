"""Rules for learners: what ``meta_gradient`` leaves in ``.grad``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kshot.testing.cases import Case, precise
from kshot.testing.outer_steps import after, gradients_of, restore, state_of
from kshot.testing.rulebook.learner_rule import learner_rule
from kshot.testing.rulebook.rule import broken


def at(step: int, steps: int) -> str:
    """Which of several outer steps on one meta-batch is meant."""
    return f"at outer step {step + 1} on a meta-batch, " if steps > 1 else ""


@learner_rule()
def gradient_accumulates(case: Case) -> None:
    """``meta_gradient`` adds to what is in ``.grad``, leaves the parameters alone and returns finite scalars: at each
    of its outer steps, where it is a generator.
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


def _check_added(learner: Any, before: Mapping[str, Tensor], own: Mapping[str, Tensor], when: str) -> None:
    stepped = [n for n, p in learner.named_parameters() if not torch.equal(p, before[n])]
    if stepped:
        broken(
            f"{when}meta_gradient changed the parameters {', '.join(stepped[:5])}; the engine's optimizer steps them"
        )
    for name, p in learner.named_parameters():
        if not p.requires_grad:
            continue
        added = own.get(name, torch.zeros_like(p))
        far = math.inf if p.grad is None else float((p.grad - 2.0 - added).abs().max())
        if far > 1e-3 * (2.0 + float(added.abs().max())):
            broken(
                f"{when}.grad of {name} was 2 everywhere before meta_gradient; it is off by {far:.2g} from 2 + the "
                "gradient afterwards: add to .grad, don't overwrite or clear it"
            )


def _check_scalars(metrics: Mapping[str, Any], when: str) -> None:
    for name, value in metrics.items():
        if not (isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)):
            broken(f"{when}metric {name!r} is {_kind_of(value)}, expected a scalar")
        if not math.isfinite(float(value)):
            broken(f"{when}metric {name!r} is {float(value)}, expected a finite number")
        if isinstance(value, Tensor) and value.requires_grad:
            broken(f"{when}metric {name!r} holds on to its graph; return {name}.detach()")


def _kind_of(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _inexact(case: Case) -> str | None:
    return None if case.needs.exact_gradient else "it does not claim that its gradient is that of the loss"


@learner_rule(_inexact)
def finite_differences(case: Case) -> None:
    """Where ``needs.exact_gradient``: ``.grad`` is the derivative of ``metrics["loss"]``. Along eight random directions
    most central differences agree with it; in float64 where the learner can, with fixed randomness and with buffers
    put back between evaluations. Kinks (ReLU, max pooling) may spoil a few. Where ``meta_gradient`` is a generator it
    holds at each outer step, by the parameters as they are then: what earlier steps led to is a constant.
    """
    learner, cast, dtype = precise(case)
    own = gradients_of(learner, cast(case.episode(split=case.training)))
    for step in range(len(own)):
        _check_slopes(case, learner, cast, own[: step + 1], dtype == torch.float64, at(step, len(own)))


def _check_slopes(case: Case, learner: Any, cast: Any, taken: list[dict[str, Tensor]], exact: bool, when: str) -> None:
    """The last of the gradients ``taken`` is that of its outer step's loss."""
    start, own = state_of(learner), taken[-1]
    parameters = [(n, p) for n, p in learner.named_parameters() if p.requires_grad]

    def loss(change: float, along: Mapping[str, Tensor]) -> float:
        steps = after(learner, cast(case.episode(split=case.training)), taken[:-1])
        now = state_of(learner)
        restore(learner, {**now, **{n: now[n] + change * d for n, d in along.items()}})
        metrics = next(steps)
        restore(learner, start)
        if "loss" not in metrics:
            broken("it claims the exact gradient, but metrics have no 'loss'")
        return float(metrics["loss"])

    total = math.sqrt(sum(float(g.double().square().sum()) for g in own.values()))
    generator = torch.Generator().manual_seed(11)
    eps, agree, shown = (1e-6, 1e-4, "") if exact else (3e-3, 0.1, "")
    good, directions = 0, 8
    for _ in range(directions):
        along = {}
        for n, p in parameters:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            scale = p.detach().norm().clamp_min(0.1) / noise.norm().clamp_min(1e-12)
            along[n] = noise * scale
            if not exact and n in own and total > 0:  # float32 sees a slope only along the gradient
                along[n] = along[n] / math.sqrt(len(parameters)) + own[n] / total
        values = [loss(sign * eps, along) for sign in (1, -1)]
        slope = (values[0] - values[1]) / (2 * eps)
        claimed = sum(float((own[n].double() * along[n].double()).sum()) for n in own if n in along)
        size = sum(float((own[n].double() * along[n].double()).square().sum()) for n in own if n in along) ** 0.5
        noise_floor = 1e-9 if exact else 1e-6 * (1 + abs(values[0])) / eps
        if abs(slope - claimed) <= agree * max(abs(slope), abs(claimed), size) + noise_floor:
            good += 1
        else:
            shown = f"the loss rises by {slope:.6g} a unit, .grad says {claimed:.6g}"
    if good < 6:
        broken(
            f"{when}along {directions - good} of {directions} directions .grad is not the slope of metrics['loss']: "
            f"{shown}"
        )
