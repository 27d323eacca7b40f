"""Losses and errors of sequences. Letters: B meta-batch, T time, N way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.functional.metric import full_precision


def sequence_loss(logits: Tensor, y: Tensor, ignored: int = -100) -> Tensor:
    """The negative log-likelihood of a sequence's answers, in nats, averaged over its scored steps (and bits), then
    over B [].

    Each task counts alike, however many of its steps are scored; one without any counts 0.

    Args:
        logits: [B, T, N] for labels, [B, T, *bits] for bits.
        y: labels [B, T], int64, ``ignored`` where no answer is scored; or bits [B, T, *bits], float, NaN there.
    """
    logits = full_precision(logits)
    if y.is_floating_point():
        scored = ~y.isnan()
        losses = F.binary_cross_entropy_with_logits(logits, y.nan_to_num(), reduction="none") * scored
    else:
        scored = y != ignored
        losses = F.cross_entropy(logits.movedim(-1, 1), y, ignore_index=ignored, reduction="none")
    return (losses.flatten(1).sum(1) / scored.flatten(1).sum(1).clamp_min(1)).mean()


def sequence_errors(logits: Tensor, y: Tensor, ignored: int = -100) -> Tensor:
    """Which answers are wrong: 1 where wrong, 0 where right, NaN where none is scored; in the shape of ``y``.

    Args:
        logits, y: as for ``sequence_loss``; a bit is said to be 1 where its logit is positive.
    """
    if y.is_floating_point():
        wrong, scored = (logits > 0) != (y > 0.5), ~y.isnan()
    else:
        wrong, scored = logits.argmax(-1) != y, y != ignored
    return wrong.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~scored, torch.nan)
