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
"""Added to the Hessian of the divergence; without it, conjugate gradients on differences diverge where it is flat."""


def conjugate_gradient(product: Product, target: Tensor, iterations: int = 10, enough: float = 1e-10) -> Tensor:
    """Solve ``product(x)`` = ``target`` [P] approximately, where ``product`` multiplies by a positive definite matrix.

    Args:
        iterations: the greatest number of iterations.
        enough: the squared residual at which to stop.

    Example:
        >>> conjugate_gradient(lambda x: 2 * x, torch.tensor([2.0, 4.0]))
        tensor([1., 2.])
    """
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = residual @ residual
    for _ in range(iterations):
        if float(squared) < enough:
            break
        # The minimum of the quadratic along the direction.
        moved = product(direction)
        length = squared / (direction @ moved)
        x = x + length * direction
        residual = residual - length * moved
        # The next direction is conjugate to all before.
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return x


def differences(slope: Callable[[Tensor], Tensor], size: float, damping: float) -> Product:
    """Return the product of a Hessian with a vector v, by central differences of a gradient.

    Args:
        slope: the gradient at an offset [P].
        size: the length of the offsets +- ``size`` v / |v|, as in the paper's code.
        damping: ``damping`` v is added to the product.

    Example:
        >>> hessian = differences(lambda offset: 3 * offset, size=0.5, damping=0.0)
        >>> hessian(torch.tensor([1.0, 0.0]))
        tensor([3., 0.])
    """

    def product(v: Tensor) -> Tensor:
        offset = size / v.norm().clamp_min(1e-30)
        change: Tensor = (slope(offset * v) - slope(-offset * v)) / (2 * offset) + damping * v
        return change

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
    """Compute the step [P] along the natural gradient that is as long as the trust region allows and improves.

    Args:
        gradient: the gradient of the gain, which is to increase [P].
        product: multiplies by the Hessian of the mean divergence.
        judge: returns, for a step, the increase of the gain and the mean divergence.
        radius: delta, the greatest mean divergence.
        backtracks, shrink: a step that fails is multiplied by ``shrink`` at most ``backtracks`` - 1 times; then the
            result is 0.

    Example:
        A gain of x, with a divergence of x^2 / 2 up to 0.5:

        >>> judge = lambda x: (float(x), float(x) ** 2 / 2 - 1e-6)
        >>> step(torch.tensor([1.0]), lambda v: v, judge, radius=0.5)
        tensor([1.])
    """
    # The direction s = H^-1 g.
    direction = conjugate_gradient(product, gradient)
    curvature = direction @ product(direction)
    if not float(curvature) > 0:
        return torch.zeros_like(gradient)
    # The longest step: s^T H s / 2 = radius.
    longest = (2 * radius / curvature).sqrt() * direction
    # The line search: the quadratic is an approximation, so gain and divergence are computed.
    for k in range(backtracks):
        candidate = shrink**k * longest
        rise, divergence = judge(candidate)
        if rise > 0 and divergence <= radius:
            return candidate
    return torch.zeros_like(gradient)


def outer_step(learner: Any, batches: Any, judged: Any, played: State, *, radius: float) -> Tensor:
    """Compute an outer step within the trust region; return the outer loss before it.

    Minus the step is added to ``.grad``, so that plain gradient descent at a rate of 1 takes it.

    Args:
        learner: a ``MamlRL``.
        batches: the data of each update, each [B, ...].
        judged: the data of the adapted policies [B, ...].
        played: the policies that played ``judged`` [B, *], from which the divergence is measured.
        radius: the greatest mean divergence.
    """
    parameters = dict(learner.net.named_parameters())
    start = torch.cat([p.detach().flatten() for p in parameters.values()])

    def at(values: Tensor) -> dict[str, Tensor]:
        """Cut a flat vector [P] into parameters."""
        pieces = torch.split(values, [p.numel() for p in parameters.values()])
        return {n: v.view_as(p) for (n, p), v in zip(parameters.items(), pieces, strict=True)}

    def loss(theta: State, batches: Any, judged: Any, played: State) -> tuple[Any, State]:
        """Compute the outer loss of one task."""
        return learner.task(theta, batches, judged)  # type: ignore[no-any-return]

    def departure(theta: State, batches: Any, judged: Any, played: State) -> tuple[Any, State]:
        """Compute the mean divergence of one task's adapted policy from the one that played."""
        after, _ = learner.adapted(theta, batches)
        old, new = ({**s.parameters, **s.buffers} for s in (played, after))
        return {"loss": (learner.family.divergence(old, new, judged.observations) * judged.running).mean()}, after

    def slope(function: Task, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradient [P] of the mean over tasks at an offset from the start, and the mean."""
        leaves = {n: v.clone().requires_grad_() for n, v in at(start + offset).items()}
        metrics, _ = learner.lift.mean_gradient(function, learner.theta(leaves), batches, judged, played)
        gradients = (torch.zeros_like(v) if v.grad is None else v.grad for v in leaves.values())
        return torch.cat([g.flatten() for g in gradients]), metrics["loss"].mean()

    @torch.no_grad()
    def judge(offset: Tensor) -> tuple[float, float]:
        """Compute the decrease of the outer loss by an offset, and the mean divergence there."""
        theta = learner.theta(at(start + offset))
        means = (learner.lift.map(f, theta, batches, judged, played)[0]["loss"] for f in (loss, departure))
        after, divergence = (float(values.mean()) for values in means)
        return float(before) - after, divergence

    # The gradient of the outer loss, the Hessian of the divergence by differences of gradients, and the step.
    gradient, before = slope(loss, torch.zeros_like(start))
    size = 1e-2 if start.dtype == torch.float32 else 1e-4
    product = differences(lambda offset: slope(departure, offset)[0], size, DAMPING)
    taken = step(-gradient, product, judge, radius=radius)
    for p, change in zip(parameters.values(), at(taken).values(), strict=True):
        p.grad = -change if p.grad is None else p.grad - change
    return before
