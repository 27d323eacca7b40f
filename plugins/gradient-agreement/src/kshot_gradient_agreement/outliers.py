"""A view of classification tasks in which some training tasks can't be learned: what gradient agreement is for.

Letters: B meta-batch, n queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch

from kshot import Episode, Examples, TaskDistribution
from kshot.errors import MisfitError, OptionError
from kshot.randomness import draws


class Outliers:
    """In the train split each so-many-th episode (0, n, 2n, ...) has its query labels shuffled: nothing can learn them.

    Its support is as it was, and so is every other episode and split. How they are shuffled depends on the episode
    alone. The origin's field ``outlier`` [B] says which episodes these are.

    Args:
        of: classification tasks.
        every: n; with a meta-batch of n there is one in each.

    Raises:
        MisfitError: ``of`` is no classification.
        OptionError: ``every`` is less than 1.
    """

    def __init__(self, of: TaskDistribution, *, every: int = 5) -> None:
        if of.spec.kind != "classification":
            raise MisfitError(f"outliers: {type(of).__name__} are {of.spec.kind} tasks, expected classification")
        if every < 1:
            raise OptionError(f"outliers: every is {every}, expected at least 1")
        self.of, self.every = of, every
        self.spec = of.spec
        self.seed = int(getattr(of, "seed", 0))
        self.fingerprint = str(getattr(of, "fingerprint", ""))

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``, as ``of`` has them but for the outliers' query labels [B, n]."""
        episode = self.of.sample(split, indices)
        outlier = np.array([split == "train" and i % self.every == 0 for i in indices])
        y = episode.query.y
        order = draws(episode.support.key.numpy().view(np.uint64), "outliers", y.shape[1]).argsort(axis=1)
        labels = torch.where(torch.from_numpy(outlier)[:, None], y.gather(1, torch.from_numpy(order)), y)
        origin = episode.origin
        if origin is not None:
            origin = attrs.evolve(origin, fields={**origin.fields, "outlier": outlier})
        return attrs.evolve(episode, query=Examples(episode.query.x, labels), origin=origin)
