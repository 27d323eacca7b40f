"""Compute distances, class sums and prototypes.

Letters: N way, S support size, n and m examples, D embedding. The leading axes ``...`` are any number of batch axes,
usually B (meta-batch).
"""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(z: Tensor) -> Tensor:
    """Convert half-precision tensors to float32, and return tensors of float32 or float64 unchanged.

    Autocast leaves embeddings in bfloat16 or float16, which have too few digits for distances and losses.

    Example:
        >>> full_precision(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> full_precision(torch.zeros(2, dtype=torch.float64)).dtype
        torch.float64
    """
    return z.to(torch.promote_types(z.dtype, torch.float32))


def pairwise_squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Compute the squared Euclidean distance of every pair, *summed* (not averaged) over the D features.

    The distances are computed from differences. The expansion |a|^2 - 2ab + |b|^2 would need less memory, but it loses
    the digits of small distances, and the distance of a point to itself would not be exactly 0.

    Args:
        a: points [..., n, D].
        b: points [..., m, D].

    Returns:
        The squared distances [..., n, m].

    Example:
        >>> pairwise_squared_distance(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0]])).tolist()
        [[25.0], [13.0]]
    """
    return (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)


def class_sums(z: Tensor, y: Tensor, way: int) -> Tensor:
    """Sum the embeddings of each class.

    Args:
        z: embeddings [..., S, D].
        y: labels [..., S], int64, from 0 to N - 1.
        way: N, the number of classes.

    Returns:
        The sums [..., N, D]. A class without examples gets the zero vector.

    Example:
        >>> class_sums(torch.tensor([[1.0, 2.0], [10.0, 20.0], [3.0, 4.0]]), torch.tensor([0, 1, 0]), 3).tolist()
        [[4.0, 6.0], [10.0, 20.0], [0.0, 0.0]]
    """
    # Not a product with the one-hot matrix of the labels, because autocast would compute that in half precision.
    return z.new_zeros(*y.shape[:-1], way, z.shape[-1]).scatter_add(-2, y.unsqueeze(-1).expand(z.shape), z)


def class_means(z: Tensor, y: Tensor, way: int) -> Tensor:
    """Compute the mean embedding of each class, its prototype. Snell et al. (2017), equation 1.

    Args:
        z: embeddings [..., S, D].
        y: labels [..., S], int64, from 0 to N - 1. Classes may have different numbers of examples.
        way: N, the number of classes.

    Returns:
        The prototypes [..., N, D]. A class without examples gets the zero vector.

    Example:
        >>> class_means(torch.tensor([[2.0], [10.0], [4.0]]), torch.tensor([0, 1, 0]), 2).tolist()
        [[3.0], [10.0]]
    """
    counts = z.new_zeros(*y.shape[:-1], way).scatter_add(-1, y, torch.ones_like(y, dtype=z.dtype))
    return class_sums(z, y, way) / counts.clamp_min(1).unsqueeze(-1)


def prototypical_logits(z: Tensor, prototypes: Tensor) -> Tensor:
    """Compute the logits of prototypical networks: minus the squared distance to each prototype.

    Their softmax over the last axis is p(y = c | x). Snell et al. (2017), equation 2.

    Args:
        z: embeddings of queries [..., n, D].
        prototypes: one for each class [..., N, D].

    Returns:
        The logits [..., n, N].

    Example:
        >>> prototypical_logits(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])).tolist()
        [[-0.0, -20.0]]
    """
    return -pairwise_squared_distance(z, prototypes)
