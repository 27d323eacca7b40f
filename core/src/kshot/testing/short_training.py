"""Train a learner for a short time on the kit's easy tasks, and judge what it does with the support of a new one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from kshot.episode import Episode
from kshot.testing.cases import Case
from kshot.testing.outer_steps import clear, outer_steps

LOOKS = (0, 10, 40, 150, 400)
"""Numbers of meta-batches after which a learner is judged; training ends as soon as it uses the support."""

EPISODES = 100
"""Number of episodes on which it is judged."""

FIRST = 10_000
"""The number of the first of these episodes: those of training have smaller numbers."""

Change = Callable[[Episode], Episode]


@frozen
class Judgement:
    """How much better a learner is than one that does not use the support.

    Attributes:
        margin: the mean over episodes. In classification, accuracy minus chance; in regression, the logarithm of the
            ratio of two mean squared errors: with the support of another task, and with the right one.
        errors: ``margin`` in standard errors.

    Example:
        >>> Judgement(0.4, 12.0).convincing
        True
    """

    margin: float
    errors: float

    @property
    def convincing(self) -> bool:
        """Whether it is better than chance by at least four standard errors."""
        return self.errors >= 4


def judge(case: Case, learner: Any, change: Change = lambda episode: episode) -> Judgement:
    """Judge a learner on episodes that it was not trained on, changed by ``change``."""
    episode = change(case.tasks.sample(case.training, range(FIRST, FIRST + EPISODES)))
    x, y = episode.query.x, episode.query.y
    predictions = case.predict(learner, episode, x)
    if case.kind == "classification":
        margins = (predictions.argmax(-1) == y).double().mean(1) - 1 / (episode.support.way or 1)
    else:
        support = episode.support
        others = attrs.evolve(support, x=support.x.roll(1, 0), y=support.y.roll(1, 0))
        elsewhere = case.predict(learner, attrs.evolve(episode, support=others), x)
        margins = _log_error(elsewhere, y) - _log_error(predictions, y)
    spread = max(float(margins.std()) / math.sqrt(len(margins)), 1e-3)
    return Judgement(float(margins.mean()), float(margins.mean()) / spread)


def _log_error(predictions: Tensor, y: Tensor) -> Tensor:
    return (predictions.double() - y).square().flatten(1).mean(1).clamp_min(1e-12).log()


def short_training(case: Case) -> tuple[Any, Judgement]:
    """Train a learner with Adam until it uses the support, for at most 400 meta-batches of a few tasks.

    Returns:
        The learner and its last judgement.
    """
    learner = case.build()
    optimizer: Any = None
    done, judged = 0, Judgement(0.0, 0.0)
    for look in LOOKS:
        for batch in range(done, look):
            for _ in outer_steps(learner, case.episode(first=batch * case.size, split=case.training), seed=batch):
                optimizer = optimizer or torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=0.01)
                optimizer.step()
                clear(learner)
        done = look
        judged = judge(case, learner)
        if judged.convincing:
            break
    return learner, judged


def hidden_chance(episode: Episode) -> Episode:
    """Change all that could tell labels apart from the examples: numbers of classes, order of examples, and keys."""
    support, query, N = episode.support, episode.query, episode.support.way or 1
    draw = torch.Generator().manual_seed(20)
    rows = torch.arange(episode.size)[:, None]
    renumbered = torch.rand(episode.size, N, generator=draw).argsort(1)  # label c becomes renumbered[b, c]
    order = torch.rand(support.y.shape, generator=draw).argsort(1)
    queries = torch.rand(query.y.shape, generator=draw).argsort(1)
    semantics = None
    if support.semantics is not None:
        semantics = torch.empty_like(support.semantics)
        semantics[rows, renumbered] = support.semantics
    key = torch.randint(2**62, support.key.shape, generator=draw)
    y = renumbered.gather(1, support.y)[rows, order]
    hidden = attrs.evolve(support, x=support.x[rows, order], y=y, semantics=semantics, key=key)
    asked = attrs.evolve(query, x=query.x[rows, queries], y=renumbered.gather(1, query.y)[rows, queries])
    return attrs.evolve(episode, support=hidden, query=asked, origin=None)
