"""Whitened principal components (Hotelling 1933; Jolliffe, "Principal component analysis", 2002, section 2.3).

Letters: n examples, D numbers of an input, k components.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor


@frozen(eq=False)
class Whitening:
    """An affine map of inputs to their whitened components.

    Attributes:
        mean [D], directions [D, k], scales [k]: a component is (x - mean) . direction / scale; float64.
    """

    mean: Tensor
    directions: Tensor
    scales: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs ``x`` of D numbers each, whatever their axes -> [n, k], one after the other, in x's type."""
        D = len(self.mean)
        flat = x.reshape(x.numel() // D, D)
        matrix = (self.directions / self.scales).to(flat)
        return (flat - self.mean.to(flat)) @ matrix


def principal_components(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` [n, D] -> mean [D], the k orthonormal directions of most variance [D, k] and their variances [k].

    Variances are of the sample, divided by n, in falling order. A direction's largest number is positive, so that its
    sign is the same everywhere. By the smaller of the two matrices x^T x and x x^T, in float64.
    """
    x = x.double()
    n, D = x.shape
    mean = x.mean(0)
    centred = x - mean
    if n < D:
        variances, vectors = torch.linalg.eigh(centred @ centred.T / n)
        directions = centred.T @ vectors[:, -k:]
        directions /= torch.linalg.vector_norm(directions, dim=0).clamp_min(torch.finfo(x.dtype).tiny)
    else:
        variances, vectors = torch.linalg.eigh(centred.T @ centred / n)
        directions = vectors[:, -k:]
    directions, variances = directions.flip(1), variances[-k:].flip(0).clamp_min(0)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return mean, directions * largest.sign(), variances


def whitening(x: Tensor, k: int, floor: float) -> Whitening:
    """The map that gives the k components of ``x`` [n, D] the variance 1, but for the floor.

    Args:
        floor: is added to each variance, as a share of the components' mean variance: the smallest, which are mostly
            noise, are then blown up less.
    """
    mean, directions, variances = principal_components(x, k)
    return Whitening(mean, directions, (variances + floor * variances.mean()).sqrt())
