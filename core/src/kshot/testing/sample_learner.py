"""A small learner for examples and tests: the nearest class mean in a learned linear embedding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.episode import Episode, Predictor, Support
from kshot.inner import per_episode
from kshot.spec import Needs, TaskSpec


class NearestMean(nn.Module):
    """Classify by the nearest class mean in a linear embedding of the inputs.

    Args:
        spec: of the tasks.
        width: length of an embedding (D).

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.classification()
        >>> episode = tasks.sample("test", [0])
        >>> predict = NearestMean(tasks.spec).adapt(episode.support)
        >>> predict(episode.query.x).shape[-1] == tasks.spec.way
        True
    """

    needs = Needs(kinds=("classification",), variable_way=True, exact_gradient=True)

    def __init__(self, spec: TaskSpec, *, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(spec.input_shape), width))

    def logits(self, support: Support, x: Tensor) -> Tensor:
        """Return minus squared distances [n, N] of queries ``x`` [n, *input] to the class means, for one episode."""
        z = self.embedding(support.x)
        means = torch.stack([z[support.y == label].mean(0) for label in range(support.way or 0)])
        logits: Tensor = -(self.embedding(x)[:, None] - means).square().sum(-1)
        return logits

    @per_episode
    def meta_gradient(self, episode: Episode) -> Tensor:
        """Return the cross-entropy of the queries."""
        return F.cross_entropy(self.logits(episode.support, episode.query.x), episode.query.y)

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [.., *input] as [.., D] (ability ``Embeds``)."""
        z: Tensor = self.embedding(x.flatten(0, 1))
        return z.view(*x.shape[:2], -1)

    @per_episode
    def adapt(self, support: Support) -> Predictor:
        """Return a function from queries to logits."""
        return lambda x: self.logits(support, x)
