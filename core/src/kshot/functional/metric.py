"""Distances and prototypes. Leading axes ``...`` are any number of batch axes, B among them."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(z: Tensor) -> Tensor:
    """``z`` as float32 where it is less, as autocast leaves it: distances and losses need the digits."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def pairwise_squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances, *summed* over features: ``a`` [..., n, D], ``b`` [..., m, D] -> [..., n, m].

    Computed from differences, so that a point's distance to itself is exactly 0 and small distances keep their
    digits; the expansion |a|^2 - 2ab + |b|^2 loses both.
    """
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)


def class_means(z: Tensor, y: Tensor, way: int) -> Tensor:
    """The mean embedding of each class: ``z`` [..., S, D], labels ``y`` [..., S] -> prototypes [..., N, D].

    Classes may have different numbers of examples; one without any gets the zero vector. Snell et al. (2017), eq. 1.
    """
    counts = z.new_zeros(*y.shape[:-1], way).scatter_add(-1, y, torch.ones_like(y, dtype=z.dtype))
    sums = z.new_zeros(*y.shape[:-1], way, z.shape[-1]).scatter_add(-2, y.unsqueeze(-1).expand(z.shape), z)
    return sums / counts.clamp_min(1).unsqueeze(-1)  # sums, not a matrix product, which autocast would round


def prototypical_logits(z: Tensor, prototypes: Tensor) -> Tensor:
    """Minus the squared distance to each prototype: ``z`` [..., n, D], ``prototypes`` [..., N, D] -> [..., n, N].

    The softmax over the last axis is p(y = c | x). Snell et al. (2017), eq. 2.
    """
    return -pairwise_squared_distance(z, prototypes)
