"""Copying: Graves, Wayne & Danihelka, "Neural Turing machines", 2014 (1410.5401), section 4.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kshot import Episode
from kshot.spec import Count
from kshot_copy.sequences import episode, expect_at_least, place, random_bits, spec_of


class Copy:
    """Random bits are shown, then a mark; then, without further input, they are to be said again.

    For ``length`` vectors the sequence has T = 2 * length + 1 steps. The mark has an input of its own, the last; the
    last ``length`` steps are scored.

    Args:
        length: vectors to copy, or a range (least, greatest), drawn anew for each block of episodes.
        bits: of one vector.
        block: episodes with the same i // block have the same length.
        seed: fixes all episodes.

    Raises:
        OptionError: a length, bits or block below 1.
    """

    def __init__(self, length: Count = (1, 20), bits: int = 8, block: int = 16, seed: int = 0) -> None:
        expect_at_least(1, "copy", length=length, bits=bits, block=block)
        self.bits, self.seed = bits, seed
        self.spec = spec_of(length, marks=1, bits=bits, block=block)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``: x [B, T, bits + 1], y [B, T, bits], NaN where no answer is asked."""
        keys, length = place(self.spec, self.seed, split, indices)
        shown = random_bits(keys, "bits", length, self.bits)
        x = torch.zeros(len(keys), 2 * length + 1, self.bits + 1)
        x[:, :length, :-1] = shown
        x[:, length, -1] = 1
        return episode(keys, x, shown, split=split, indices=indices, seed=self.seed, query=length)
