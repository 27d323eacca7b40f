"""Functions that the tasks share. Letters: B meta-batch, T time, A scored steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kshot import Episode, Examples, Origin, Support, TaskSpec
from kshot.errors import OptionError
from kshot.randomness import U64, as_tensor, below, draws, episode_keys
from kshot.sampling import check_split, shape_of_block
from kshot.spec import Count, bounds


def spec_of(query: Count, *, marks: int, bits: int, block: int) -> TaskSpec:
    """Return the spec of sequences with ``bits`` bit channels and ``marks`` delimiter channels.

    Args:
        query: the number that determines the length, or its range.
        marks: number of input channels for delimiters.
        bits: number of bits in a vector.
        block: episodes with the same i // block have the same length.
    """
    return TaskSpec(
        kind="sequence",
        input_shape=(bits + marks,),
        target_shape=(bits,),
        input_range=(0.0, 1.0),
        query=query,
        block=block,
        split_by="index",
    )


def expect_at_least(least: int, who: str, **counts: Count) -> None:
    """Raise OptionError if a count or the low end of its range is below ``least``, or a range is empty or open."""
    for name, count in counts.items():
        low, high = bounds(count)
        if low is None or high is None or not least <= low <= high:
            raise OptionError(
                f"{who}: got {name} {count}, expected a number of at least {least} or a range (least, greatest) of them"
            )


def place(spec: TaskSpec, seed: int, split: str, indices: Sequence[int], count: str = "query") -> tuple[U64, int]:
    """Return the keys of the episodes [B] and the count that determines their length.

    The count is ``spec.query``, or ``spec.shot``, or is drawn from this range for the block of the episodes.

    Raises:
        DataError: the split is unknown, or the indices lie in blocks with different lengths.
    """
    check_split(split, spec)
    counts = shape_of_block(spec, seed, split, indices)
    return episode_keys(seed, split, indices), int(counts[count] or 0)


def random_bits(keys: U64, purpose: str, *shape: int) -> Tensor:
    """Draw fair bits, 0.0 or 1.0 [B, *shape]."""
    count = torch.Size(shape).numel()
    return torch.from_numpy(below(draws(keys, purpose, count), 2)).float().view(len(keys), *shape)


def episode(
    keys: U64, x: Tensor, answers: Tensor, *, split: str, indices: Sequence[int], seed: int, query: int
) -> Episode:
    """Make an episode of inputs ``x`` [B, T, *] with ``answers`` [B, A, bits] at the last A steps; no others count."""
    y = x.new_full((*x.shape[:2], answers.shape[2]), torch.nan)
    y[:, x.shape[1] - answers.shape[1] :] = answers
    return Episode(
        support=Support(x=x[:, :0], y=y[:, :0], key=as_tensor(keys)),
        query=Examples(x=x, y=y),
        origin=Origin(split, tuple(indices), seed, query=query),
    )
