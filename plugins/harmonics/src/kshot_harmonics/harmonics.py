"""Harmonic regression: Lacoste et al., "Uncertainty in multitask transfer learning", 2018 (1806.07528).

The constants are those of ``torchmeta.toy.Harmonic``, the public implementation of these tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch

from kshot import Episode, Examples, Origin, Support, TaskSpec
from kshot.errors import OptionError
from kshot.randomness import as_tensor, episode_keys, normal, uniform
from kshot.registry import Range
from kshot.sampling import check_split, shape_of_block


class Harmonics:
    """Sample regression tasks y = a1 sin(w x + b1) + a2 sin(2 w x + b2): a wave and its second harmonic.

    For each task, the amplitudes a1 and a2 are standard normal, the phases b1 and b2 are uniform in [0, 2 pi], and the
    frequency w (radians per unit of x) and the centre m of the inputs are uniform in their ranges. The inputs of
    support and query are normal with mean m and standard deviation 1.

    ``origin.fields`` of an episode has these numbers of each task: ``amplitude`` (a1, a2) [B, 2], ``phase`` (b1, b2)
    [B, 2], ``frequency`` w [B] and ``centre`` m [B].

    Args:
        shot: K, the number of support points, or a range (least, greatest).
        query: number of query points, or a range.
        seed: the seed from which all episodes are drawn.
        frequency: range (least, greatest) of w; (5, 7) in the paper.
        centre: range (least, greatest) of m; (-4, 4) in the paper.
        noise: standard deviation of a normal error on the targets of support and query.
        block: episodes with the same i // block have the same numbers of points, if these are ranges.

    Raises:
        OptionError: a range of frequencies or centres is empty, or noise is negative.
        DataError: a number of points is negative, or a range of them is empty.

    Example:
        >>> from kshot_harmonics import Harmonics
        >>> episode = Harmonics(shot=5, query=8).sample("test", [0, 1, 2])
        >>> episode.support.y.shape, episode.query.x.shape
        (torch.Size([3, 5, 1]), torch.Size([3, 8, 1]))
    """

    def __init__(
        self,
        shot: int | tuple[int, int] = 16,
        query: int | tuple[int, int] = 16,
        seed: int = 0,
        *,
        frequency: tuple[float, float] = (5.0, 7.0),
        centre: tuple[float, float] = (-4.0, 4.0),
        noise: Annotated[float, Range(0)] = 0.0,
        block: Annotated[int, Range(1)] = 1,
    ) -> None:
        for name, (least, greatest) in (("frequency", frequency), ("centre", centre)):
            if not -np.inf < least <= greatest < np.inf:
                raise OptionError(
                    f"harmonics: got {name} {(least, greatest)}, expected two finite numbers (least, greatest); give "
                    "the smaller one first"
                )
        if not 0 <= noise < np.inf:
            raise OptionError(f"harmonics: got noise {noise}, expected a finite number of at least 0; change it")
        self.frequency, self.centre, self.noise = frequency, centre, noise
        self.seed = seed
        self.spec = TaskSpec(
            kind="regression",
            input_shape=(1,),
            target_shape=(1,),
            shot=shot,
            query=query,
            block=block,
            split_by="index",
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return tasks ``indices`` of ``split``: support [B, K, 1] and query [B, Q, 1], both for x and for y."""
        check_split(split, self.spec)
        shape = shape_of_block(self.spec, self.seed, split, indices)
        shot, query = int(shape["shot"] or 0), int(shape["query"] or 0)
        keys = episode_keys(self.seed, split, indices)
        # Draw the function of each task: amplitudes [B, 2], phases [B, 2], frequency [B, 1], centre of inputs [B, 1].
        amplitude = normal(keys, "amplitude", 2)
        phase = 2 * np.pi * uniform(keys, "phase", 2)
        (w_least, w_greatest), (m_least, m_greatest) = self.frequency, self.centre
        w = w_least + (w_greatest - w_least) * uniform(keys, "frequency", 1)
        m = m_least + (m_greatest - m_least) * uniform(keys, "centre", 1)
        # Draw its points. Those of the support do not depend on the number of queries, and vice versa.
        points = {}
        for part, count in (("support", shot), ("query", query)):
            x = m + normal(keys, f"{part}/x", count)
            waves = [amplitude[:, [h]] * np.sin((h + 1) * w * x + phase[:, [h]]) for h in range(2)]
            y = waves[0] + waves[1]
            if self.noise:
                y = y + self.noise * normal(keys, f"{part}/noise", count)
            points[part] = (torch.from_numpy(x).float().unsqueeze(-1), torch.from_numpy(y).float().unsqueeze(-1))
        fields = {"amplitude": amplitude, "phase": phase, "frequency": w[:, 0], "centre": m[:, 0]}
        return Episode(
            support=Support(*points["support"], key=as_tensor(keys)),
            query=Examples(*points["query"]),
            origin=Origin(split, tuple(indices), self.seed, shot=shot, query=query, fields=fields),
        )
