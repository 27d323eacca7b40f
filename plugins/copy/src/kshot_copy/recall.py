"""Associative recall: Graves, Wayne & Danihelka, "Neural Turing machines", 2014 (1410.5401), section 4.3."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kshot import Episode
from kshot.randomness import below, draws
from kshot.spec import Count
from kshot_copy.sequences import episode, expect_at_least, place, random_bits, spec_of


class AssociativeRecall:
    """A list of items is shown, then one of them again, between marks: the item that followed it is to be said.

    An item is ``length`` random vectors, and a mark stands before each; the question is any item but the last, with
    marks of another kind around it. The sequence has T = (items + 2) * (length + 1) steps, of which the last ``length``
    are scored. The last input but one marks items, the last the question. Two items are the same by chance only, once
    in 2^(length * bits).

    Args:
        items: in a list, or a range (least, greatest), drawn anew for each block of episodes.
        length: vectors of an item.
        bits: of one vector.
        block: episodes with the same i // block have the same number of items.
        seed: fixes all episodes.

    Raises:
        OptionError: fewer than 2 items, or a length, bits or block below 1.
    """

    def __init__(self, items: Count = (2, 6), length: int = 3, bits: int = 6, block: int = 16, seed: int = 0) -> None:
        expect_at_least(2, "associative-recall", items=items)
        expect_at_least(1, "associative-recall", length=length, bits=bits, block=block)
        self.length, self.bits, self.seed = length, bits, seed
        self.spec = spec_of(items, marks=2, bits=bits, block=block)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``: x [B, T, bits + 2], y [B, T, bits], NaN where no answer is asked."""
        keys, items = place(self.spec, self.seed, split, indices)
        B, n, bits = len(keys), self.length, self.bits
        shown = random_bits(keys, "bits", items, n, bits)
        asked = torch.from_numpy(below(draws(keys, "question", 1), items - 1))[:, 0]
        each = torch.arange(B)
        x = torch.zeros(B, (items + 2) * (n + 1), bits + 2)
        listed = x[:, : items * (n + 1)].view(B, items, n + 1, bits + 2)
        listed[:, :, 0, bits] = 1
        listed[:, :, 1:, :bits] = shown
        question = x[:, items * (n + 1) :]
        question[:, [0, n + 1], bits + 1] = 1
        question[:, 1 : n + 1, :bits] = shown[each, asked]
        answer = shown[each, asked + 1]
        return episode(keys, x, answer, split=split, indices=indices, seed=self.seed, query=items)
