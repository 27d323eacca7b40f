"""Repeated copying: Graves, Wayne & Danihelka, "Neural Turing machines", 2014 (1410.5401), section 4.2."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from kshot import Episode
from kshot.errors import OptionError
from kshot.spec import Count, bounds
from kshot_copy.sequences import episode, expect_at_least, place, random_bits, spec_of


class RepeatCopy:
    """Tasks to output a sequence of random bit vectors as often as a number says, and then an end mark.

    With ``length`` vectors and ``repeats`` copies the sequence has T = length + 1 + length * repeats + 1 steps. The
    number of copies is shown in the step after the vectors, in a separate input channel, the last one. The last
    ``length * repeats + 1`` steps are scored. Targets have one channel more than the vectors: the end mark, which is
    1 in the last step only.

    As in the paper, the number of copies is shown with mean 0 and variance 1, over the numbers of ``known``. It does
    not depend on ``repeats``, so that a test with more copies than in training shows them on the same scale.

    Args:
        length: number of vectors, or a range (least, greatest) from which each block of episodes draws.
        repeats: number of copies, or a range.
        bits: number of bits in a vector.
        known: the range (least, greatest) of the numbers of copies over which the number is normalised; by default
            the paper's.
        block: episodes with the same i // block have the same length and the same number of copies.
        seed: fixes all episodes.

    Raises:
        OptionError: length, repeats, bits or block is below 1, or ``known`` is not a range of at least two numbers.

    Example:
        >>> from kshot_copy import RepeatCopy
        >>> episode = RepeatCopy(length=3, repeats=2, bits=2).sample("train", [0])
        >>> episode.query.x.shape, episode.query.y.shape
        (torch.Size([1, 11, 3]), torch.Size([1, 11, 3]))
    """

    def __init__(
        self,
        length: Count = (1, 10),
        repeats: Count = (1, 10),
        bits: int = 8,
        known: tuple[int, int] = (1, 10),
        block: int = 16,
        seed: int = 0,
    ) -> None:
        expect_at_least(1, "repeat-copy", length=length, repeats=repeats, bits=bits, block=block)
        low, high = known
        if not 1 <= low < high:
            raise OptionError(
                f"repeat-copy: got known {known}, expected a range (least, greatest) of at least two numbers of "
                "copies, because their variance is to be 1; widen it"
            )
        self.bits, self.seed = bits, seed
        # Uniform whole numbers from low to high have this mean and this variance.
        self.mean, self.deviation = (low + high) / 2, (((high - low + 1) ** 2 - 1) / 12) ** 0.5
        (shortest, longest), (fewest, most) = bounds(length), bounds(repeats)
        scored = shortest * fewest + 1, longest * most + 1  # type: ignore[operator]  # checked above
        spec = spec_of(scored if scored[0] < scored[1] else scored[0], marks=1, bits=bits, block=block)
        # The number that is shown has no bounds, because a test may have any number of copies.
        self.spec = attrs.evolve(spec, target_shape=(bits + 1,), input_range=None)
        # The length and the number of copies are drawn separately for every block.
        self._length, self._repeats = attrs.evolve(spec, query=length), attrs.evolve(spec, query=None, shot=repeats)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices``: x [B, T, bits + 1] and y [B, T, bits + 1], NaN where nothing is scored."""
        keys, length = place(self._length, self.seed, split, indices)
        _, repeats = place(self._repeats, self.seed, split, indices, "shot")
        shown = random_bits(keys, "bits", length, self.bits)
        scored = length * repeats + 1
        x = torch.zeros(len(keys), length + 1 + scored, self.bits + 1)
        x[:, :length, :-1] = shown
        x[:, length, -1] = (repeats - self.mean) / self.deviation
        answers = torch.zeros(len(keys), scored, self.bits + 1)
        answers[:, :-1, :-1] = shown.repeat(1, repeats, 1)
        answers[:, -1, -1] = 1  # the end mark
        return episode(keys, x, answers, split=split, indices=indices, seed=self.seed, query=scored)
