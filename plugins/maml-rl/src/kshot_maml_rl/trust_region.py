"""The outer step of the paper's experiments: trust region policy optimization (Schulman et al. 2015, 1502.05477,
appendix C), as functions of a flat vector of P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kshot.inner import State

Product = Callable[[Tensor], Tensor]
Task = Callable[..., Any]

DAMPING = 1e-2
"""Added to the divergence's Hessian: without it, conjugate gradients on differences go astray where it is flat."""


def conjugate_gradient(product: Product, target: Tensor, iterations: int = 10, enough: float = 1e-10) -> Tensor:
    """x such that ``product(x)``, a positive definite matrix times x, is nearly ``target`` [P]."""
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = residual @ residual
    for _ in range(iterations):
        if float(squared) < enough:
            break
        moved = product(direction)
        length = squared / (direction @ moved)
        x = x + length * direction
        residual = residual - length * moved
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return x


def differences(slope: Callable[[Tensor], Tensor], size: float, damping: float) -> Product:
    """A Hessian times a vector v, by central differences of the ``slope`` at the offsets +- ``size`` v / |v|, as in the
    paper's code; ``damping`` v is added."""

    def product(v: Tensor) -> Tensor:
        offset = size / v.norm().clamp_min(1e-30)
        found: Tensor = (slope(offset * v) - slope(-offset * v)) / (2 * offset) + damping * v
        return found

    return product


def step(
    gradient: Tensor,
    product: Product,
    judge: Callable[[Tensor], tuple[float, float]],
    *,
    radius: float,
    backtracks: int = 10,
    shrink: float = 0.5,
) -> Tensor:
    """The step [P] along the natural gradient that is as long as the trust region allows, and does improve.

    Args:
        gradient: of the gain, which is to rise.
        product: the mean divergence's Hessian times a vector.
        judge: of a step: how much the gain rises, and the mean divergence.
        radius: of the trust region: the greatest mean divergence, delta.
        backtracks, shrink: how often a step that fails is made shorter, and by how much; then it is 0.
    """
    direction = conjugate_gradient(product, gradient)
    curvature = direction @ product(direction)
    if not float(curvature) > 0:
        return torch.zeros_like(gradient)
    whole = (2 * radius / curvature).sqrt() * direction
    for k in range(backtracks):
        tried = shrink**k * whole
        rise, divergence = judge(tried)
        if rise > 0 and divergence <= radius:
            return tried
    return torch.zeros_like(gradient)


def outer_step(learner: Any, batches: Any, judged: Any, played: State, *, radius: float) -> Tensor:
    """A step of ``learner`` (a ``MamlRL``) for the tasks of a meta-batch; returns its outer loss at the start.

    The divergence is that of the adapted policies from those that played ``judged``, ``played`` [B, *]. Minus the step
    is added to ``.grad``, so that plain gradient descent at a rate of 1 takes it.
    """
    parameters = dict(learner.net.named_parameters())
    start = torch.cat([p.detach().flatten() for p in parameters.values()])

    def at(values: Tensor) -> dict[str, Tensor]:
        parts = torch.split(values, [p.numel() for p in parameters.values()])
        return {n: v.view_as(p) for (n, p), v in zip(parameters.items(), parts, strict=True)}

    def loss(theta: State, batches: Any, judged: Any, played: State) -> tuple[Any, State]:
        return learner.task(theta, batches, judged)  # type: ignore[no-any-return]

    def departure(theta: State, batches: Any, judged: Any, played: State) -> tuple[Any, State]:
        after, _ = learner.adapted(theta, batches)
        old, new = ({**s.parameters, **s.buffers} for s in (played, after))
        return {"loss": (learner.family.divergence(old, new, judged.observations) * judged.running).mean()}, after

    def slope(function: Task, offset: Tensor) -> tuple[Tensor, Tensor]:
        leaves = {n: v.clone().requires_grad_() for n, v in at(start + offset).items()}
        found, _ = learner.lift.mean_gradient(function, learner.theta(leaves), batches, judged, played)
        gradients = (torch.zeros_like(v) if v.grad is None else v.grad for v in leaves.values())
        return torch.cat([g.flatten() for g in gradients]), found["loss"].mean()

    @torch.no_grad()
    def judge(offset: Tensor) -> tuple[float, float]:
        theta = learner.theta(at(start + offset))
        found = (learner.lift.map(f, theta, batches, judged, played)[0]["loss"] for f in (loss, departure))
        after, divergence = (float(values.mean()) for values in found)
        return float(before) - after, divergence

    gradient, before = slope(loss, torch.zeros_like(start))
    size = 1e-2 if start.dtype == torch.float32 else 1e-4
    product = differences(lambda offset: slope(departure, offset)[0], size, DAMPING)
    taken = step(-gradient, product, judge, radius=radius)
    for p, change in zip(parameters.values(), at(taken).values(), strict=True):
        p.grad = -change if p.grad is None else p.grad - change
    return before
