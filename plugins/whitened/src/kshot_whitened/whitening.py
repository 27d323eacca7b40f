"""Whitened principal components (Hotelling 1933; Jolliffe, "Principal component analysis", 2002, section 2.3).

Letters: n examples, D numbers of an input, k components.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor


@frozen(eq=False)
class Whitening:
    """Map inputs to their whitened components: z_j = (x - mean) . direction_j / scale_j.

    Attributes:
        mean: mean of the examples that the map was fitted on, float64 [D].
        directions: orthonormal directions of most variance, float64 [D, k].
        scales: standard deviations along the directions, with the floor, float64 [k].

    Example:
        >>> import torch
        >>> from kshot_whitened.whitening import whitening
        >>> to_components = whitening(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), k=1, floor=0.0)
        >>> to_components(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        tensor([[-1.],
                [ 1.]])
    """

    mean: Tensor
    directions: Tensor
    scales: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the components [n, k] of n inputs ``x`` of D numbers each, in the type of x; leading axes join."""
        D = len(self.mean)
        flat = x.reshape(x.numel() // D, D)
        matrix = (self.directions / self.scales).to(flat)
        return (flat - self.mean.to(flat)) @ matrix


def principal_components(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean of ``x`` [n, D], its k orthonormal directions of most variance, and their variances.

    The largest number of a direction is positive, so that its sign is the same on every machine. The eigenvectors are
    those of the smaller of the two matrices x^T x and x x^T, in float64.

    Returns:
        Mean [D], directions [D, k], and variances of the sample (divided by n) in falling order [k].
    """
    x = x.double()
    n, D = x.shape
    mean = x.mean(0)
    centred = x - mean
    # An eigenvector u of x x^T / n gives the direction x^T u, with the same eigenvalue, once it has length 1.
    if n < D:
        variances, vectors = torch.linalg.eigh(centred @ centred.T / n)
        directions = centred.T @ vectors[:, -k:]
        directions /= torch.linalg.vector_norm(directions, dim=0).clamp_min(torch.finfo(x.dtype).tiny)
    else:
        variances, vectors = torch.linalg.eigh(centred.T @ centred / n)
        directions = vectors[:, -k:]
    # eigh sorts by rising eigenvalues; rounding can make the smallest of them negative.
    directions, variances = directions.flip(1), variances[-k:].flip(0).clamp_min(0)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return mean, directions * largest.sign(), variances


def whitening(x: Tensor, k: int, floor: float) -> Whitening:
    """Fit the map that gives each of the k components of ``x`` [n, D] the variance 1, if the floor is 0.

    Args:
        x: the examples to fit on [n, D].
        k: number of components.
        floor: added to each variance, as a share of the mean variance of the components. The smallest components,
            which are mostly noise, then grow less.
    """
    mean, directions, variances = principal_components(x, k)
    return Whitening(mean, directions, (variances + floor * variances.mean()).sqrt())
