"""Compute losses and errors of sequences.

Letters: B meta-batch, T time, N way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.functional.metric import full_precision


def sequence_loss(logits: Tensor, y: Tensor, ignored: int = -100) -> Tensor:
    """Compute the negative log-likelihood of the answers of sequences, in nats.

    It is averaged over the scored steps (and bits) of each task, then over the B tasks. So all tasks weigh the same,
    however many of their steps are scored. A task without any scored step counts as 0.

    Args:
        logits: [B, T, N] if the answers are labels, [B, T, L, N] if they are strings of L labels, [B, T, *bits] if
            they are bits.
        y: labels [B, T] or [B, T, L], int64, ``ignored`` at steps that are not scored; or bits [B, T, *bits], float,
            NaN at those.
        ignored: the label of steps that are not scored.

    Returns:
        The loss [].

    Example:
        >>> sequence_loss(torch.zeros(1, 3, 4), torch.tensor([[2, -100, 0]])).exp()  # 4 equally probable labels
        tensor(4.)
        >>> sequence_loss(torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]])).exp()
        tensor(2.)
    """
    logits = full_precision(logits)
    # Losses of all steps; those of steps that are not scored are 0.
    if y.is_floating_point():
        scored = ~y.isnan()
        losses = F.binary_cross_entropy_with_logits(logits, y.nan_to_num(), reduction="none") * scored
    else:
        scored = y != ignored
        losses = F.cross_entropy(logits.movedim(-1, 1), y, ignore_index=ignored, reduction="none")
    # The mean over the scored steps of each task, then over tasks.
    return (losses.flatten(1).sum(1) / scored.flatten(1).sum(1).clamp_min(1)).mean()


def sequence_errors(logits: Tensor, y: Tensor, ignored: int = -100) -> Tensor:
    """Mark which answers are wrong: 1 if wrong, 0 if right, NaN if the step is not scored.

    Args:
        logits: as for ``sequence_loss``. A bit is predicted as 1 if its logit is positive.
        y: as for ``sequence_loss``.
        ignored: as for ``sequence_loss``.

    Returns:
        The errors, in the shape of ``y``.

    Example:
        >>> sequence_errors(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1.0, 1.0, torch.nan]]))
        tensor([[0., 1., nan]])
    """
    if y.is_floating_point():
        wrong, scored = (logits > 0) != (y > 0.5), ~y.isnan()
    else:
        wrong, scored = logits.argmax(-1) != y, y != ignored
    return wrong.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~scored, torch.nan)
