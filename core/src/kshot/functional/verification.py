"""Choose a distance threshold for verification: deciding whether two inputs are of the same class.

A pair is genuine if both of its inputs are of the same class, and an imposter pair if they are not. Letters: G genuine
pairs, I imposter pairs, C different distances.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_threshold(genuine: Tensor, imposters: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the distance threshold with the best balanced accuracy on labelled pairs.

    A pair is accepted as genuine if its distance is at most the threshold. The balanced accuracy is the mean of two
    shares: genuine pairs that are accepted, and imposter pairs that are refused. So both kinds of pairs weigh the same,
    although there are usually many more imposters.

    If several thresholds are equally good, the one in the middle of the widest gap between two distances is chosen.
    A threshold below all distances, which refuses every pair, is not considered: its accuracy is 1/2, and so is that
    of accepting every pair.

    Args:
        genuine: distances of genuine pairs [G], with G at least 1.
        imposters: distances of imposter pairs [I], with I at least 1.

    Returns:
        The threshold [], in the dtype of the distances, and its balanced accuracy [], float64.

    Example:
        >>> threshold, accuracy = best_threshold(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 5.0]))
        >>> threshold.item(), accuracy.item()
        (3.0, 1.0)
    """
    # Candidates: a threshold only changes which pairs are accepted when it passes one of their distances.
    cuts = torch.unique(torch.cat([genuine, imposters]))  # [C], in rising order
    # Balanced accuracy of each: (accepted / G + (1 - falsely accepted / I)) / 2, by the ranks of the cuts.
    balanced = torch.searchsorted(genuine.sort().values, cuts, right=True).double() / len(genuine) + 1
    falsely = torch.searchsorted(imposters.sort().values, cuts, right=True).double() / len(imposters)
    balanced = (balanced - falsely) / 2
    # Any threshold from a cut up to the next one accepts the same pairs. Among the best, take the widest such gap.
    best = torch.nonzero(balanced == balanced.max()).flatten()
    following = torch.cat([cuts[1:], cuts[-1:]])
    widest = best[(following[best] - cuts[best]).argmax()]
    return (cuts[widest] + following[widest]) / 2, balanced.max()
