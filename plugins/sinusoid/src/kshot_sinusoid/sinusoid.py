"""Sinusoid regression: Finn, Abbeel & Levine 2017 (1703.03400), section 5.1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kshot import Episode, Examples, Origin, Support, TaskSpec
from kshot.errors import OptionError
from kshot.randomness import as_tensor, episode_keys, normal, uniform
from kshot.sampling import check_split, shape_of_block


class Sinusoid:
    """Regression tasks y = a sin(x - p), with amplitude a and phase p of the task, and x uniform in [-5, 5].

    ``wave`` in the origin's fields is (a, p) of each task [B, 2].

    Args:
        shot: K, the number of support points.
        query: number of query points; the paper meta-trains with K of them.
        seed: fixes all episodes.
        amplitude, phase: ranges (least, greatest) of a and p.
        noise: standard deviation of a normal error on the targets of support and query.
        outlier_every: n, so that episodes 0, n, 2n, ... of the train split have targets that are uniform in [-5, 5]
            and do not depend on x; None gives no such outliers.

    Raises:
        OptionError: a range is empty, noise is negative, or outlier_every is below 1.

    Example:
        >>> from kshot_sinusoid import Sinusoid
        >>> episode = Sinusoid(shot=5, query=8).sample("test", [0, 1, 2])
        >>> episode.support.y.shape, episode.query.x.shape
        (torch.Size([3, 5, 1]), torch.Size([3, 8, 1]))
    """

    def __init__(
        self,
        shot: int = 10,
        query: int = 10,
        seed: int = 0,
        *,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, float(np.pi)),
        noise: float = 0.0,
        outlier_every: int | None = None,
    ) -> None:
        if amplitude[0] > amplitude[1] or phase[0] > phase[1] or noise < 0:
            raise OptionError(
                f"sinusoid: got amplitude {amplitude}, phase {phase} and noise {noise}, expected (least, greatest) for "
                "amplitude and phase, and a standard deviation of 0 or more"
            )
        if outlier_every is not None and outlier_every < 1:
            raise OptionError(
                f"sinusoid: got outlier_every {outlier_every}, expected at least 1, or none for no outliers"
            )
        self.amplitude, self.phase, self.noise = amplitude, phase, noise
        self.outlier_every = outlier_every
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
        """Return tasks ``indices`` of ``split``: support [B, K, 1] and query [B, Q, 1], both for x and for y."""
        check_split(split, self.spec)
        shape = shape_of_block(self.spec, self.seed, split, indices)
        shot, query = int(shape["shot"] or 0), int(shape["query"] or 0)
        keys = episode_keys(self.seed, split, indices)
        # Draw the amplitude and phase of each task, then the points on its wave.
        least, greatest = np.array([self.amplitude, self.phase]).T
        wave = least + (greatest - least) * uniform(keys, "wave", 2)  # [B, 2]
        x = 10 * uniform(keys, "x", shot + query) - 5
        y = wave[:, :1] * np.sin(x - wave[:, 1:])
        if self.noise:
            y = y + self.noise * normal(keys, "noise", shot + query)
        if self.outlier_every is not None and split == "train":
            outlier = np.array([i % self.outlier_every == 0 for i in indices])
            y = np.where(outlier[:, None], 10 * uniform(keys, "outlier", shot + query) - 5, y)
        inputs, targets = (torch.from_numpy(v).float().unsqueeze(-1) for v in (x, y))
        return Episode(
            support=Support(x=inputs[:, :shot], y=targets[:, :shot], key=as_tensor(keys)),
            query=Examples(x=inputs[:, shot:], y=targets[:, shot:]),
            origin=Origin(split, tuple(indices), self.seed, shot=shot, query=query, fields={"wave": wave}),
        )
