"""Copying: Graves, Wayne & Danihelka, "Neural Turing machines", 2014 (1410.5401), section 4.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kshot import Episode
from kshot.spec import Count
from kshot_copy.sequences import episode, expect_at_least, place, random_bits, spec_of


class Copy:
    """Tasks to reproduce a sequence of random bit vectors after a delimiter, without further input.

    With ``length`` vectors the sequence has T = 2 * length + 1 steps. The delimiter has a separate input channel,
    the last one. The last ``length`` steps are scored.

    Args:
        length: number of vectors to copy, or a range (least, greatest) from which each block of episodes draws.
        bits: number of bits in a vector.
        block: episodes with the same i // block have the same length.
        seed: fixes all episodes.

    Raises:
        OptionError: length, bits or block is below 1.

    Example:
        >>> from kshot_copy import Copy
        >>> episode = Copy(length=3, bits=2).sample("train", [0])
        >>> episode.query.x.shape, episode.query.y.shape
        (torch.Size([1, 7, 3]), torch.Size([1, 7, 2]))
    """

    def __init__(self, length: Count = (1, 20), bits: int = 8, block: int = 16, seed: int = 0) -> None:
        expect_at_least(1, "copy", length=length, bits=bits, block=block)
        self.bits, self.seed = bits, seed
        self.spec = spec_of(length, marks=1, bits=bits, block=block)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices``: x [B, T, bits + 1] and y [B, T, bits], NaN where nothing is scored."""
        keys, length = place(self.spec, self.seed, split, indices)
        shown = random_bits(keys, "bits", length, self.bits)
        x = torch.zeros(len(keys), 2 * length + 1, self.bits + 1)
        x[:, :length, :-1] = shown
        x[:, length, -1] = 1  # the delimiter
        return episode(keys, x, shown, split=split, indices=indices, seed=self.seed, query=length)
