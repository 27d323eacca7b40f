"""The memory of a neural Turing machine: Graves, Wayne & Danihelka, 2014 (1410.5401), section 3.

Letters: B meta-batch, M slots, W slot width, R read heads, H heads of either kind.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.errors import MisfitError, OptionError
from kshot.functional import full_precision


class NTMState(NamedTuple):
    """What the next step needs: the memory [B, M, W], and where each head was: [B, R, M] and [B, heads, M]."""

    memory: Tensor
    read_weights: Tensor
    write_weights: Tensor


# --- Addressing, section 3.3: for all heads at once ------------------------------------------------------------------


def cosine(key: Tensor, memory: Tensor, eps: float = 1e-8) -> Tensor:
    """Cosine of keys [B, H, W] and rows [B, M, W] -> [B, H, M]; of a row of zeros it is 0, with a slope (eq. 6)."""
    squares = key.square().sum(-1, keepdim=True) * memory.square().sum(-1).unsqueeze(1)
    return key @ memory.mT * (squares + eps * eps).rsqrt()


def move(weights: Tensor, shift: Tensor) -> Tensor:
    """Circular convolution of ``weights`` [B, H, M] with ``shift`` [B, H, 2 s + 1], over -s .. s slots (eq. 8).

    With all of ``shift`` on its last number each weight moves s slots up, as by ``torch.roll(weights, s, -1)``.
    """
    reach = shift.shape[-1] // 2
    terms = [weights.roll(k, -1) * shift[..., reach + k, None] for k in range(-reach, reach + 1) if k]
    return sum(terms, weights * shift[..., reach, None])


def sharpen(weights: Tensor, power: Tensor) -> Tensor:
    """w^gamma / sum w^gamma of ``weights`` [B, H, M] by ``power`` [B, H, 1] (eq. 9).

    As the softmax of gamma log w, which never comes to 0 / 0. A weight of 0 counts as the square of the rounding error,
    where the logarithm still has a slope.
    """
    least = torch.finfo(weights.dtype).eps ** 2
    return (power * (weights + least).log()).softmax(-1)


def address(
    memory: Tensor, before: Tensor, key: Tensor, strength: Tensor, gate: Tensor, shift: Tensor, power: Tensor
) -> Tensor:
    """Where the heads look [B, H, M]: by content, or on from where they were ``before``, moved and sharpened.

    Args:
        memory: [B, M, W].
        before: w_{t-1} [B, H, M].
        key: k [B, H, W].
        strength, gate, power: beta >= 0, g in (0, 1) and gamma >= 1, each [B, H, 1].
        shift: s [B, H, 2 s + 1], which sums to 1.
    """
    content = (strength * cosine(key, memory)).softmax(-1)  # eq. 5
    gated = torch.lerp(before, content, gate)  # eq. 7
    return sharpen(move(gated, shift), power)


# --- Writing and reading, sections 3.1 and 3.2 -----------------------------------------------------------------------


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Rows [B, M, W] after the heads at ``weights`` [B, H, M] erased ``erase`` and added ``add``, each [B, H, W].

    All heads erase before any adds, so that their order does not matter (eq. 3, 4).
    """
    for head in range(weights.shape[1]):
        memory = memory * (1 - weights[:, head, :, None] * erase[:, head, None])
    return torch.baddbmm(memory, weights.mT, add)


class NTMMemory(nn.Module):
    """Slots that are found by their content or from where a head was before, erased, added to and read.

    All heads look at the memory of the step before, the write heads write, and the read heads read what is then there
    (eq. 2). It begins with every slot constant, which trains quickest (Collier & Beel 2018, 1807.08518), and every head
    at slot 0. It has no parameters of its own.

    Args:
        slots, width, reads: M, W and R.
        writes: write heads.
        reach: a head moves at most so many slots a step.
        initial: every number of a wiped memory.

    Raises:
        OptionError: a size that is not positive, more heads than slots, or a reach around the whole memory.
        MisfitError: at ``step``: an interface of another length.
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
        if wrong := [f"{name} is {size}" for name, size in sizes.items() if size < 1]:
            raise OptionError(f"ntm-memory: {', '.join(wrong)}; expected at least 1")
        if max(reads, writes) > slots:
            raise OptionError(
                f"ntm-memory: {reads} read and {writes} write heads came for {slots} slots; expected at most one of "
                "either kind a slot: raise slots"
            )
        if not 0 <= 2 * reach < slots:
            raise OptionError(f"ntm-memory: reach is {reach} of {slots} slots, expected 0 to {(slots - 1) // 2}")
        self.slots, self.width, self.reads, self.writes = slots, width, reads, writes
        self.initial = initial
        heads = reads + writes
        # One cut a squashing function: keys, added vectors; strengths and powers; gates and erased; shifts.
        self.cuts = [heads * width, writes * width, 2 * heads, heads, writes * width, heads * (2 * reach + 1)]
        self.interface_size = sum(self.cuts)
        self.read_size = reads * width
        self.register_buffer("like", torch.empty(0), persistent=False)  # of this device and precision are the states

    def initial_state(self, batch_size: int) -> NTMState:
        """A wiped memory for ``batch_size`` episodes."""
        like: Tensor = self.get_buffer("like")
        start = like.new_zeros(batch_size, self.reads + self.writes, self.slots)
        start[:, :, 0] = 1
        memory = like.new_full((batch_size, self.slots, self.width), self.initial)
        return NTMState(memory, start[:, : self.reads], start[:, self.reads :])

    def step(self, interface: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """``interface`` [B, interface_size] -> reads [B, R * W] and the next state."""
        B, heads = len(interface), self.reads + self.writes
        if interface.shape[-1] != self.interface_size:
            raise MisfitError(
                f"ntm-memory: an interface of {interface.shape[-1]} numbers came, expected interface_size "
                f"{self.interface_size} for {self.reads} read and {self.writes} write heads of width {self.width}"
            )
        with torch.autocast(interface.device.type, enabled=False):  # a memory that is rounded at each step forgets
            key, add, positive, gate, erase, shift = torch.split(full_precision(interface), self.cuts, -1)
            strength, power = F.softplus(positive).view(B, 2, heads, 1).unbind(1)
            weights = address(
                state.memory,
                torch.cat([state.read_weights, state.write_weights], 1),
                key.view(B, heads, -1),
                strength,
                gate.sigmoid().unsqueeze(-1),
                shift.view(B, heads, -1).softmax(-1),
                1 + power,
            )
            reading, writing = torch.split(weights, [self.reads, self.writes], 1)
            erased, added = erase.sigmoid().view(B, self.writes, -1), add.view(B, self.writes, -1)
            memory = write(state.memory, writing, erased, added)
            return (reading @ memory).flatten(1), NTMState(memory, reading, writing)
