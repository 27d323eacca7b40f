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
    """What the next step needs, and the last write weights for those who draw them.

    Attributes:
        memory: M_t [B, M, W].
        read_weights, write_weights: w^r_t and w^w_t of each head [B, R, M].
        usage: w^u_t [B, M].
    """

    memory: Tensor
    read_weights: Tensor
    write_weights: Tensor
    usage: Tensor


def least_used(usage: Tensor, count: int) -> Tensor:
    """Numbers of the ``count`` least used slots, the least used first: usage [B, M] -> [B, count].

    Of slots used alike, those with lower numbers come first: at the start all are, and the threshold of eq. 6 alone
    would mark every one of them.
    """
    return usage.argsort(dim=-1, stable=True)[:, :count]


class LRUAMemory(nn.Module):
    """Slots that are found by their content alone, and written where a head last read or where nobody has for longest.

    In a step the least used slot is wiped, the heads write their keys, and then read what is there. All begins wiped:
    no content, nothing read, nothing used. The interface is, for each head, a key k_t of width W and a gate alpha_t.

    Args:
        slots, width, reads: M, W and R.
        decay: gamma, how much of the usage is left after a step.
        strength: where the learned strength of the keys begins, a factor of the cosine in eq. 3; None is the paper's,
            without one. A cosine is at most 1, so that of 128 slots the softmax gives the best at most 5 %.

    Raises:
        OptionError: a size that is not positive, more heads than slots, a decay outside [0, 1], a strength <= 0.
        MisfitError: at ``step``: an interface of another length.
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
        if wrong := [f"{name} is {size}" for name, size in sizes.items() if size < 1]:
            raise OptionError(f"lrua-memory: {', '.join(wrong)}; expected at least 1")
        if reads > slots:
            raise OptionError(
                f"lrua-memory: reads is {reads} for {slots} slots; each head needs a least used slot of its own: lower "
                "reads or raise slots"
            )
        if not 0 <= decay <= 1:
            raise OptionError(f"lrua-memory: decay is {decay}, expected a share of 0 to 1")
        if strength is not None and not 0 < strength < math.inf:
            raise OptionError(f"lrua-memory: strength is {strength}, expected a positive number, or none")
        self.slots, self.width, self.reads, self.decay = slots, width, reads, decay
        self.interface_size = reads * (width + 1)
        self.read_size = reads * width
        log_strength = torch.tensor(math.log(strength or 1.0))
        if strength is None:
            self.register_buffer("log_strength", log_strength, persistent=False)
        else:
            self.log_strength = nn.Parameter(log_strength)

    def initial_state(self, batch_size: int) -> LRUAState:
        """A wiped memory for ``batch_size`` episodes."""
        B, M, R = batch_size, self.slots, self.reads
        zeros = self.log_strength.new_zeros
        return LRUAState(zeros(B, M, self.width), zeros(B, R, M), zeros(B, R, M), zeros(B, M))

    def step(self, interface: Tensor, state: LRUAState) -> tuple[Tensor, LRUAState]:
        """``interface`` [B, R * W + R]: all keys, then all gates -> reads [B, R * W] and the next state."""
        if interface.shape[-1] != self.interface_size:
            raise MisfitError(
                f"lrua-memory: an interface of {interface.shape[-1]} numbers came, expected interface_size "
                f"{self.interface_size} for {self.reads} heads of width {self.width}"
            )
        keys, gates = torch.split(full_precision(interface), [self.read_size, self.reads], -1)
        key = keys.view(-1, self.reads, self.width)
        least = least_used(state.usage, self.reads)
        w_lu = torch.zeros_like(state.usage).scatter_(-1, least, 1.0).unsqueeze(1)  # eq. 6
        w_w = torch.lerp(w_lu, state.read_weights, gates.sigmoid().unsqueeze(-1))  # eq. 7: sigma(alpha) is the reads'
        memory, w_r, reads = access(state.memory, least[:, 0], w_w, key, self.log_strength.exp())  # eq. 8, 2 - 4
        used = (w_r.detach() + w_w.detach()).sum(1)  # an order of slots has no slope
        usage = torch.add(used, state.usage, alpha=self.decay)  # eq. 5
        return reads.flatten(1), LRUAState(memory, w_r, w_w, usage)
