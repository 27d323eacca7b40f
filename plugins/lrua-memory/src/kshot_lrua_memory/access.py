"""Writing to a memory and reading it by content, as one differentiable function.

The memory is the largest tensor of a network that has one, and every step of a sequence passes over it. If autograd
differentiates these five equations one by one, the backward pass reads the memory three times as often, and
training takes a third longer; therefore their joint gradient is written out here.

Letters: B meta-batch, M slots, W slot width, R heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-6
"""Added to squared lengths, so that the cosine with a wiped slot is 0 and has a finite gradient."""


def access(
    memory: Tensor, wiped: Tensor, weights: Tensor, key: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Wipe one slot, write the keys, then look up the keys and read (equations 8 and 2 to 4).

    Args:
        memory: M_{t-1} [B, M, W].
        wiped: the number of the slot that is set to zero before writing [B], int64.
        weights: the write weights w^w_t [B, R, M].
        key: k_t [B, R, W], which is both written and looked up.
        strength: the factor of the cosine in the softmax [].

    Returns:
        The memory M_t [B, M, W], the read weights w^r_t [B, R, M] and the reads r_t [B, R, W].

    Example:
        A key that is written to one slot is found there:

        >>> key = torch.tensor([[[3.0, 4.0]]])
        >>> memory, read_weights, reads = access(
        ...     torch.zeros(1, 2, 2), torch.tensor([0]), torch.tensor([[[0.0, 1.0]]]), key, torch.tensor(50.0)
        ... )
        >>> reads
        tensor([[[3., 4.]]])
    """
    return _Access.apply(memory, wiped, weights, key, strength)  # type: ignore[no-any-return]


class _Access(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, memory: Tensor, wiped: Tensor, weights: Tensor, key: Tensor, strength: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(memory.device.type, enabled=False):
            # Eq. 8: M_t = M_{t-1} without its least used slot, plus the keys at the write weights.
            memory = _without(memory.clone(), wiped).baddbmm_(weights.mT, key)
            # Eq. 2: the cosine of every key with every slot.
            per_slot = _one_by_length(memory).unsqueeze(1)  # [B, 1, M]
            per_key = _one_by_length(key).unsqueeze(2)  # [B, R, 1]
            unit = key * per_key
            cosine = torch.bmm(unit, memory.mT) * per_slot
            # Eq. 3: the read weights; eq. 4: the reads.
            w_r = (strength * cosine).softmax(-1)
            reads = torch.bmm(w_r, memory)
        ctx.save_for_backward(memory, wiped, weights, key, strength, per_slot, per_key, unit, cosine, w_r)
        return memory, w_r, reads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_memory: Tensor, d_w_r: Tensor, d_reads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of each equation, from the last to the first; d_x is the loss's derivative by x."""
        memory, wiped, weights, key, strength, per_slot, per_key, unit, cosine, w_r = ctx.saved_tensors
        with torch.autocast(memory.device.type, enabled=False):
            # Eq. 4 and the softmax of eq. 3.
            d_w_r = torch.baddbmm(d_w_r, d_reads, memory.mT)
            d_scores = w_r * (d_w_r - (d_w_r * w_r).sum(-1, keepdim=True))
            # Eq. 2, by the product of unit key and slot (the slot's length fixed), and by the length of the slot.
            d_product = strength * d_scores * per_slot
            d_length = -(strength * d_scores * cosine).sum(1) * per_slot[:, 0] ** 2  # to be multiplied by the slot
            # All that reaches M_t: from the caller, from the reads (eq. 4) and from the cosines (eq. 2).
            d_memory = torch.baddbmm(d_memory, torch.cat([w_r, d_product], 1).mT, torch.cat([d_reads, unit], 1))
            d_memory.addcmul_(memory, d_length.unsqueeze(-1))
            # All that reaches the keys: from the cosines, through their normalisation, and from writing (eq. 8).
            d_unit = torch.bmm(d_product, memory)
            d_key = torch.baddbmm((d_unit - unit * (d_unit * unit).sum(-1, keepdim=True)) * per_key, weights, d_memory)
            d_weights = torch.bmm(key, d_memory.mT)
            return _without(d_memory, wiped), None, d_weights, d_key, (d_scores * cosine).sum()


def _without(memory: Tensor, slot: Tensor) -> Tensor:
    """Set one slot [B] of each ``memory`` [B, M, W] to zero, in place."""
    memory[torch.arange(len(memory), device=memory.device), slot] = 0
    return memory


def _one_by_length(x: Tensor) -> Tensor:
    """Compute 1 / length of vectors [.., W] -> [..]."""
    squared: Tensor = torch.linalg.vector_norm(x, dim=-1).square_()
    return (squared + EPS).rsqrt_()
