"""Addressing of a neural Turing machine's memory, for all heads at once: Graves et al. 2014 (1410.5401), section 3.3.

Letters: B meta-batch, M slots, W slot width, H heads of either kind.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosine(key: Tensor, memory: Tensor, eps: float = 1e-8) -> Tensor:
    """Compute the cosine of keys [B, H, W] and rows [B, M, W] -> [B, H, M] (eq. 6).

    The cosine with a row of zeros is 0 and has a finite gradient.

    Example:
        >>> cosine(torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]))
        tensor([[[1., 0., 0.]]])
    """
    squares = key.square().sum(-1, keepdim=True) * memory.square().sum(-1).unsqueeze(1)
    return key @ memory.mT * (squares + eps * eps).rsqrt()


def move(weights: Tensor, shift: Tensor) -> Tensor:
    """Convolve ``weights`` [B, H, M] circularly with ``shift`` [B, H, 2 s + 1], over -s .. s slots (eq. 8).

    If the last number of ``shift`` is 1 and the others are 0, each weight moves s slots up, as by
    ``torch.roll(weights, s, -1)``.

    Example:
        >>> move(torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]]))
        tensor([[[0., 1., 0.]]])
    """
    reach = shift.shape[-1] // 2
    terms = [weights.roll(k, -1) * shift[..., reach + k, None] for k in range(-reach, reach + 1) if k]
    return sum(terms, weights * shift[..., reach, None])


def sharpen(weights: Tensor, power: Tensor) -> Tensor:
    """Compute w^gamma / sum w^gamma of ``weights`` [B, H, M] by ``power`` [B, H, 1] (eq. 9).

    It is computed as the softmax of gamma log w, which is never 0 / 0. The square of the rounding error is added to
    each weight, so that the logarithm of a weight of 0 has a finite gradient.

    Example:
        >>> sharpen(torch.tensor([[[0.5, 0.25, 0.25]]]), torch.tensor([[[2.0]]]))
        tensor([[[0.6667, 0.1667, 0.1667]]])
    """
    least = torch.finfo(weights.dtype).eps ** 2
    return (power * (weights + least).log()).softmax(-1)


def address(
    memory: Tensor, before: Tensor, key: Tensor, strength: Tensor, gate: Tensor, shift: Tensor, power: Tensor
) -> Tensor:
    """Compute the weights w_t of the heads [B, H, M], by content and by location (section 3.3).

    Args:
        memory: M_{t-1} [B, M, W].
        before: the weights of the step before, w_{t-1} [B, H, M].
        key: k [B, H, W].
        strength: beta >= 0 [B, H, 1], how strongly the content decides.
        gate: g in (0, 1) [B, H, 1]: 1 addresses by content, 0 continues from ``before``.
        shift: s [B, H, 2 s + 1], which sums to 1.
        power: gamma >= 1 [B, H, 1].

    Example:
        With a gate of 0, the weight moves on from slot 0 to slot 1:

        >>> zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        >>> before, shift = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]])
        >>> address(torch.zeros(1, 3, 2), before, torch.ones(1, 1, 2), one, zero, shift, one).round()
        tensor([[[0., 1., 0.]]])
    """
    content = (strength * cosine(key, memory)).softmax(-1)  # eq. 5: by content
    gated = torch.lerp(before, content, gate)  # eq. 7: interpolate with the weights of the step before
    return sharpen(move(gated, shift), power)  # eq. 8 and 9: shift and sharpen
