"""Sample tasks of the kind sequence: a stream of labels, and bits to copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kshot.episode import Episode, Examples, Support
from kshot.randomness import as_tensor, episode_keys, uniform
from kshot.spec import TaskSpec
from kshot.testing.sample_tasks.drawing import normals, origin_of


class LabelStream:
    """A stream of noisy examples of ``way`` classes, in which each step shows the label of the step before, one-hot.

    The input x_{t+1} shows the label y_t, so only earlier steps help to predict y_t.

    Args:
        way: number of classes in an episode.
        length: T, the number of steps.
        seed: determines all episodes.

    Example:
        >>> episode = LabelStream(way=3, length=8).sample("train", [0])
        >>> tuple(episode.query.x.shape), tuple(episode.query.y.shape)
        ((1, 8, 7), (1, 8))
    """

    def __init__(self, way: int = 3, length: int = 8, seed: int = 0) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="sequence",
            input_shape=(4 + way,),
            way=way,
            query=length,
            split_by="index",
            provides={"stream"},
        )
        self._way, self._length = way, length

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Sample episodes with query x [B, T, 4 + N] and y [B, T] (int64); the support is empty."""
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        B, N, T = len(keys), self._way, self._length
        y = torch.from_numpy((uniform(keys, "labels", T) * N).astype(np.int64))
        centres = normals(keys, "centres", N, 4)
        shown = centres[torch.arange(B)[:, None], y] + 0.1 * normals(keys, "noise", T, 4)
        before = torch.nn.functional.one_hot(y, N).float().roll(1, 1)
        before[:, 0] = 0  # no label precedes the first step
        x = torch.cat([shown, before], -1)
        support = Support(x[:, :0], y[:, :0], key=as_tensor(keys), way=N)
        return Episode(support, Examples(x, y), origin=origin)


class Copying:
    """Sequences of random bits that a learner has to reproduce after a delimiter.

    Args:
        length: number of vectors to copy; the sequence has T = 2 * length + 1 steps.
        bits: number of bits in a vector.
        seed: determines all episodes.

    Example:
        >>> episode = Copying(length=3, bits=2).sample("train", [0])
        >>> tuple(episode.query.x.shape), tuple(episode.query.y.shape)
        ((1, 7, 3), (1, 7, 2))
    """

    def __init__(self, length: int = 3, bits: int = 2, seed: int = 0) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="sequence",
            input_shape=(bits + 1,),
            target_shape=(bits,),
            input_range=(0.0, 1.0),
            query=2 * length + 1,
            split_by="index",
        )
        self._length, self._bits = length, bits

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Sample episodes with query x [B, T, bits + 1] and y [B, T, bits]; the support is empty.

        The last channel of x is the delimiter. y is NaN at the steps that are not scored.
        """
        origin = origin_of(self.spec, self.seed, split, indices)
        keys = episode_keys(self.seed, split, indices)
        B, n, bits = len(keys), self._length, self._bits
        shown = torch.from_numpy(uniform(keys, "bits", n * bits) < 0.5).float().view(B, n, bits)
        x = torch.zeros(B, 2 * n + 1, bits + 1)
        y = torch.full((B, 2 * n + 1, bits), torch.nan)
        # Steps 0..n-1 show the bits, step n shows the delimiter, and steps n+1..2n ask for the bits.
        x[:, :n, :bits], x[:, n, bits], y[:, n + 1 :] = shown, 1, shown
        return Episode(Support(x[:, :0], y[:, :0], key=as_tensor(keys)), Examples(x, y), origin=origin)
