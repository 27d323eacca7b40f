"""Verification: are two inputs of one class? By a threshold on their distance; judged over pairs.

A pair is genuine if both are of one class, else an imposter. P pairs, of n examples. In numpy alone: three measures of
sorted numbers don't make scikit-learn worth installing beside a learner; the tests hold them to worked examples.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from attrs import frozen
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kshot import Pool
from kshot.errors import DataError

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


class Compares(Protocol):
    """A learner that embeds and tells the distance of two embeddings, as ``Siamese`` does."""

    def embed(self, x: Tensor, /) -> Tensor: ...

    def distance(self, a: Tensor, b: Tensor, /) -> Tensor: ...


@frozen(eq=False)
class Pairs:
    """Pairs of examples and their distances.

    Attributes:
        distance [P]: the greater, the less alike.
        genuine [P]: whether both are of one class.
        first, second [P]: numbers of the examples.
    """

    distance: Floats
    genuine: Booleans
    first: NDArray[np.int64]
    second: NDArray[np.int64]


def pairs_of(learner: Compares, pool: Pool, *, batch: int = 256) -> Pairs:
    """All pairs of a pool's examples, numbered as in ``pool.table()``, by a learner in evaluation mode.

    Args:
        batch: examples embedded at once, and rows of pairs compared at once.
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
    return Pairs(torch.cat(distances).double().cpu().numpy(), y[first] == y[second], first, second)


def checked(distance: ArrayLike, genuine: ArrayLike) -> tuple[Floats, Booleans]:
    """Distances [P] and whether genuine [P], as arrays.

    Raises:
        DataError: shapes differ, a distance is not a number, or all pairs are of one sort.
    """
    d, g = np.asarray(distance, np.float64), np.asarray(genuine).astype(bool)
    if d.ndim != 1 or d.shape != g.shape:
        raise DataError(f"verification: {d.shape} distances and {g.shape} labels came, expected one label a distance")
    if np.isnan(d).any():
        raise DataError(f"verification: {int(np.isnan(d).sum())} of {len(d)} distances are NaN, expected numbers")
    if g.all() or not g.any():
        raise DataError(f"verification: {int(g.sum())} of {len(g)} pairs are genuine, expected some of each sort")
    return d, g


def roc_auc(distance: ArrayLike, genuine: ArrayLike) -> float:
    """The area under the ROC curve: the probability that a genuine pair is nearer than an imposter, ties by half.

    From the ranks of the genuine pairs (Mann & Whitney 1947).
    """
    d, g = checked(distance, genuine)
    _, place, counts = np.unique(d, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1; those of equal distances are their mean
    G, imposters = int(g.sum()), int((~g).sum())
    farther = ranks[g].sum() - G * (G + 1) / 2  # over genuine pairs, the number of imposters that are nearer
    return float(1 - farther / (G * imposters))


def roc_curve(distance: ArrayLike, genuine: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Thresholds [T] in rising order; the shares of imposters and of genuine pairs that are no farther [T] each.

    A pair is accepted if its distance is at most the threshold. The first threshold, -inf, accepts none.
    """
    d, g = checked(distance, genuine)
    values, place = np.unique(d, return_inverse=True)
    accepted = [np.cumsum(np.bincount(place[of], minlength=len(values))) / of.sum() for of in (~g, g)]
    false, true = (np.concatenate([[0.0], share]) for share in accepted)
    return np.concatenate([[-np.inf], values]), false, true


def equal_error_rate(distance: ArrayLike, genuine: ArrayLike) -> float:
    """Where as large a share of imposters is accepted as of genuine pairs refused; between thresholds, on the line."""
    _, false, true = roc_curve(distance, genuine)
    gap = false - (1 - true)  # rises from -1 to 1
    i = int(np.argmax(gap >= 0))
    share = -gap[i - 1] / (gap[i] - gap[i - 1])
    return float(false[i - 1] + share * (false[i] - false[i - 1]))


def best_threshold(distance: ArrayLike, genuine: ArrayLike) -> float:
    """The threshold of the best balanced accuracy, half-way to the next distance; to be chosen on validation pairs."""
    thresholds, false, true = roc_curve(distance, genuine)
    i = int(np.argmax(true - false))
    return float(thresholds[i] if i in (0, len(thresholds) - 1) else (thresholds[i] + thresholds[i + 1]) / 2)


def balanced_accuracy(distance: ArrayLike, genuine: ArrayLike, threshold: float) -> float:
    """The mean of two shares: genuine pairs within the threshold, and imposters beyond it.

    Not the share of all pairs, nine tenths of which are imposters where there are ten people: to refuse all would be
    right nine times in ten.
    """
    d, g = checked(distance, genuine)
    return float(((d[g] <= threshold).mean() + (d[~g] > threshold).mean()) / 2)


def report(pairs: Pairs, threshold: float | None = None) -> dict[str, Any]:
    """The measures of pairs by name: ``auc``, ``eer`` and, with a threshold from other pairs, ``accuracy``."""
    made = {"auc": roc_auc(pairs.distance, pairs.genuine), "eer": equal_error_rate(pairs.distance, pairs.genuine)}
    if threshold is not None:
        made["accuracy"] = balanced_accuracy(pairs.distance, pairs.genuine, threshold)
    return made
