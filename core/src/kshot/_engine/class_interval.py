"""Estimate how far a mean score would move if a split had other classes.

The interval over episodes says how far it would move with other episodes of the same classes. With few classes that is
much less: episodes share their classes, so more episodes do not make up for few classes.

Letters: E episodes, N classes of an episode, C classes of the split.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LEAST_CLASSES = 4
"""Number of classes below which their variance is not estimated."""


def class_interval(scores: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
    """Return half the width of the 95 % t interval of the mean score over the choice of the classes.

    An episode is a random subset of N of C classes, so the mean score is a statistic of subsamples, like the prediction
    of a random forest. Its variance is estimated by the infinitesimal jackknife: Wager & Athey 2018 (1510.04342),
    eq. 8, less the part that is due to the finite number of episodes (Wager, Hastie & Efron 2014, 1311.4555, section
    3.2); the variance over episodes is then added. The estimate for the classes is replaced by its own standard error
    if it is smaller, so with few episodes the interval is too wide rather than too narrow. The t quantile has C - 1
    degrees of freedom.

    Args:
        scores: one for each episode [E].
        classes: the numbers of the classes of each episode [E, N].

    Returns:
        The half width; NaN if there are fewer than 4 classes, or all episodes have the same classes.

    Example:
        >>> chance = np.random.default_rng(0)
        >>> classes = np.array([chance.permutation(10)[:5] for _ in range(600)])
        >>> ease = np.linspace(0, 1, 10)
        >>> round(class_interval(ease[classes].mean(1), classes), 2)  # as that of the mean of ``ease``
        0.23
    """
    scores, (E, N) = np.asarray(scores, np.float64), classes.shape
    present, which = np.unique(classes, return_inverse=True)
    C = len(present)
    if E < 2 or LEAST_CLASSES > C or C <= N or not np.isfinite(scores).all():
        return math.nan
    inside = np.zeros((E, C))
    inside[np.arange(E)[:, None], which.reshape(E, N)] = 1.0
    gaps = scores - scores.mean()
    covariances = (inside - inside.mean(0)).T @ gaps / E
    of_episodes = float(gaps @ gaps) / (E * (E - 1))
    finite = C * (C - 1) / (C - N) ** 2
    by_chance = finite * N * (C - N) / C * of_episodes  # the mean of C squares of about equal variance
    of_classes = max(finite * float(covariances @ covariances) - by_chance, by_chance * math.sqrt(2 / C))
    from scipy.special import stdtrit

    return float(stdtrit(C - 1, 0.975)) * math.sqrt(of_classes + of_episodes)
