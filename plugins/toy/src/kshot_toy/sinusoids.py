"""Sinusoid regression, the first experiment of Finn, Abbeel & Levine 2017 (1703.03400, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kshot import Episode, Examples, Origin, Support, TaskSpec
from kshot.errors import DataError
from kshot.randomness import as_tensor, episode_keys, uniform
from kshot.sampling import shape_of_block


class Sinusoids:
    """y = a sin(x - p): amplitude a uniform in [0.1, 5], phase p in [0, pi], x in [-5, 5].

    Args:
        shot: support points a task, K.
        query: query points a task.
        seed: fixes all episodes.
    """

    def __init__(self, shot: int = 10, query: int = 10, seed: int = 0) -> None:
        self.seed = seed
        self.spec = TaskSpec(
            kind="regression",
            input_shape=(1,),
            target_shape=(1,),
            input_range=(-5.0, 5.0),
            shot=shot,
            query=query,
            split_by="index",
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Tasks ``indices`` of ``split``: support [B, K, 1] and query [B, Q, 1]; targets of the same shapes."""
        if split not in self.spec.splits:
            raise DataError(f"unknown split {split!r}; these tasks have {', '.join(self.spec.splits)}")
        shape = shape_of_block(self.spec, self.seed, split, indices)
        shot, query = int(shape["shot"] or 0), int(shape["query"] or 0)
        keys = episode_keys(self.seed, split, indices)
        wave = uniform(keys, "wave", 2)
        amplitude, phase = 0.1 + 4.9 * wave[:, :1], np.pi * wave[:, 1:]
        x = 10 * uniform(keys, "x", shot + query) - 5
        y = amplitude * np.sin(x - phase)
        inputs, targets = (torch.from_numpy(v).float().unsqueeze(-1) for v in (x, y))
        return Episode(
            support=Support(x=inputs[:, :shot], y=targets[:, :shot], key=as_tensor(keys)),
            query=Examples(x=inputs[:, shot:], y=targets[:, shot:]),
            origin=Origin(
                split,
                tuple(indices),
                self.seed,
                shot=shot,
                query=query,
                fields={"amplitude": amplitude[:, 0], "phase": phase[:, 0]},
            ),
        )


def sinusoids(shot: int = 10, query: int = 10, seed: int = 0) -> Sinusoids:
    """Few-shot regression of sine waves: K = ``shot`` points of each."""
    return Sinusoids(shot, query, seed)
