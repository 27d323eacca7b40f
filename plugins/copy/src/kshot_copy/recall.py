"""Associative recall: Graves, Wayne & Danihelka, "Neural Turing machines", 2014 (1410.5401), section 4.3."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kshot import Episode
from kshot.randomness import below, draws
from kshot.spec import Count
from kshot_copy.sequences import episode, expect_at_least, place, random_bits, spec_of


class AssociativeRecall:
    """Tasks to output the next item of a list, given the list and then one of its items again.

    An item is ``length`` random bit vectors, with a delimiter before it. The queried item is any item but the last,
    between two delimiters of another kind. The sequence has T = (items + 2) * (length + 1) steps, of which the last
    ``length`` are scored. The last input channel but one is the delimiter of items, the last one that of the query.
    Two items are equal by chance only, with probability 2^-(length * bits).

    Args:
        items: number of items in a list, or a range (least, greatest) from which each block of episodes draws.
        length: number of vectors in an item.
        bits: number of bits in a vector.
        block: episodes with the same i // block have the same number of items.
        seed: fixes all episodes.

    Raises:
        OptionError: items is below 2, or length, bits or block is below 1.

    Example:
        >>> from kshot_copy import AssociativeRecall
        >>> episode = AssociativeRecall(items=4, length=2, bits=5).sample("train", [0])
        >>> episode.query.x.shape, episode.query.y.shape
        (torch.Size([1, 18, 7]), torch.Size([1, 18, 5]))
    """

    def __init__(self, items: Count = (2, 6), length: int = 3, bits: int = 6, block: int = 16, seed: int = 0) -> None:
        expect_at_least(2, "associative-recall", items=items)
        expect_at_least(1, "associative-recall", length=length, bits=bits, block=block)
        self.length, self.bits, self.seed = length, bits, seed
        self.spec = spec_of(items, marks=2, bits=bits, block=block)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices``: x [B, T, bits + 2] and y [B, T, bits], NaN where nothing is scored."""
        keys, items = place(self.spec, self.seed, split, indices)
        B, n, bits = len(keys), self.length, self.bits
        shown = random_bits(keys, "bits", items, n, bits)
        asked = torch.from_numpy(below(draws(keys, "question", 1), items - 1))[:, 0]
        each = torch.arange(B)
        # The list: a delimiter before each item.
        x = torch.zeros(B, (items + 2) * (n + 1), bits + 2)
        listed = x[:, : items * (n + 1)].view(B, items, n + 1, bits + 2)
        listed[:, :, 0, bits] = 1
        listed[:, :, 1:, :bits] = shown
        # The query: one item between two delimiters of the other kind. Then follow ``n`` steps for the answer.
        question = x[:, items * (n + 1) :]
        question[:, [0, n + 1], bits + 1] = 1
        question[:, 1 : n + 1, :bits] = shown[each, asked]
        answer = shown[each, asked + 1]
        return episode(keys, x, answer, split=split, indices=indices, seed=self.seed, query=items)
