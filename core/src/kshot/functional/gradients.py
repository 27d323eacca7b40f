"""Represent gradients as inputs of networks that learn to optimize."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_and_sign(value: Tensor, p: float = 10.0) -> Tensor:
    """Represent each number x by two numbers of moderate size: [...] -> [..., 2].

    They are (log|x| / p, sign x) if |x| >= e^-p, otherwise (-1, e^p x). Learned optimizers see gradients and losses in
    this form, because their sizes differ by many powers of ten: Andrychowicz et al., "Learning to learn by gradient
    descent by gradient descent", 2016 (1606.04474), appendix A.

    Args:
        value: gradients or losses.
        p: numbers below e^-p are scaled linearly; positive.

    Example:
        >>> log_and_sign(torch.tensor([1.0, -1.0, 0.0]), p=10.0)
        tensor([[ 0.,  1.],
                [ 0., -1.],
                [-1.,  0.]])
    """
    size = value.abs()
    large = size >= math.exp(-p)
    # The clamp keeps the unused branch finite, so that its zero gradient is not 0 * infinity.
    log = size.clamp_min(math.exp(-p)).log() / p
    return torch.stack([log.where(large, -1.0), value.sign().where(large, math.exp(p) * value)], -1)
