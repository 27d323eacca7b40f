"""Multinomial logistic regression with an L2 penalty, by scikit-learn; the penalty is chosen by folds of the data.

Letters: S examples, n examples, N classes, D numbers of an embedding, R dimensions (at most S) that the data span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""The penalties among which ``best_penalty`` chooses, the strongest first."""

TOLERANCE = 1e-6
"""The greatest number of the gradient at which scikit-learn's L-BFGS stops."""


@frozen(eq=False)
class Span:
    """Store an isometric map of the space that some embeddings span to few dimensions, in a unit of length of its own.

    The solution of a regression with an L2 penalty is a combination of its examples. So a regression in these R
    dimensions has the solution of the regression in D dimensions, at a fraction of the cost.

    Attributes:
        mean: the mean of the embeddings [D].
        axes: orthonormal [R, D].
        unit: the root mean square of the distances of the embeddings from their mean.

    Example:
        >>> span = Span.of(np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]))
        >>> span.unit, np.abs(span.coordinates(np.array([[4.0, 0.0, 5.0]])).round(6)).tolist()
        (1.0, [[2.0]])
    """

    mean: Floats
    axes: Floats
    unit: float

    @classmethod
    def of(cls, z: Floats) -> Span:
        """Return the map for embeddings [S, D]."""
        mean = z.mean(0)
        _, lengths, axes = np.linalg.svd(z - mean, full_matrices=False)
        used = lengths > lengths.max(initial=0.0) * len(z) * np.finfo(np.float64).eps
        used[:1] = True  # one dimension at least, also if all embeddings are equal
        unit = float(np.sqrt(np.square(lengths).sum() / len(z)))
        return cls(mean, axes[used], unit or 1.0)

    def coordinates(self, z: Floats) -> Floats:
        """Map embeddings [n, D] to [n, R]."""
        coordinates: Floats = (z - self.mean) @ self.axes.T / self.unit
        return coordinates


def fitted(u: Floats, y: Integers, way: int, penalty: float, model: Any = None) -> tuple[Floats, Floats, Any]:
    """Minimise the mean cross-entropy of W u + b plus penalty / 2 * ||W||^2, over W and b.

    Args:
        u: examples [S, R].
        y: labels [S], of which each of 0 .. N - 1 occurs.
        way: N.
        penalty: positive.
        model: a model that was fitted before, from whose solution to start.

    Returns:
        W [N, R], b [N], and the model.

    Example:
        >>> W, b, _ = fitted(np.array([[-1.0], [1.0]]), np.array([0, 1]), 2, penalty=0.1)
        >>> bool(W[1, 0] > 0), np.allclose(W[0], -W[1])
        (True, True)
    """
    model = LogisticRegression(tol=TOLERANCE, max_iter=1000, warm_start=True) if model is None else model
    # scikit-learn minimises C * (sum of cross-entropies) + ||W||^2 / 2. For two classes it has a single vector of
    # weights, w = W_1 - W_0. The best W has W_1 = -W_0 = w / 2, whose penalty ||W||^2 is ||w||^2 / 2.
    model.C = (2.0 if way == 2 else 1.0) / (penalty * len(u))
    model.fit(u, y)
    W, b = model.coef_, model.intercept_
    if way == 2:
        W, b = np.concatenate([-W, W]) / 2, np.concatenate([-b, b]) / 2
    return W, b, model


def left_out_loss(u: Floats, y: Integers, way: int, fold: Integers, penalties: Sequence[float]) -> Floats:
    """Compute for each penalty the sum of the cross-entropies of all folds, each under the fit without it.

    Args:
        u, y, way: see ``fitted``.
        fold: of each example [S]; -1 for an example that is never left out.
        penalties: the strongest first, so that each fit starts from a similar one.

    Returns:
        The sums [number of penalties].
    """
    losses = np.zeros(len(penalties))
    for f in np.unique(fold[fold >= 0]):
        out, model = fold == f, None
        for i, penalty in enumerate(penalties):
            W, b, model = fitted(u[~out], y[~out], way, penalty, model)
            logits = u[out] @ W.T + b
            losses[i] -= log_softmax(logits)[np.arange(len(logits)), y[out]].sum()
    return losses


def best_penalty(u: Floats, y: Integers, way: int, fold: Integers, default: float) -> float:
    """Return the one of ``PENALTIES`` with the least loss on left-out examples; ``default`` if there are no folds."""
    if not (fold >= 0).any():
        return default
    return PENALTIES[int(left_out_loss(u, y, way, fold, PENALTIES).argmin())]


def log_softmax(logits: Floats) -> Floats:
    """Compute the logarithms of the softmax over the last axis [n, N].

    Example:
        >>> np.exp(log_softmax(np.array([[0.0, np.log(3.0)]]))).round(6).tolist()
        [[0.25, 0.75]]
    """
    shifted = logits - logits.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
