"""Change classification tasks so that some training tasks can't be learned, to test gradient agreement.

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
    """Shuffle the query labels of every n-th training episode (0, n, 2n, ...), so that it can't be learned.

    This is a view of other tasks. The supports of these episodes, all other episodes and all other splits are
    unchanged. The shuffling depends on the episode alone. The field ``outlier`` [B] of the origin says which episodes
    are outliers.

    Args:
        of: the classification tasks.
        every: n; with meta-batches of n tasks, each has one outlier.

    Raises:
        MisfitError: ``of`` are not classification tasks.
        OptionError: ``every`` is less than 1.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = Outliers(sample_tasks.classification(), every=2)
        >>> tasks.sample("train", range(4)).origin.fields["outlier"].tolist()
        [True, False, True, False]
    """

    def __init__(self, of: TaskDistribution, *, every: int = 5) -> None:
        if of.spec.kind != "classification":
            raise MisfitError(
                f"outliers: got {of.spec.kind} tasks ({type(of).__name__}), expected classification; choose other tasks"
            )
        if every < 1:
            raise OptionError(f"outliers: got every {every}, expected at least 1; raise it")
        self.of, self.every = of, every
        self.spec = of.spec
        self.seed = int(getattr(of, "seed", 0))
        self.fingerprint = str(getattr(of, "fingerprint", ""))

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return the episodes ``indices`` of ``split`` with the query labels [B, n] of the outliers shuffled."""
        episode = self.of.sample(split, indices)
        outlier = np.array([split == "train" and i % self.every == 0 for i in indices])
        y = episode.query.y
        order = draws(episode.support.key.numpy().view(np.uint64), "outliers", y.shape[1]).argsort(axis=1)
        labels = torch.where(torch.from_numpy(outlier)[:, None], y.gather(1, torch.from_numpy(order)), y)
        origin = episode.origin
        if origin is not None:
            origin = attrs.evolve(origin, fields={**origin.fields, "outlier": outlier})
        return attrs.evolve(episode, query=Examples(episode.query.x, labels), origin=origin)
