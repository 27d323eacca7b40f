"""Rules for learners: what ``meta_gradient`` leaves in ``.grad``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kshot.testing.learner_rule import learner_rule
from kshot.testing.rule import broken
from kshot.testing.subjects import (
    Case,
    gradient,
    gradient_of,
    precise,
    restore,
    state_of,
)


@learner_rule()
def gradient_accumulates(case: Case) -> None:
    """``meta_gradient`` adds to what is in ``.grad``, leaves the parameters alone and returns finite scalars."""
    learner = case.warmed()
    own = gradient_of(learner, case.episode(split=case.training))
    state = state_of(learner)
    for p in learner.parameters():
        p.grad = torch.full_like(p, 2.0) if p.requires_grad else None
    metrics = gradient(learner, case.episode(split=case.training))
    stepped = [n for n, p in learner.named_parameters() if not torch.equal(p, state[n])]
    if stepped:
        broken(f"meta_gradient changed the parameters {', '.join(stepped[:5])}; the engine's optimizer steps them")
    for name, p in learner.named_parameters():
        if not p.requires_grad:
            continue
        added = own.get(name, torch.zeros_like(p))
        far = math.inf if p.grad is None else float((p.grad - 2.0 - added).abs().max())
        if far > 1e-3 * (2.0 + float(added.abs().max())):
            broken(
                f".grad of {name} was 2 everywhere before meta_gradient; it is off by {far:.2g} from 2 + the gradient "
                "afterwards: add to .grad, don't overwrite or clear it"
            )
    for name, value in metrics.items():
        if not (isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)):
            broken(f"metric {name!r} is {_kind_of(value)}, expected a scalar")
        if not math.isfinite(float(value)):
            broken(f"metric {name!r} is {float(value)}, expected a finite number")
        if isinstance(value, Tensor) and value.requires_grad:
            broken(f"metric {name!r} holds on to its graph; return {name}.detach()")


def _kind_of(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _inexact(case: Case) -> str | None:
    return None if case.needs.exact_gradient else "it does not claim that its gradient is that of the loss"


@learner_rule(_inexact)
def finite_differences(case: Case) -> None:
    """Where ``needs.exact_gradient``: ``.grad`` is the derivative of ``metrics["loss"]``. Along eight random directions
    most central differences agree with it; in float64 where the learner can, with fixed randomness and with buffers
    put back between evaluations. Kinks (ReLU, max pooling) may spoil a few.
    """
    learner, cast, dtype = precise(case)
    exact = dtype == torch.float64
    state = state_of(learner)
    parameters = [(n, p) for n, p in learner.named_parameters() if p.requires_grad]

    def loss() -> float:
        metrics = gradient(learner, cast(case.episode(split=case.training)))
        if "loss" not in metrics:
            broken("it claims the exact gradient, but metrics have no 'loss'")
        return float(metrics["loss"])

    own = gradient_of(learner, cast(case.episode(split=case.training)))
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
        values = []
        for sign in (1, -1):
            restore(learner, {**state, **{n: state[n] + sign * eps * d for n, d in along.items()}})
            values.append(loss())
        restore(learner, state)
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
            f"along {directions - good} of {directions} directions .grad is not the slope of metrics['loss']: {shown}"
        )
