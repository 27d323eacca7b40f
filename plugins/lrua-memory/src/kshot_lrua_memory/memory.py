"""Least recently used access: Santoro, Bartunov, Botvinick, Wierstra & Lillicrap, "One-shot learning with
memory-augmented neural networks", 2016 (1605.06065), section 3.

Letters: B meta-batch, M slots, W slot width, R heads, each of which reads and writes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.errors import MisfitError, OptionError
from kshot.functional import full_precision
from kshot_lrua_memory.access import access


class LRUAState(NamedTuple):
    """Everything that the next step needs, and the last write weights, for pictures.

    Attributes:
        memory: M_t [B, M, W].
        read_weights, write_weights: w^r_t and w^w_t of each head [B, R, M].
        usage: w^u_t [B, M], without a gradient.
    """

    memory: Tensor
    read_weights: Tensor
    write_weights: Tensor
    usage: Tensor


def least_used(usage: Tensor, count: int) -> Tensor:
    """Return the numbers of the ``count`` least used slots, the least used first: usage [B, M] -> [B, count].

    Among equally used slots those with lower numbers come first. At the start all slots are equally unused, and the
    threshold of eq. 6 alone would mark every one of them.

    Example:
        >>> least_used(torch.tensor([[0.5, 0.0, 2.0, 0.0]]), 2)
        tensor([[1, 3]])
    """
    return usage.argsort(dim=-1, stable=True)[:, :count]


class LRUAMemory(nn.Module):
    """A memory that is read by content alone, and written where a head last read or at the least recently used slots.

    In each step the least used slot is wiped, the heads write their keys, and then they read the new memory. An
    episode starts with a wiped memory, no reads and no usage. The interface is, for each head, a key k_t of width W
    and a gate alpha_t.

    Args:
        slots, width, reads: M, W and R.
        decay: gamma, the share of the usage that remains after a step.
        strength: the initial value of a learned strength of the keys, a factor of the cosine in eq. 3. None is the
            paper's equation, without a strength; since a cosine is at most 1, the softmax over 128 slots then gives
            the best slot at most 5 %.

    Raises:
        OptionError: a size is not positive, there are more heads than slots, the decay is outside [0, 1], or the
            strength is not positive and finite.
        MisfitError: (by ``step``) the interface has another length than ``interface_size``.

    Example:
        >>> memory = LRUAMemory(slots=6, width=4, reads=2)
        >>> reads, state = memory.step(torch.zeros(3, memory.interface_size), memory.initial_state(3))
        >>> tuple(reads.shape), tuple(state.read_weights.shape)
        ((3, 8), (3, 2, 6))
    """

    def __init__(
        self,
        slots: int = 128,
        width: int = 40,
        reads: int = 4,
        *,
        decay: float = 0.99,
        strength: float | None = None,
    ) -> None:
        super().__init__()
        sizes = {"slots": slots, "width": width, "reads": reads}
        if wrong := [f"{name} {size}" for name, size in sizes.items() if size < 1]:
            raise OptionError(f"lrua-memory: got {', '.join(wrong)}, expected at least 1; raise it")
        if reads > slots:
            raise OptionError(
                f"lrua-memory: got reads {reads} and slots {slots}, expected at least one slot per head, because each "
                "head needs a least used slot; lower reads or raise slots"
            )
        if not 0 <= decay <= 1:
            raise OptionError(f"lrua-memory: got decay {decay}, expected a number from 0 to 1; change it")
        if strength is not None and not 0 < strength < math.inf:
            raise OptionError(
                f"lrua-memory: got strength {strength}, expected a positive finite number or None; change it"
            )
        self.slots, self.width, self.reads, self.decay = slots, width, reads, decay
        self.interface_size = reads * (width + 1)
        self.read_size = reads * width
        # The strength is learned as its logarithm, which keeps it positive.
        log_strength = torch.tensor(math.log(strength or 1.0))
        if strength is None:
            self.register_buffer("log_strength", log_strength, persistent=False)
        else:
            self.log_strength = nn.Parameter(log_strength)

    def initial_state(self, batch_size: int) -> LRUAState:
        """Return the state of a wiped memory for ``batch_size`` episodes."""
        B, M, R = batch_size, self.slots, self.reads
        zeros = self.log_strength.new_zeros
        return LRUAState(zeros(B, M, self.width), zeros(B, R, M), zeros(B, R, M), zeros(B, M))

    def step(self, interface: Tensor, state: LRUAState) -> tuple[Tensor, LRUAState]:
        """Write and read once.

        Args:
            interface: all keys, then all gates [B, R * W + R].
            state: the state after the step before.

        Returns:
            The reads of all heads [B, R * W], and the next state.
        """
        if interface.shape[-1] != self.interface_size:
            raise MisfitError(
                f"lrua-memory: got an interface of {interface.shape[-1]} numbers, expected interface_size "
                f"{self.interface_size} for {self.reads} heads of width {self.width}; size the layer that emits it by "
                "interface_size"
            )
        keys, gates = torch.split(full_precision(interface), [self.read_size, self.reads], -1)
        key = keys.view(-1, self.reads, self.width)
        # Eq. 6: mark the least used slots, as many as there are heads.
        least = least_used(state.usage, self.reads)
        w_lu = torch.zeros_like(state.usage).scatter_(-1, least, 1.0).unsqueeze(1)
        # Eq. 7: w^w_t = sigmoid(alpha) w^r_{t-1} + (1 - sigmoid(alpha)) w^lu_{t-1}.
        w_w = torch.lerp(w_lu, state.read_weights, gates.sigmoid().unsqueeze(-1))
        # Eq. 8, then 2 to 4: wipe the least used slot, write, look up the keys in the new memory, read.
        memory, w_r, reads = access(state.memory, least[:, 0], w_w, key, self.log_strength.exp())
        # Eq. 5: w^u_t = gamma w^u_{t-1} + w^r_t + w^w_t. Usage only orders the slots, so it needs no gradient.
        used = (w_r.detach() + w_w.detach()).sum(1)
        usage = torch.add(used, state.usage, alpha=self.decay)
        return reads.flatten(1), LRUAState(memory, w_r, w_w, usage)
