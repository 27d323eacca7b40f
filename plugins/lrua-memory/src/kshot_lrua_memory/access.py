"""Writing to a memory and reading it by content, as one differentiable function.

A memory is the largest tensor of a network that has one, and a sequence goes through it at every step: taken apart by
autograd, these five equations pass over it three times as often, and training takes a third longer.

Letters: B meta-batch, M slots, W slot width, R heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-6
"""Added to squared lengths, so that the cosine with a wiped slot is 0 and has a slope."""


def access(
    memory: Tensor, wiped: Tensor, weights: Tensor, key: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Wipe a slot, write the keys, find the keys, read.

    Args:
        memory: M_{t-1} [B, M, W].
        wiped: number of the slot that is set to zero before writing [B].
        weights: w^w_t [B, R, M].
        key: k_t [B, R, W], both what is written and what is looked for.
        strength: a factor of the cosine [].

    Returns:
        M_t [B, M, W], w^r_t [B, R, M], r_t [B, R, W].
    """
    return _Access.apply(memory, wiped, weights, key, strength)  # type: ignore[no-any-return]


class _Access(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, memory: Tensor, wiped: Tensor, weights: Tensor, key: Tensor, strength: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(memory.device.type, enabled=False):
            memory = _without(memory.clone(), wiped).baddbmm_(weights.mT, key)  # eq. 8
            per_slot = _one_by_length(memory).unsqueeze(1)  # [B, 1, M]
            per_key = _one_by_length(key).unsqueeze(2)  # [B, R, 1]
            unit = key * per_key
            cosine = torch.bmm(unit, memory.mT) * per_slot  # eq. 2
            w_r = (strength * cosine).softmax(-1)  # eq. 3
            reads = torch.bmm(w_r, memory)  # eq. 4
        ctx.save_for_backward(memory, wiped, weights, key, strength, per_slot, per_key, unit, cosine, w_r)
        return memory, w_r, reads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_memory: Tensor, d_w_r: Tensor, d_reads: Tensor) -> tuple[Tensor | None, ...]:
        """Each equation's gradient, from the last to the first; d_x is that of the loss by x."""
        memory, wiped, weights, key, strength, per_slot, per_key, unit, cosine, w_r = ctx.saved_tensors
        with torch.autocast(memory.device.type, enabled=False):
            d_w_r = torch.baddbmm(d_w_r, d_reads, memory.mT)
            d_scores = w_r * (d_w_r - (d_w_r * w_r).sum(-1, keepdim=True))
            d_product = strength * d_scores * per_slot  # by the product of unit key and slot, whose length is held
            d_length = -(strength * d_scores * cosine).sum(1) * per_slot[:, 0] ** 2  # the slot times this is by length
            d_memory = torch.baddbmm(d_memory, torch.cat([w_r, d_product], 1).mT, torch.cat([d_reads, unit], 1))
            d_memory.addcmul_(memory, d_length.unsqueeze(-1))
            d_unit = torch.bmm(d_product, memory)
            d_key = torch.baddbmm((d_unit - unit * (d_unit * unit).sum(-1, keepdim=True)) * per_key, weights, d_memory)
            d_weights = torch.bmm(key, d_memory.mT)
            return _without(d_memory, wiped), None, d_weights, d_key, (d_scores * cosine).sum()


def _without(memory: Tensor, slot: Tensor) -> Tensor:
    """``memory`` [B, M, W] with a slot of each [B] set to zero, in place."""
    memory[torch.arange(len(memory), device=memory.device), slot] = 0
    return memory


def _one_by_length(x: Tensor) -> Tensor:
    """1 / length of vectors [.., W] -> [..]."""
    squared: Tensor = torch.linalg.vector_norm(x, dim=-1).square_()
    return (squared + EPS).rsqrt_()
