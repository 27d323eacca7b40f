"""Solve linear equations whose matrix is known only by its products with vectors. Letter: P unknowns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int = 10, enough: float = 1e-10
) -> Tensor:
    """Solve A x = ``target`` approximately by conjugate gradients (Hestenes & Stiefel 1952).

    The start is x = 0. In exact arithmetic P iterations solve any equations with a positive definite A. The function
    does not branch on numbers, so ``torch.func.vmap`` can run it for many systems of equations; systems that are solved
    no longer change. If A turns out not to be positive definite, the result is that of the iteration before.

    Args:
        product: maps v [P] to A v [P], for a symmetric positive definite matrix A.
        target: the right-hand side [P].
        iterations: the number of iterations, each with one product.
        enough: the squared norm of the residual below which the equations count as solved. With a residual of 0 they
            always do.

    Returns:
        x [P].

    Example:
        >>> conjugate_gradient(lambda x: 2 * x, torch.tensor([2.0, 4.0]))
        tensor([1., 2.])
    """
    x = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = residual @ residual
    done = torch.zeros_like(squared, dtype=torch.bool)
    for _ in range(iterations):
        # The minimum of x^T A x / 2 - x^T target along the direction; there is none if the curvature is not positive.
        moved = product(direction)
        curvature = direction @ moved
        done = done | (squared < enough) | (squared == 0) | (curvature <= 0)
        length = squared / curvature
        x = torch.where(done, x, x + length * direction)
        residual = residual - length * moved
        # The next direction is conjugate to all before.
        before, squared = squared, torch.where(done, squared, residual @ residual)
        direction = torch.where(done, direction, residual + squared / before * direction)
    return x
