"""The closed set of kinds: what an episode of each is, and how a predictor is scored on it.

A scorer takes the predictor and the episode and gives ``{name: [B, ...]}``, the headline first. Only here do query
labels meet predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from kshot.episode import IGNORED, Episode, Predictor
from kshot.errors import TrainingError

Scores = dict[str, Tensor]


@frozen
class Kind:
    """One kind of task.

    Attributes:
        name, headline: the kind and the score that stands for it.
        higher_is_better: of the headline.
        percent: whether the headline is a fraction that prints as a percentage.
        score: (predictor, episode) -> scores.
    """

    name: str
    headline: str
    higher_is_better: bool
    percent: bool
    score: Callable[[Predictor, Episode], Scores]


def expect_shape(predictions: Tensor, shape: tuple[int, ...], kind: str) -> None:
    """Raises TrainingError where a predictor's output has another shape than its kind's."""
    if tuple(predictions.shape) != shape:
        raise TrainingError(
            f"the predictor returned shape {tuple(predictions.shape)} for {kind}, expected {shape}; "
            "see kshot.episode.Predictor for what each kind returns"
        )


def classification(predictor: Predictor, episode: Episode) -> Scores:
    """Logits [B, n, N] -> accuracy [B] and the mean negative log-likelihood of the true class [B], in nats."""
    y = episode.query.y
    logits = predictor(episode.query.x).float()
    expect_shape(logits, (*y.shape, episode.support.way or 0), "classification")
    nll = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
    return {"accuracy": (logits.argmax(-1) == y).float().mean(1), "nll": nll.mean(1)}


def regression(predictor: Predictor, episode: Episode) -> Scores:
    """Values [B, n, *target] -> mean squared error [B], in squared units of the target."""
    y = episode.query.y
    values = predictor(episode.query.x).float()
    expect_shape(values, tuple(y.shape), "regression")
    return {"mse": (values - y).square().flatten(1).mean(1)}


def sequence(predictor: Predictor, episode: Episode) -> Scores:
    """Logits [B, T, N] with labels [B, T], or [B, T, *bits] with bits -> the error rate over scored steps, by step.

    ``error`` [B] is the headline, ``error_by_step`` [B, T] the curve. Unscored steps (``IGNORED`` or NaN targets)
    count nowhere and are NaN in the curve.
    """
    y = episode.query.y
    logits = predictor(episode.query.x).float()
    if y.is_floating_point():
        expect_shape(logits, tuple(y.shape), "a sequence of bits")
        scored = ~y.isnan()
        wrong = ((logits > 0) != (y > 0.5)).float()
        scored, wrong = (t.flatten(2) if t.ndim > 2 else t[..., None] for t in (scored, wrong))
    else:
        expect_shape(logits[..., 0], tuple(y.shape), "a sequence of labels")
        scored, wrong = (y != IGNORED)[..., None], (logits.argmax(-1) != y).float()[..., None]
    wrong = wrong.masked_fill(~scored, torch.nan)
    return {"error": wrong.flatten(1).nanmean(1), "error_by_step": wrong.nanmean(2)}


def control(predictor: Predictor, episode: Episode) -> Scores:
    """The policy plays in the query's environment -> the mean return of its trajectories [B]."""
    rewards = episode.query.source.rollout(predictor, episode.support.key).rewards
    return {"return": rewards.sum(-1).mean(-1)}


def objective(predictor: Predictor, episode: Episode) -> Scores:
    """Iterates [B, T, P] at steps ``query.x`` [B, T] -> final ``loss`` [B] and its ``curve`` [B, T]."""
    iterates = predictor(episode.query.x)
    source = episode.query.source
    curve = torch.stack([source.loss(iterates[:, t]) for t in range(iterates.shape[1])], 1)
    return {"loss": curve[:, -1], "curve": curve}


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("classification", "accuracy", True, True, classification),
        Kind("regression", "mse", False, False, regression),
        Kind("sequence", "error", False, True, sequence),
        Kind("control", "return", True, False, control),
        Kind("objective", "loss", False, False, objective),
    )
}
