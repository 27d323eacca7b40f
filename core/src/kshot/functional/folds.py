"""Divide the support of a task into folds, for what is chosen without other data.

Letters: S support size, N way. The leading axes ``...`` are any number of batch axes, usually B (meta-batch).
"""

from __future__ import annotations

from torch import Tensor


def class_folds(y: Tensor, order: Tensor, folds: int) -> Tensor:
    """Assign each example to a fold, so that without any one fold each class still has examples.

    The examples of a class are numbered in ascending ``order`` and dealt to the folds in turn. So a fold has at most
    one example more of a class than another. An example that is alone in its class is in no fold.

    Args:
        y: labels [..., S], int64.
        order: a number for each example [..., S], such as the length of its embedding. If it depends on the example
            alone, the folds do not depend on the order of the examples in the support or on the numbers of classes.
        folds: the greatest number of folds, at least 2.

    Returns:
        The fold of each example [..., S], int64, from 0 to ``folds`` - 1; -1 for an example that is in no fold.

    Example:
        >>> import torch
        >>> class_folds(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0.3, 0.1, 0.2, 5.0, 4.0, 1.0]), 2).tolist()
        [0, 0, 1, 1, 0, -1]
    """
    same = y.unsqueeze(-1) == y.unsqueeze(-2)
    later, earlier = order.unsqueeze(-1), order.unsqueeze(-2)
    # Equal numbers keep the order of the support: ``tril`` marks the examples before this one.
    before = (earlier < later) | ((earlier == later) & same.new_ones(y.shape[-1], y.shape[-1]).tril(-1))
    rank = (same & before).sum(-1)
    return (rank % folds).where(same.sum(-1) > 1, -1)
