"""Losses of sequences."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sequence_loss(logits: Tensor, y: Tensor, ignored: int = -100) -> Tensor:
    """The negative log-likelihood of a sequence's answers, in nats, averaged over scored steps (and bits) [].

    Args:
        logits: [B, T, N] for labels, [B, T, *bits] for bits.
        y: labels [B, T], int64, ``ignored`` where no answer is scored; or bits [B, T, *bits], float, NaN there.
    """
    if y.is_floating_point():
        scored = ~y.isnan()
        losses = F.binary_cross_entropy_with_logits(logits, y.nan_to_num(), reduction="none")
        return (losses * scored).sum() / scored.sum()
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=ignored)
