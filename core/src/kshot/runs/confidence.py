"""How far predictions can be trusted: calibrated probabilities, sets that contain the right class, intervals of shares.

Letters: n examples, N classes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]

ADDED = 0.25
"""The part of an example, with all labels equally likely, that ``temperature`` adds. Among 0, 0.25 and 1 it gave the
best likelihood of new examples, on emoji and on faces with three and five examples per class."""


def temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Fit the number T by which logits are divided, so that the softmax of the quotient fits the labels best.

    T maximises the likelihood of the labels, see Guo et al. 2017 (1706.04599), section 4.2. It changes probabilities
    and no predicted class. A quarter of an example with equal probabilities of all labels is added, so that T is not 0
    if all examples are predicted correctly.

    Args:
        logits: of examples that the classifier has not seen [n, N].
        labels: their classes, 0 to N - 1 [n].

    Returns:
        T, from e^-10 to e^10 times the standard deviation of the logits.

    Example:
        >>> temperature(np.array([[10.0, 0.0], [10.0, 0.0]]), np.array([0, 1])) > 10
        True
    """
    scale = float(logits.std()) or 1.0
    n = len(logits)

    def loss(log_t: float) -> float:
        """Return minus the mean log-likelihood of the labels and of the added part of an example."""
        log_p = special.log_softmax(logits / (scale * math.exp(log_t)), axis=1)
        own = log_p[np.arange(n), labels].sum()
        unknown = log_p.mean()  # of an example of which every label is as likely
        return -float(own + ADDED * unknown) / (n + ADDED)

    found = optimize.minimize_scalar(loss, bounds=(-10.0, 10.0), method="bounded")
    return scale * math.exp(float(found.x))


def conformal_quantile(scores: Floats, coverage: float) -> float:
    """Return the bound that a new score does not exceed with probability ``coverage``.

    If the scores, the new one among them, are exchangeable, the r-th smallest of n scores has the probability
    r / (n + 1), see Vovk, Gammerman & Shafer, "Algorithmic learning in a random world", 2005. Between two of them the
    bound is interpolated linearly, so the probability is reached only on average over their distribution. It is
    infinite if n is too small for this coverage.

    Args:
        scores: of n examples that were left out: how unusual each is for its own class [n].
        coverage: a probability.

    Example:
        >>> conformal_quantile(np.arange(1.0, 10.0), 0.85), conformal_quantile(np.arange(1.0, 9.0), 0.9)
        (8.5, inf)
    """
    rank = (len(scores) + 1) * coverage
    if rank > len(scores):
        return math.inf
    ordered = np.concatenate([[-math.inf], np.sort(scores)])
    below = math.floor(rank)
    share = rank - below
    return float(ordered[below] if share < 1e-9 else (1 - share) * ordered[below] + share * ordered[below + 1])


def share_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of Wilson for the probability of a success, of which there were some in n trials.

    Example:
        >>> low, high = share_interval(18, 20)
        >>> round(low, 2), round(high, 2)
        (0.7, 0.97)
    """
    interval = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def calibration_error(probabilities: Floats, labels: NDArray[np.int64], bins: int = 10) -> float:
    """Return the expected calibration error: the mean distance of the confidence from the share of right predictions.

    Examples are divided into bins by the probability of their predicted class, see Guo et al. 2017, equation 3.

    Args:
        probabilities: of N classes for n examples [n, N].
        labels: their classes [n].
        bins: number of bins of equal width.

    Example:
        >>> calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
        0.0
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [place == k for k in range(bins) if (place == k).any()]
    return float(sum(abs(right[own].mean() - confidence[own].mean()) * own.mean() for own in members))
