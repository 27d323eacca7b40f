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

from kshot.episode import IGNORED, Episode, Predictor, check_weights
from kshot.errors import TrainingError
from kshot.functional import sequence_errors

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
    """Logits [B, T, N] with labels [B, T], or [B, T, *bits] with bits -> the share of wrong answers.

    ``error`` [B] is the headline. ``error_by_step`` [B, A] is its curve: column j is the j-th step that is scored,
    so that sequences of different lengths begin together; of bits it is the share that is wrong. Of labels there is
    also ``accuracy_by_instance`` [B, K]: column k is over the steps that show the (k + 1)-th example of their class.
    Where a task has fewer columns than another, its last ones are NaN.
    """
    y = episode.query.y
    logits = predictor(episode.query.x).float()
    bits = y.is_floating_point()
    expect_shape(logits if bits else logits[..., 0], tuple(y.shape), f"a sequence of {'bits' if bits else 'labels'}")
    wrong = sequence_errors(logits, y, IGNORED)
    by_step = wrong.flatten(2).nanmean(2) if y.ndim > 2 else wrong
    scored = ~by_step.isnan()
    order = scored.to(torch.int8).argsort(dim=1, descending=True, stable=True)  # scored steps first
    scores = {
        "error": wrong.flatten(1).nanmean(1),
        "error_by_step": by_step.gather(1, order)[:, : int(scored.sum(1).max())],
    }
    if not bits:
        scores["accuracy_by_instance"] = by_instance(1 - by_step, y, logits.shape[-1])
    return scores


def by_instance(values: Tensor, y: Tensor, way: int) -> Tensor:
    """The mean of ``values`` [B, T] over steps that show the first, second, ... example of their class -> [B, K].

    K is the most examples that a class has; unscored steps (NaN) are no examples.
    """
    scored = ~values.isnan()
    labels = y.where(scored, 0)
    seen = (F.one_hot(labels, way) * scored[..., None]).cumsum(1)  # of each class, up to and with this step [B, T, N]
    instance = seen.gather(2, labels[..., None])[..., 0].where(scored, 0)  # from 1; 0 stands for unscored
    sums, counts = values.new_zeros(2, len(y), int(instance.max()) + 1)
    sums.scatter_add_(1, instance, values.nan_to_num())
    counts.scatter_add_(1, instance, scored.to(values.dtype))
    means: Tensor = sums / counts
    return means[:, 1:]


def control(predictor: Predictor, episode: Episode) -> Scores:
    """The policy plays rollout 0 of the query's environment -> ``return`` [B], and what else the environment judges.

    A trajectory's return is the sum of its rewards, not discounted; a task's is the mean over its ``spec.query``
    trajectories. A policy that draws its actions (``Begins``) is judged as it plays, by drawing.
    """
    played = episode.query.source.rollout(predictor)
    means = {name: values.double().mean(-1) for name, values in played.scores.items()}
    return {"return": played.rewards.double().sum(-1).mean(-1), **means}


def objective(predictor: Predictor, episode: Episode) -> Scores:
    """Iterates [B, T, P] at steps ``query.x`` [B, T] -> ``loss`` [B] and its ``curve`` [B, T].

    ``loss`` is the curve's mean over the steps, weighted by ``query.y`` [B, T]: the tasks say whether the end counts, a
    window, or every step alike. Where the loss is NaN it is infinite here, so that no mean leaves out an optimizer that
    diverged.

    Raises:
        DataError: there are no steps, or the weights are negative, not finite or all 0.
    """
    source, weights = episode.query.source, episode.query.y
    check_weights(weights, episode.query.x, "objective: query")
    iterates = predictor(episode.query.x).to(source.initial.dtype)
    expect_shape(iterates, (*weights.shape, *source.initial.shape[1:]), "objective")
    curve = torch.stack([source.loss(iterates[:, t]) for t in range(weights.shape[1])], 1)
    curve = curve.masked_fill(curve.isnan(), torch.inf)
    counted = curve.masked_fill(weights == 0, 0.0)  # 0 times infinity is not 0
    return {"loss": (weights * counted).sum(1) / weights.sum(1), "curve": curve}


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
