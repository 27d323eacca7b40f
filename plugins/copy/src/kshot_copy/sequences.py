"""What both tasks are made of. Letters: B meta-batch, T time."""

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
    """The spec of sequences of ``bits`` and so many ``marks``, whose length goes by ``query``."""
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
    """Raises OptionError where a count, or the lesser end of its range, is below ``least``, or a range has no end."""
    for name, count in counts.items():
        low, high = bounds(count)
        if low is None or high is None or not least <= low <= high:
            raise OptionError(
                f"{who}: {name} is {count}, expected a number of at least {least} or a range (least, greatest) of them"
            )


def place(spec: TaskSpec, seed: int, split: str, indices: Sequence[int]) -> tuple[U64, int]:
    """Keys [B] of the episodes, and how long they are: the count that ``spec.query`` gives or draws for their block.

    Raises:
        DataError: an unknown split, or indices of blocks with different lengths.
    """
    check_split(split, spec)
    count = shape_of_block(spec, seed, split, indices)["query"]
    return episode_keys(seed, split, indices), int(count or 0)


def random_bits(keys: U64, purpose: str, *shape: int) -> Tensor:
    """Fair bits [B, *shape], 0.0 or 1.0."""
    count = torch.Size(shape).numel()
    return torch.from_numpy(below(draws(keys, purpose, count), 2)).float().view(len(keys), *shape)


def episode(
    keys: U64, x: Tensor, answers: Tensor, *, split: str, indices: Sequence[int], seed: int, query: int
) -> Episode:
    """Inputs ``x`` [B, T, *] and the ``answers`` [B, A, bits] to the last A steps; the steps before are not scored."""
    y = x.new_full((*x.shape[:2], answers.shape[2]), torch.nan)
    y[:, x.shape[1] - answers.shape[1] :] = answers
    return Episode(
        support=Support(x=x[:, :0], y=y[:, :0], key=as_tensor(keys)),
        query=Examples(x=x, y=y),
        origin=Origin(split, tuple(indices), seed, query=query),
    )
