"""The memory of a neural Turing machine: Graves, Wayne & Danihelka, 2014 (1410.5401), section 3.

The addressing of section 3.3 is in ``addressing.py``.

Letters: B meta-batch, M slots, W slot width, R read heads, H heads of either kind.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.errors import MisfitError, OptionError
from kshot.functional import full_precision
from kshot_ntm_memory.addressing import address


class NTMState(NamedTuple):
    """Everything that the next step needs.

    Attributes:
        memory: M_t [B, M, W].
        read_weights: the weights of the read heads [B, R, M].
        write_weights: the weights of the write heads [B, heads, M].
    """

    memory: Tensor
    read_weights: Tensor
    write_weights: Tensor


# --- Writing and reading, sections 3.1 and 3.2 -----------------------------------------------------------------------


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Return the memory [B, M, W] after the heads at ``weights`` [B, H, M] have erased and added (eq. 3 and 4).

    All heads erase before any head adds, so that their order does not matter.

    Args:
        memory: M_{t-1} [B, M, W].
        erase, add: e in (0, 1) and a of each head [B, H, W].

    Example:
        Full weight and full erasure replace a row:

        >>> one_hot, ones = torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, 2)
        >>> write(torch.full((1, 2, 2), 7.0), one_hot, ones, 3 * ones)
        tensor([[[3., 3.],
                 [7., 7.]]])
    """
    # Eq. 3, head after head: M = M_{t-1} (1 - w e^T).
    for head in range(weights.shape[1]):
        memory = memory * (1 - weights[:, head, :, None] * erase[:, head, None])
    return torch.baddbmm(memory, weights.mT, add)  # eq. 4: M_t = M + sum over heads of w a^T


class NTMMemory(nn.Module):
    """A memory that is addressed by content and by location, and whose slots are erased, added to and read.

    All heads are addressed in the memory of the step before; then the write heads write, and the read heads read the
    new memory (eq. 2). Every number of a wiped memory is the same constant, which trains fastest (Collier & Beel 2018,
    1807.08518), and every head starts at slot 0. The memory has no parameters.

    Args:
        slots, width, reads: M, W and R.
        writes: the number of write heads.
        reach: s, the greatest number of slots that a head moves in a step.
        initial: the value of every number of a wiped memory.

    Raises:
        OptionError: a size is not positive, there are more heads of a kind than slots, or ``reach`` is negative or
            leads around the memory.
        MisfitError: (by ``step``) the interface has another length than ``interface_size``.

    Example:
        >>> memory = NTMMemory(slots=6, width=4, reads=2)
        >>> reads, state = memory.step(torch.zeros(3, memory.interface_size), memory.initial_state(3))
        >>> tuple(reads.shape), tuple(state.write_weights.shape)
        ((3, 8), (3, 1, 6))
    """

    def __init__(
        self,
        slots: int = 128,
        width: int = 20,
        reads: int = 1,
        *,
        writes: int = 1,
        reach: int = 1,
        initial: float = 1e-6,
    ) -> None:
        super().__init__()
        sizes = {"slots": slots, "width": width, "reads": reads, "writes": writes}
        if wrong := [f"{name} {size}" for name, size in sizes.items() if size < 1]:
            raise OptionError(f"ntm-memory: got {', '.join(wrong)}, expected at least 1; raise it")
        if max(reads, writes) > slots:
            raise OptionError(
                f"ntm-memory: got {reads} read and {writes} write heads for {slots} slots, expected at most "
                "one head of either kind per slot; raise slots"
            )
        if not 0 <= 2 * reach < slots:
            raise OptionError(
                f"ntm-memory: got reach {reach} for {slots} slots, expected 0 to {(slots - 1) // 2}; lower reach or "
                "raise slots"
            )
        self.slots, self.width, self.reads, self.writes = slots, width, reads, writes
        self.initial = initial
        heads = reads + writes
        # The interface is cut into what shares a squashing function: the keys; the added vectors; strengths and
        # powers; gates; the erase vectors; shifts.
        self.cuts = [heads * width, writes * width, 2 * heads, heads, writes * width, heads * (2 * reach + 1)]
        self.interface_size = sum(self.cuts)
        self.read_size = reads * width
        self.register_buffer("like", torch.empty(0), persistent=False)  # gives states their device and precision

    def initial_state(self, batch_size: int) -> NTMState:
        """Return the state of a wiped memory for ``batch_size`` episodes, with every head at slot 0."""
        like: Tensor = self.get_buffer("like")
        start = like.new_zeros(batch_size, self.reads + self.writes, self.slots)
        start[:, :, 0] = 1
        memory = like.new_full((batch_size, self.slots, self.width), self.initial)
        return NTMState(memory, start[:, : self.reads], start[:, self.reads :])

    def step(self, interface: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """Write and read once.

        Args:
            interface: what the controller emits [B, interface_size].
            state: the state after the step before.

        Returns:
            The reads of all read heads [B, R * W], and the next state.
        """
        B, heads = len(interface), self.reads + self.writes
        if interface.shape[-1] != self.interface_size:
            raise MisfitError(
                f"ntm-memory: got an interface of {interface.shape[-1]} numbers, expected interface_size "
                f"{self.interface_size} for {self.reads} read and {self.writes} write heads of width {self.width}; "
                "size the layer that emits it by interface_size"
            )
        with torch.autocast(interface.device.type, enabled=False):  # a memory that is rounded at every step forgets
            # Squash the controller's numbers into the ranges of section 3.3.
            key, add, positive, gate, erase, shift = torch.split(full_precision(interface), self.cuts, -1)
            strength, power = F.softplus(positive).view(B, 2, heads, 1).unbind(1)
            # Address all heads at once, in the memory of the step before (eq. 5 to 9).
            weights = address(
                state.memory,
                torch.cat([state.read_weights, state.write_weights], 1),
                key.view(B, heads, -1),
                strength,
                gate.sigmoid().unsqueeze(-1),
                shift.view(B, heads, -1).softmax(-1),
                1 + power,
            )
            # Write, then read the new memory (eq. 2 to 4).
            reading, writing = torch.split(weights, [self.reads, self.writes], 1)
            erased, added = erase.sigmoid().view(B, self.writes, -1), add.view(B, self.writes, -1)
            memory = write(state.memory, writing, erased, added)
            return (reading @ memory).flatten(1), NTMState(memory, reading, writing)
