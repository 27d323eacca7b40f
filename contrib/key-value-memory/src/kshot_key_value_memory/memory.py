"""A memory of keys and values: what Miller et al., "Key-value memory networks for directly reading documents", 2016
(1606.03126) call key addressing and value reading, with a memory that is written at every step instead of given.

Letters: B meta-batch, M slots, W slot width, R read heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.errors import MisfitError, OptionError
from kshot.functional import full_precision


class KeyValueState(NamedTuple):
    """Everything that the next step needs, and the last write weights, for pictures.

    Attributes:
        keys, values: of all slots, each [B, M, W].
        written: how much was ever written to each slot, from 0 (empty) to 1 [B, M].
        read_weights: the weights of the read heads [B, R, M].
        write_weights: 1 at the slot that was written to, 0 at the others [B, 1, M].
    """

    keys: Tensor
    values: Tensor
    written: Tensor
    read_weights: Tensor
    write_weights: Tensor


class KeyValueMemory(nn.Module):
    """A memory that writes a key and a value to the next slot at every step, as far as a gate is open.

    Slots are filled one after another; after the last slot the first one is replaced. Each read head compares its
    query with the keys of the slots that were written to, and reads the mean of their values, weighted by a softmax.
    The interface is a key and a value of width W, the gate, and a query of width W for each head.

    Args:
        slots, width, reads: M, W and R.

    Raises:
        OptionError: a size is not positive.
        MisfitError: (by ``step``) the interface has another length than ``interface_size``.

    Example:
        >>> memory = KeyValueMemory(slots=6, width=4, reads=2)
        >>> reads, state = memory.step(torch.zeros(3, memory.interface_size), memory.initial_state(3))
        >>> tuple(reads.shape), tuple(state.read_weights.shape)
        ((3, 8), (3, 2, 6))
    """

    def __init__(self, slots: int = 128, width: int = 20, reads: int = 1) -> None:
        super().__init__()
        sizes = {"slots": slots, "width": width, "reads": reads}
        if wrong := [f"{name} {size}" for name, size in sizes.items() if size < 1]:
            raise OptionError(f"key-value-memory: got {', '.join(wrong)}, expected at least 1; raise it")
        self.slots, self.width, self.reads = slots, width, reads
        self.cuts = [width, width, 1, reads * width]  # key, value, gate and queries
        self.interface_size = sum(self.cuts)
        self.read_size = reads * width
        # Queries and keys are between -1 and 1, so their product is at most W; the scale is learned.
        self.scale = nn.Parameter(torch.tensor(1.0))

    def initial_state(self, batch_size: int) -> KeyValueState:
        """Return the state of an empty memory for ``batch_size`` episodes."""
        B, M, W = batch_size, self.slots, self.width
        zeros = self.scale.new_zeros
        before_first = zeros(B, 1, M)
        before_first[:, :, -1] = 1  # the slot after the last one is the first
        return KeyValueState(zeros(B, M, W), zeros(B, M, W), zeros(B, M), zeros(B, self.reads, M), before_first)

    def step(self, interface: Tensor, state: KeyValueState) -> tuple[Tensor, KeyValueState]:
        """Write and read once.

        Args:
            interface: a key, a value, a gate, and the queries of all heads [B, interface_size].
            state: the state after the step before.

        Returns:
            The reads of all heads [B, R * W], and the next state.
        """
        if interface.shape[-1] != self.interface_size:
            raise MisfitError(
                f"key-value-memory: got an interface of {interface.shape[-1]} numbers, expected interface_size "
                f"{self.interface_size} for {self.reads} heads of width {self.width}; size the layer that emits it by "
                "interface_size"
            )
        with torch.autocast(interface.device.type, enabled=False):  # a memory that is rounded at every step forgets
            key, value, gate, queries = torch.split(full_precision(interface), self.cuts, -1)
            # Write: move on by one slot, and replace its key and its value as far as the gate is open.
            where = state.write_weights.roll(1, -1)  # [B, 1, M]
            share = where.mT * gate.sigmoid().unsqueeze(-1)  # [B, M, 1]
            keys = torch.lerp(state.keys, key.tanh().unsqueeze(1), share)
            values = torch.lerp(state.values, value.unsqueeze(1), share)
            written = torch.lerp(state.written, torch.ones_like(state.written), share.squeeze(-1))
            # Read: a softmax over the slots, in which each counts as much as was written to it; an empty one does not.
            score = self.scale * (queries.view(len(key), self.reads, -1).tanh() @ keys.mT)  # [B, R, M]
            written_to = written.unsqueeze(1)
            score = score.masked_fill(written_to == 0, torch.finfo(score.dtype).min)
            weights = written_to * (score - score.amax(-1, keepdim=True)).exp()
            weights = weights / (weights.sum(-1, keepdim=True) + torch.finfo(weights.dtype).eps)
            return (weights @ values).flatten(1), KeyValueState(keys, values, written, weights, where)
