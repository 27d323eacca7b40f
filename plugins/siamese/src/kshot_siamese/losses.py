"""Pairs of examples, their distances and losses, of Hadsell et al. (2006) and Koch et al. (2015).

A pair is genuine if both examples are of the same class, and an imposter pair otherwise. Letters: n examples,
P = n (n - 1) / 2 pairs, D embedding. The functions accept any leading axes, usually B (meta-batch).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Average = Literal["auto", "active", "balanced", "all"]

_AT_MARGIN = 1e-12
"""Losses up to this come from rounding: the distance of a pair may be at the margin exactly, for example 1 from zero
to an embedding of unit length."""


def pairs(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """List every pair of n examples once.

    Labels ``y`` [..., n] give the numbers of the first examples [P] and of the second ones [P], and whether each pair
    is genuine [..., P].
    """
    first, second = torch.triu_indices(y.shape[-1], y.shape[-1], 1, device=y.device)
    return first, second, y[..., first] == y[..., second]


def energy(a: Tensor, b: Tensor) -> Tensor:
    """Compute E = ||a - b|| of embeddings [..., D] -> [...].

    The gradient at a = b is 0, although the derivative of the square root is infinite there.
    """
    distance: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return distance


def contrastive_losses(energies: Tensor, genuine: Tensor, margin: float) -> Tensor:
    """Compute E^2 for genuine pairs and max(0, margin - E)^2 for imposters, all of shape [...].

    This is twice equation 4 of Hadsell et al. (2006).
    """
    return torch.where(genuine, energies, (margin - energies).clamp_min(0)).square()


def koch_logits(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Compute the log odds that a pair is genuine, sum_j alpha_j |a_j - b_j|.

    Embeddings [..., D] and weights alpha [D] give log odds [...].
    """
    return ((a - b).abs() * weights).sum(-1)


def koch_probability(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Compute the probability p = sigmoid(sum_j alpha_j |a_j - b_j|) that a pair is genuine.

    Koch et al. (2015), section 3.1. The shapes are those of ``koch_logits``.
    """
    return koch_logits(a, b, weights).sigmoid()


def mean_over(losses: Tensor, genuine: Tensor, average: Average) -> Tensor:
    """Average the losses of pairs [..., P] to the loss of an episode [...].

    ``all`` is the mean over all pairs, of which few are genuine. ``balanced`` is the mean over genuine pairs plus the
    mean over imposters. ``active`` is the same with only those imposters that have a loss, so that hard imposters keep
    their weight when most others are beyond the margin.
    """
    if average == "all":
        return losses.mean(-1)
    imposters = ~genuine if average == "balanced" else ~genuine & (losses > _AT_MARGIN)

    def mean(of: Tensor) -> Tensor:
        return (losses * of).sum(-1) / of.sum(-1).clamp_min(1)

    return mean(genuine) + mean(imposters)
