"""The first stage of fine-tuning: a linear head by cosine, which starts from prototypes and stops by folds.

Letters: N way, S support size, n examples, F folds, D embedding. W [..., N, D] are the vectors of the classes.
Embeddings z have length 1. The leading axes ``...`` are any number of batch axes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.functional import full_precision


def cosine_logits(z: Tensor, W: Tensor, scale: Tensor | float) -> Tensor:
    """Compute scale * cos(z, w_c) [..., n, N] for embeddings [..., n, D] of any length.

    Example:
        >>> cosine_logits(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]]), 10.0).tolist()
        [[10.0, 0.0]]
    """
    with torch.autocast(z.device.type, enabled=False):
        return scale * (F.normalize(full_precision(z), dim=-1) @ F.normalize(W, dim=-1).mT)


def losses(z: Tensor, y: Tensor, W: Tensor, scale: Tensor | float, counts: Tensor) -> Tensor:
    """Compute the mean cross-entropy [...] over the examples that count.

    Args:
        z: embeddings [..., S, D].
        y: labels [..., S].
        W: [..., N, D].
        scale: of the logits.
        counts: 1 for an example that counts, else 0 [..., S]. Where none counts, the loss is 0.

    Example:
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> losses(z, y, torch.eye(2), 0.0, torch.tensor([1.0, 0.0])).exp()
        tensor(2.)
    """
    log_p = cosine_logits(z, W, scale).log_softmax(-1)
    each = -log_p.gather(-1, y.unsqueeze(-1).expand(*log_p.shape[:-1], 1)).squeeze(-1)
    return (each * counts).sum(-1) / counts.sum(-1).clamp_min(1)


def prototypes(z: Tensor, y: Tensor, way: int, counts: Tensor) -> Tensor:
    """Compute the mean embedding of the examples of each class that count, scaled to length 1 [..., N, D].

    Args:
        z, y, counts: see ``losses``.
        way: N.
    """
    members = F.one_hot(y, way).to(z) * counts.unsqueeze(-1)
    return F.normalize(members.mT @ z, dim=-1)  # the length of the sum does not matter


def descended(z: Tensor, y: Tensor, W: Tensor, scale: Tensor | float, counts: Tensor, lr: float) -> Tensor:
    """Take one step of gradient descent on the loss of each head, W - lr * gradient [..., N, D]."""
    gradient: Tensor = torch.func.grad(lambda W: losses(z, y, W, scale, counts).sum())(W)
    return W - lr * gradient


def best_steps(
    z: Tensor, y: Tensor, way: int, fold: Tensor, folds: int, *, scale: Tensor | float, lr: float, most: int, alone: int
) -> Tensor:
    """Choose the number of steps of the head: with the least loss on examples that were left out.

    Each fold is left out in turn: its head starts from the prototypes of the other examples, and descends on these.

    Args:
        z: embeddings [B, S, D].
        y: labels [B, S].
        way: N.
        fold: of each example [B, S]; -1 for an example that is never left out, see ``kshot.functional.class_folds``.
        folds: F.
        scale, lr: of the logits, and of the descent.
        most: the greatest number of steps.
        alone: the number of steps of a task whose classes all have a single example, so that nothing can be left out.

    Returns:
        The numbers [B], int64.
    """
    out = fold.unsqueeze(1) == torch.arange(folds, device=y.device).unsqueeze(1)  # [B, F, S]
    left, kept = out.to(z), (~out).to(z)
    z, y = z.unsqueeze(1), y.unsqueeze(1)
    W = prototypes(z, y, way, kept)
    history = []
    for step in range(most + 1):
        # The mean of each fold, weighted by its number of examples, is the sum over all left-out examples.
        history.append((losses(z, y, W, scale, left) * left.sum(-1)).sum(1))
        if step < most:
            W = descended(z, y, W, scale, kept, lr)
    best = torch.stack(history).argmin(0)
    return torch.where((fold >= 0).any(1), best, min(alone, most))


def fitted_head(
    z: Tensor, y: Tensor, way: int, steps: Tensor, *, scale: Tensor | float, lr: float, most: int
) -> Tensor:
    """Start from the prototypes and take ``steps`` [B] steps on the whole support: W [B, N, D]."""
    everything = torch.ones_like(y, dtype=z.dtype)
    W = prototypes(z, y, way, everything)
    for step in range(most):
        W = torch.where((step < steps).view(-1, 1, 1), descended(z, y, W, scale, everything, lr), W)
    return W
