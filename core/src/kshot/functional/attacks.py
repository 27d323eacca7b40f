"""Compute adversarial inputs: inputs that are changed by a small amount, such that a loss becomes large.

A change is bounded in the maximum norm: every number of an input changes by at most epsilon, up to rounding. The
functions take the gradient of the loss as a function, so that it may be computed by ``torch.func.grad``, which works
under ``torch.func.vmap``, or by ``torch.autograd.grad``, which works for modules of every sort.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]
"""A function from inputs [*] to the gradient of a loss with respect to them [*]."""


def fgsm(gradient: Gradient, x: Tensor, *, epsilon: float, input_range: tuple[float, float] | None = None) -> Tensor:
    """Compute x + epsilon sign(grad_x L), the fast gradient sign method (Goodfellow et al. 2015, 1412.6572).

    Where the gradient is exactly 0, the input does not change. The scale of the loss does not matter, so it may be the
    sum or the mean over independent examples.

    Args:
        gradient: the gradient of the loss that is to become large.
        x: inputs [*].
        epsilon: the greatest change of a number of ``x``, in its units, at least 0.
        input_range: the least and the greatest value that an input may have, to which the result is clipped; None for
            any value.

    Returns:
        The adversarial inputs [*], without a graph: derivatives treat the change as a constant.

    Example:
        The loss (x - 1)^2 grows away from 1, and the third input is at its upper limit:

        >>> gradient = torch.func.grad(lambda x: (x - 1).square().sum())
        >>> fgsm(gradient, torch.tensor([0.5, 1.0, 2.0]), epsilon=0.25, input_range=(0.0, 2.0))
        tensor([0.2500, 1.0000, 2.0000])
    """
    return pgd(gradient, x, epsilon=epsilon, steps=1, step_size=epsilon, input_range=input_range)


def pgd(
    gradient: Gradient,
    x: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
    input_range: tuple[float, float] | None = None,
) -> Tensor:
    """Ascend the loss by steps of projected gradient ascent. Madry et al. (2018, 1706.06083), section 2.1.

    Each step is x_t+1 = P(x_t + step_size sign(grad L(x_t))), where P clips to the inputs that differ from ``x`` by at
    most epsilon and are in the range.

    Args:
        gradient, x, epsilon, input_range: as for ``fgsm``.
        steps: number of steps, at least 0.
        step_size: change of a number in one step.
        start: the change [*] from which to start, usually drawn uniformly from [-epsilon, epsilon]; None for 0.

    Returns:
        The adversarial inputs [*], without a graph.

    Example:
        Two steps of 0.2 would leave the bound of 0.3:

        >>> gradient = torch.func.grad(lambda x: x.sum())
        >>> pgd(gradient, torch.tensor([0.0, 0.9]), epsilon=0.3, steps=2, step_size=0.2, input_range=(0.0, 1.0))
        tensor([0.3000, 1.0000])
    """
    with torch.no_grad():  # neither the gradient nor the change gets a graph
        clean = x.detach()
        low, high = clean - epsilon, clean + epsilon
        if input_range is not None:
            low, high = low.clamp(*input_range), high.clamp(*input_range)
        attacked = (clean if start is None else clean + start).clamp(low, high)
        for _ in range(steps):
            attacked = (attacked + step_size * gradient(attacked).sign()).clamp(low, high)
        return attacked
