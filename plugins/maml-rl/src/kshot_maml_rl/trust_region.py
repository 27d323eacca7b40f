"""The outer step of the paper's experiments: trust region policy optimization (Schulman et al. 2015, 1502.05477,
appendix C), as functions of a flat vector of P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kshot import Metrics
from kshot.functional import conjugate_gradient
from kshot.inner import State
from kshot_maml_rl.steps import mean_over_steps

Product = Callable[[Tensor], Tensor]
Named = Mapping[str, Tensor]

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

    def divergence(new: Named, old: Named, judged: Any) -> Tensor:
        """Compute the divergence of one task's new policy from the old one, its mean over the steps taken."""
        return mean_over_steps(learner.family.divergence(old, new, judged.observations), judged.running)

    def departure(theta: State, batches: Any, judged: Any, played: State) -> tuple[Any, State]:
        """Compute the divergence of one task's adapted policy from the one that played."""
        after, _ = learner.adapted(theta, batches)
        return {"loss": divergence(everything(after), everything(played), judged)}, after

    # The graphs that all products share: theta' [B, *] by theta, J^T u by u, and the slope of the divergence by theta'.
    leaves = {n: v.clone().requires_grad_() for n, v in at(start).items()}
    adapt = lambda theta, batches, judged: learner.adapted(theta, batches)[0]  # noqa: E731
    after = everything(learner.lift.map(adapt, learner.theta(leaves), batches, judged))
    ends = {n: v.detach().requires_grad_() for n, v in after.items()}
    u = {n: torch.zeros_like(v, requires_grad=True) for n, v in after.items()}
    pulled = pull(after, leaves, u, create_graph=True)
    apart = {"": torch.func.vmap(divergence)(ends, everything(played), judged).mean()}
    slope = pull(apart, ends, create_graph=True)

    def product(v: Tensor) -> Tensor:
        """Compute (H + damping) v, with H the Hessian of the mean divergence at the start.

        H = J^T F J, with J the derivative of theta' by theta and F the Hessian of the divergence by theta'. There is no
        other term: the divergence from the policies that played is least at theta', so that its slope is 0.
        """
        moved = pull(pulled, u, at(v))  # J v, the derivative of J^T u by u
        bent = pull(slope, ends, moved)  # F J v
        back = pull(after, leaves, bent)  # J^T F J v
        return torch.cat([g.flatten() for g in back.values()]) + DAMPING * v

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
    metrics, _ = learner.lift.mean_gradient(loss, learner.theta(leaves), batches, judged, played)
    before = metrics["loss"].mean()
    gradient = torch.cat([(torch.zeros_like(v) if v.grad is None else v.grad).flatten() for v in leaves.values()])
    offset = step(-gradient, product, judge, radius=radius)
    for p, change in zip(parameters.values(), at(offset).values(), strict=True):
        p.grad = -change if p.grad is None else p.grad - change
    moved = bool(offset.any())
    # The first trial is the longest step. Each further trial is a backtrack, also if none was accepted.
    counts = {"step_taken": float(moved), "backtracks": float(max(0, trials - 1))}
    return {"loss": before, **{name: torch.tensor(count) for name, count in counts.items()}}


def everything(state: State) -> dict[str, Tensor]:
    """Return the parameters of a policy: those that adapt, and those that do not."""
    return {**state.parameters, **state.buffers}


def pull(of: Named, by: Named, weights: Named | None = None, *, create_graph: bool = False) -> dict[str, Tensor]:
    """Compute the derivatives of a sum of products: d (sum of weights * of) / d by, 0 where there is no dependence.

    The graph of ``of`` is kept for further calls.

    Args:
        of: tensors with a graph, or constants.
        by: tensors that they were computed from.
        weights: of the shapes of ``of``; None for scalars with weight 1.
        create_graph: whether the derivatives have a graph.

    Example:
        >>> x = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> pull({"square": x * x}, {"x": x}, {"square": torch.tensor([1.0, 0.5])})
        {'x': tensor([2., 3.])}
    """
    names = [n for n, t in of.items() if t.requires_grad]
    if not names:
        return {n: torch.zeros_like(t) for n, t in by.items()}
    derivatives = torch.autograd.grad(
        [of[n] for n in names],
        list(by.values()),
        None if weights is None else [weights[n] for n in names],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(by, derivatives, strict=True))
