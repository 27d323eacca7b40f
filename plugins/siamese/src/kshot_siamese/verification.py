"""Verification: decide by a threshold on their distance whether two inputs are of the same class.

A pair is genuine if both of its inputs are of the same class, and an imposter pair otherwise. Letters: P pairs,
T thresholds. The measures are a few lines of numpy over sorted distances, so that scikit-learn is not needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import ArrayLike, NDArray

from kshot import Pool, functional
from kshot.errors import DataError
from kshot.protocols import Compares

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@frozen(eq=False)
class Pairs:
    """Store pairs of examples and their distances.

    Attributes:
        distance: of each pair [P]; the greater, the less alike.
        genuine: whether each pair is genuine [P].
        first: number of the first example of each pair [P].
        second: number of the second example of each pair [P].

    Example:
        >>> pairs = Pairs(np.array([0.1, 2.0]), np.array([True, False]), np.array([0, 0]), np.array([1, 2]))
        >>> report(pairs, threshold=1.0)
        {'auc': 1.0, 'eer': 0.0, 'accuracy': 1.0}
    """

    distance: Floats
    genuine: Booleans
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def pairs_of(learner: Compares, pool: Pool, *, batch: int = 256) -> Pairs:
    """Compute the distances of all pairs of a pool's examples, which are numbered as in ``pool.table()``.

    Args:
        learner: a learner in evaluation mode that embeds inputs and compares embeddings, such as ``Siamese``.
        pool: the examples.
        batch: how many examples are embedded at once. 16 times as many pairs are compared at once.
    """
    ids, y = pool.table()
    first, second = np.triu_indices(len(y), 1)
    device = next((p.device for p in getattr(learner, "parameters", list)()), torch.device("cpu"))
    with torch.no_grad():
        z = torch.cat([learner.embed(pool.gather(ids[i : i + batch]).to(device)) for i in range(0, len(ids), batch)])
        distances = [
            learner.distance(z[first[i : i + batch * 16]], z[second[i : i + batch * 16]])
            for i in range(0, len(first), batch * 16)
        ]
    return Pairs(torch.cat(distances).cpu().double().numpy(), y[first] == y[second], first, second)


def checked(distance: ArrayLike, genuine: ArrayLike) -> tuple[Floats, Booleans]:
    """Convert distances [P] and whether pairs are genuine [P] to arrays, and check them.

    Raises:
        DataError: the shapes differ, a distance is NaN, or all pairs are of the same kind.
    """
    d, g = np.asarray(distance, np.float64), np.asarray(genuine).astype(bool)
    if d.ndim != 1 or d.shape != g.shape:
        raise DataError(
            f"verification: got distances of shape {d.shape} and labels of shape {g.shape}, expected one label per "
            "distance"
        )
    if np.isnan(d).any():
        raise DataError(f"verification: got NaN for {int(np.isnan(d).sum())} of {len(d)} distances, expected numbers")
    if g.all() or not g.any():
        raise DataError(
            f"verification: got {int(g.sum())} genuine pairs among {len(g)} pairs, expected some pairs of each kind"
        )
    return d, g


def roc_auc(distance: ArrayLike, genuine: ArrayLike) -> float:
    """Compute the area under the ROC curve.

    It is the probability that a genuine pair has a smaller distance than an imposter pair, with ties counted as one
    half. It is computed from the ranks of the genuine pairs (Mann & Whitney 1947).

    Example:
        >>> roc_auc([1.0, 2.0, 2.0, 3.0], [True, True, False, False])
        0.875
    """
    d, g = checked(distance, genuine)
    _, place, counts = np.unique(d, return_inverse=True, return_counts=True)
    # Ranks start at 1; equal distances get the mean of their ranks.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    G, imposters = int(g.sum()), int((~g).sum())
    # The number of pairs (genuine, imposter) in which the imposter has the smaller distance.
    farther = ranks[g].sum() - G * (G + 1) / 2
    return float(1 - farther / (G * imposters))


def roc_curve(distance: ArrayLike, genuine: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Compute the shares of imposter and of genuine pairs that each threshold accepts.

    A pair is accepted if its distance is at most the threshold.

    Returns:
        The thresholds [T] in rising order, the first of which is -inf and accepts no pair; the shares of imposters
        [T]; the shares of genuine pairs [T].

    Example:
        >>> [column.tolist() for column in roc_curve([1.0, 2.0], [True, False])]
        [[-inf, 1.0, 2.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    d, g = checked(distance, genuine)
    values, place = np.unique(d, return_inverse=True)
    accepted = [np.cumsum(np.bincount(place[of], minlength=len(values))) / of.sum() for of in (~g, g)]
    false, true = (np.concatenate([[0.0], share]) for share in accepted)
    return np.concatenate([[-np.inf], values]), false, true


def equal_error_rate(distance: ArrayLike, genuine: ArrayLike) -> float:
    """Compute the error rate at which the share of accepted imposters equals the share of refused genuine pairs.

    Between two thresholds the ROC curve is taken as a straight line.

    Example:
        >>> equal_error_rate([1.0, 1.0], [True, False])
        0.5
    """
    _, false, true = roc_curve(distance, genuine)
    gap = false - (1 - true)  # rises from -1 to 1
    i = int(np.argmax(gap >= 0))
    share = -gap[i - 1] / (gap[i] - gap[i - 1])
    return float(false[i - 1] + share * (false[i] - false[i - 1]))


def best_threshold(distance: ArrayLike, genuine: ArrayLike) -> float:
    """Choose the threshold with the best balanced accuracy, by ``kshot.functional.best_threshold``.

    Choose it on validation pairs, because its accuracy on the pairs it was chosen on is too high.

    Example:
        >>> best_threshold([1.0, 2.0, 4.0], [True, True, False])
        3.0
    """
    d, g = checked(distance, genuine)
    return float(functional.best_threshold(torch.from_numpy(d[g]), torch.from_numpy(d[~g]))[0])


def balanced_accuracy(distance: ArrayLike, genuine: ArrayLike, threshold: float) -> float:
    """Compute the mean of two shares: genuine pairs that are accepted and imposter pairs that are refused.

    The plain share of right decisions would be misleading: among all pairs of pictures of ten people, nine in ten are
    imposters, so refusing every pair would be right nine times in ten.

    Example:
        >>> balanced_accuracy([1.0, 3.0, 4.0], [True, True, False], threshold=2.0)
        0.75
    """
    d, g = checked(distance, genuine)
    return float(((d[g] <= threshold).mean() + (d[~g] > threshold).mean()) / 2)


def report(pairs: Pairs, threshold: float | None = None) -> dict[str, Any]:
    """Compute the measures by name: ``auc``, ``eer`` and, if a threshold is given, ``accuracy``.

    Args:
        pairs: the pairs to be judged.
        threshold: chosen on other pairs. None leaves ``accuracy`` out.
    """
    measures = {"auc": roc_auc(pairs.distance, pairs.genuine), "eer": equal_error_rate(pairs.distance, pairs.genuine)}
    if threshold is not None:
        measures["accuracy"] = balanced_accuracy(pairs.distance, pairs.genuine, threshold)
    return measures
