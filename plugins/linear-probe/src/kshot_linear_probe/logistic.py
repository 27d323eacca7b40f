"""Multinomial logistic regression with an L2 penalty, by scikit-learn; the penalty is chosen by folds of the data.

Letters: S examples of the support, n examples, N way, R numbers of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""The penalties among which ``best_penalty`` chooses, the strongest first."""

TOLERANCE = 1e-6
"""The greatest number of the gradient at which scikit-learn's L-BFGS stops. With a greater one, weak penalties are not
fitted to their optimum."""


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
