"""The outer step of the paper's experiments: trust region policy optimization (Schulman et al. 2015, 1502.05477,
appendix C), as functions of a flat vector of P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kshot import Metrics
from kshot.functional import conjugate_gradient
from kshot.inner import State
from kshot_maml_rl.steps import mean_over_steps

Product = Callable[[Tensor], Tensor]
Task = Callable[..., Any]

DAMPING = 1e-2
"""Added to the diagonal of the Hessian of the divergence. The paper's code adds 1e-5, which was worse in short runs of
navigation with two seeds; see the README."""

SHRINK, BACKTRACKS = 0.8, 15
"""The line search of the paper's code: at most 15 lengths, each 0.8 of the one before."""


def step(
    gradient: Tensor,
    product: Product,
    judge: Callable[[Tensor], tuple[float, float]],
    *,
    radius: float,
    backtracks: int = BACKTRACKS,
    shrink: float = SHRINK,
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


def outer_step(learner: Any, batches: Any, judged: Any, played: State, *, radius: float) -> Metrics:
    """Compute an outer step within the trust region.

    Minus the step is added to ``.grad``, so that plain gradient descent at a rate of 1 takes it.

    Args:
        learner: a ``MamlRL``.
        batches: the data of each update, each [B, ...].
        judged: the data of the adapted policies [B, ...].
        played: the policies that played ``judged`` [B, *], from which the divergence is measured.
        radius: the greatest mean divergence.

    Returns:
        ``loss``, the outer loss before the step; ``step_taken``, 1 or 0; and ``backtracks``, how often the line search
        made the step shorter.
    """
    parameters = dict(learner.net.named_parameters())
    start = torch.cat([p.detach().flatten() for p in parameters.values()])
    trials = 0

    def at(values: Tensor) -> dict[str, Tensor]:
        """Cut a flat vector [P] into parameters."""
        pieces = torch.split(values, [p.numel() for p in parameters.values()])
        return {n: v.view_as(p) for (n, p), v in zip(parameters.items(), pieces, strict=True)}

    def loss(theta: State, batches: Any, judged: Any, played: State) -> tuple[Any, State]:
        """Compute the outer loss of one task."""
        return learner.task(theta, batches, judged)  # type: ignore[no-any-return]

    def departure(theta: State, batches: Any, judged: Any, played: State) -> tuple[Any, State]:
        """Compute the divergence of one task's adapted policy from the one that played, its mean over taken steps."""
        after, _ = learner.adapted(theta, batches)
        old, new = ({**s.parameters, **s.buffers} for s in (played, after))
        divergence = learner.family.divergence(old, new, judged.observations)
        return {"loss": mean_over_steps(divergence, judged.running)}, after

    def gradient_of(function: Task) -> tuple[Tensor, Tensor]:
        """Compute the gradient [P] of the mean over tasks at the start, and the mean."""
        leaves = {n: v.clone().requires_grad_() for n, v in at(start).items()}
        metrics, _ = learner.lift.mean_gradient(function, learner.theta(leaves), batches, judged, played)
        gradients = (torch.zeros_like(v) if v.grad is None else v.grad for v in leaves.values())
        return torch.cat([g.flatten() for g in gradients]), metrics["loss"].mean()

    def product(v: Tensor) -> Tensor:
        """Compute (H + damping) v, with H the Hessian of the mean divergence at the start: H v = grad (grad KL . v)."""
        direction = at(v)

        def along(theta: State, *data: Any) -> tuple[Any, State]:
            """Compute grad KL . v of one task."""
            # A deviation that does not adapt is a buffer of theta, but one of the P parameters too.
            mean = lambda named: departure(learner.theta(named), *data)[0]["loss"]  # noqa: E731
            slopes = torch.func.grad(mean)({**theta.parameters, **theta.buffers})
            return {"loss": torch.stack([(slopes[n] * direction[n]).sum() for n in direction]).sum()}, theta

        return gradient_of(along)[0] + DAMPING * v

    @torch.no_grad()
    def judge(offset: Tensor) -> tuple[float, float]:
        """Compute the decrease of the outer loss by an offset, and the mean divergence there."""
        nonlocal trials
        trials += 1
        theta = learner.theta(at(start + offset))
        means = (learner.lift.map(f, theta, batches, judged, played)[0]["loss"] for f in (loss, departure))
        after, divergence = (float(values.mean()) for values in means)
        return float(before) - after, divergence

    # The gradient of the outer loss, and the step, which needs products with the Hessian of the divergence.
    gradient, before = gradient_of(loss)
    offset = step(-gradient, product, judge, radius=radius)
    for p, change in zip(parameters.values(), at(offset).values(), strict=True):
        p.grad = -change if p.grad is None else p.grad - change
    moved = bool(offset.any())
    # The first trial is the longest step. Each further trial is a backtrack, also if none was accepted.
    counts = {"step_taken": float(moved), "backtracks": float(max(0, trials - 1))}
    return {"loss": before, **{name: torch.tensor(count) for name, count in counts.items()}}
