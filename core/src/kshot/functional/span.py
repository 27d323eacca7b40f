"""Compute in the few dimensions that some vectors span, instead of in all of them.

Letters: m vectors, D their length, R = min(m, D). The leading axes ``...`` are any number of batch axes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def span_coordinates(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates of vectors in an orthonormal basis of the space that they span.

    A method that uses vectors by their inner products and by linear combinations, such as logistic regression with an
    L2 penalty or gradient descent on a linear layer that starts from class means, has the same result in these R
    dimensions, at a fraction of the cost: a few dozen examples have embeddings of more than a thousand numbers.

    Args:
        z: vectors [..., m, D].

    Returns:
        The coordinates [..., m, R] and the basis [..., R, D], with ``z = coordinates @ basis`` up to rounding.

    Example:
        >>> coordinates, basis = span_coordinates(torch.tensor([[3.0, 0.0, 4.0]]))
        >>> coordinates.abs().tolist(), (coordinates @ basis).round(decimals=5).tolist()
        ([[5.0]], [[3.0, 0.0, 4.0]])
    """
    # z^T = Q R with orthonormal columns in Q, so z = R^T Q^T.
    Q, R = torch.linalg.qr(z.mT)
    return R.mT, Q.mT
