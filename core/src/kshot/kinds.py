"""The kinds of tasks: what an episode of each is, and how a predictor is scored on it.

A scorer takes the predictor and the episode and returns ``{name: [B, ...]}``, the headline first. Only here do query
labels meet predictions. ``kshot.spec.KindName`` lists the kinds; ``KINDS`` has one entry for each.

Letters: B tasks, n queries, N way, T steps, A scored steps, K examples per class, P parameters of a point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from kshot.episode import IGNORED, Environment, Episode, Policy, Predictor, check_weights
from kshot.errors import TrainingError
from kshot.functional import sequence_errors
from kshot.spec import KindName

Scores = dict[str, Tensor]
"""Scores by name, each [B, ...]."""


@frozen
class Kind:
    """Describe one kind of task.

    Attributes:
        name: of the kind.
        headline: the name of the score that represents it.
        higher_is_better: whether a greater headline is better.
        percent: whether the headline is a fraction that is printed as a percentage.
        score: (predictor, episode) -> scores.

    Example:
        >>> KINDS["classification"].headline
        'accuracy'
    """

    name: KindName
    headline: str
    higher_is_better: bool
    percent: bool
    score: Callable[[Predictor, Episode], Scores]


def expect_shape(predictions: Tensor, shape: tuple[int, ...], kind: str) -> None:
    """Raise TrainingError if a predictor's output has another shape than its kind requires.

    Example:
        >>> expect_shape(torch.zeros(1, 4, 5), (1, 4, 5), "classification")
    """
    if tuple(predictions.shape) != shape:
        raise TrainingError(
            f"the predictor: got shape {tuple(predictions.shape)} for {kind}, expected {shape}; "
            "see kshot.episode.Predictor for what each kind returns"
        )


def classification(predictor: Predictor, episode: Episode) -> Scores:
    """Score logits [B, n, N]: accuracy [B] and the mean negative log-likelihood of the true class [B], in nats.

    If classes are the actions of an environment, the most likely action also plays in it, see ``rollout_scores``.

    Example:
        >>> from kshot import Examples, Support
        >>> query = Examples(torch.zeros(1, 2, 1), torch.tensor([[0, 1]]))
        >>> episode = Episode(Support.of([[0.0], [1.0]], [0, 1]), query)
        >>> classification(lambda x: torch.tensor([[[5.0, 0.0], [5.0, 0.0]]]), episode)["accuracy"]
        tensor([0.5000])
    """
    y = episode.query.y
    logits = predictor(episode.query.x).float()
    expect_shape(logits, (*y.shape, episode.support.way or 0), "classification")
    nll = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
    played = rollout_scores(lambda seen: predictor(seen).argmax(-1), episode)
    return {"accuracy": (logits.argmax(-1) == y).float().mean(1), "nll": nll.mean(1), **played}


def regression(predictor: Predictor, episode: Episode) -> Scores:
    """Score values [B, n, *target]: mean squared error [B], in squared units of the target.

    If targets are the actions of an environment, the predictor also plays in it, see ``rollout_scores``.

    Example:
        >>> from kshot import Examples, Support
        >>> query = Examples(torch.zeros(1, 2, 1), torch.tensor([[[1.0], [3.0]]]))
        >>> episode = Episode(Support.of([[0.0]], [[0.0]], way=None), query)
        >>> regression(lambda x: torch.ones(1, 2, 1), episode)
        {'mse': tensor([2.])}
    """
    y = episode.query.y
    values = predictor(episode.query.x).float()
    expect_shape(values, tuple(y.shape), "regression")
    played = rollout_scores(lambda seen: predictor(seen).float(), episode)
    return {"mse": (values - y).square().flatten(1).mean(1), **played}


def sequence(predictor: Predictor, episode: Episode) -> Scores:
    """Score logits [B, T, N] of labels [B, T], or logits [B, T, *bits] of bits: the share of wrong answers.

    A label may be a string of L characters, which has logits [B, T, L, N] for characters [B, T, L]. It is right only
    if all of its characters are.

    ``error`` [B] is the headline. ``error_by_step`` [B, A] is its curve: column j is the j-th step that is scored,
    so that sequences of different lengths start together; for bits it is the share that is wrong. Labels also have
    ``accuracy_by_instance`` [B, K]: column k is over the steps that show the (k + 1)-th example of their class.
    If a task has fewer columns than another, its last ones are NaN.

    Example:
        >>> from kshot import Examples, Support
        >>> query = Examples(torch.zeros(1, 3, 1), torch.tensor([[0, IGNORED, 1]]))
        >>> episode = Episode(Support(torch.zeros(1, 0, 1), torch.zeros(1, 0)), query)
        >>> sequence(lambda x: torch.tensor([1.0, 0.0]).expand(1, 3, 2), episode)["error_by_step"]
        tensor([[0., 1.]])
    """
    y = episode.query.y
    logits = predictor(episode.query.x).float()
    bits = y.is_floating_point()
    expect_shape(logits if bits else logits[..., 0], tuple(y.shape), f"a sequence of {'bits' if bits else 'labels'}")
    wrong = sequence_errors(logits, y, IGNORED)
    if not bits and y.ndim > 2:
        # A string is wrong if one of its characters is. From here on it is a label: a number, the same for the same
        # string of any task.
        wrong = wrong.flatten(2).amax(2)
        y = numbered(y.flatten(2))
    by_step = wrong.flatten(2).nanmean(2) if y.ndim > 2 else wrong
    # A stable sort moves the scored steps of each task to the front, in their order.
    scored = ~by_step.isnan()
    order = scored.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    scores = {
        "error": wrong.flatten(1).nanmean(1),
        "error_by_step": by_step.gather(1, order)[:, : int(scored.sum(1).max())],
    }
    if not bits:
        scores["accuracy_by_instance"] = by_instance(1 - by_step, y, max(logits.shape[-1], int(y.max()) + 1))
    return scores


def numbered(strings: Tensor) -> Tensor:
    """Number strings of labels [B, T, L] from 0: the same string has the same number [B, T].

    A step that is not scored keeps ``IGNORED``.

    Example:
        >>> numbered(torch.tensor([[[1, 0], [0, 4], [1, 0], [IGNORED, IGNORED]]]))
        tensor([[   1,    0,    1, -100]])
    """
    scored = (strings != IGNORED).all(-1)
    numbers = torch.full_like(strings[..., 0], IGNORED)
    numbers[scored] = torch.unique(strings[scored], dim=0, return_inverse=True)[1]
    return numbers


def by_instance(values: Tensor, y: Tensor, way: int) -> Tensor:
    """Return the mean of ``values`` [B, T] over steps that show the first, second, ... example of their class: [B, K].

    K is the most examples that a class has. Unscored steps (NaN) do not count as examples.

    Example:
        >>> by_instance(torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[0, 0, 1]]), way=2)
        tensor([[0.5000, 1.0000]])
    """
    scored = ~values.isnan()
    labels = y.where(scored, 0)
    # How many examples of each class were shown up to and including this step [B, T, N], and of this step's class.
    shown = (F.one_hot(labels, way) * scored[..., None]).cumsum(1)
    instance = shown.gather(2, labels[..., None])[..., 0].where(scored, 0)  # from 1; 0 stands for unscored
    sums, counts = values.new_zeros(2, len(y), int(instance.max()) + 1)
    sums.scatter_add_(1, instance, values.nan_to_num())
    counts.scatter_add_(1, instance, scored.to(values.dtype))
    means: Tensor = sums / counts
    return means[:, 1:]


def control(predictor: Predictor, episode: Episode) -> Scores:
    """Let the policy play in the query's environment: ``return`` [B], and further scores, see ``rollout_scores``.

    A task has ``spec.query`` trajectories. A policy that draws its actions (``Begins``) is judged as it plays, by
    drawing.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Points()
        >>> episode = tasks.sample("test", [0])
        >>> action = torch.zeros(tasks.spec.target_shape)
        >>> control(lambda seen: action.expand(*seen.shape[:2], *action.shape), episode)["return"].shape
        torch.Size([1])
    """
    return rollout_scores(predictor, episode)


def rollout_scores(policy: Policy, episode: Episode) -> Scores:
    """Let a policy play rollout 0 of the query's environment: ``return`` [B], and the environment's other scores [B].

    A trajectory's return is the sum of its rewards, not discounted. All scores are means over the trajectories of a
    task. There are none if the query has no environment.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> episode = sample_tasks.Corridors().sample("test", [0, 1])
        >>> walk_right = lambda seen: torch.ones(seen.shape[:2], dtype=torch.int64)
        >>> list(rollout_scores(walk_right, episode))
        ['return', 'reached']
    """
    if not isinstance(episode.query.source, Environment):
        return {}
    rollout = episode.query.source.rollout(policy)
    means = {name: values.cpu().double().mean(-1) for name, values in rollout.scores.items()}
    return {"return": rollout.rewards.cpu().double().sum(-1).mean(-1), **means}


def objective(predictor: Predictor, episode: Episode) -> Scores:
    """Score iterates [B, T, P] at steps ``query.x`` [B, T]: ``loss`` [B] and its ``curve`` [B, T].

    ``loss`` is the curve's mean over the steps, weighted by ``query.y`` [B, T]: the tasks decide whether the end
    counts, a window, or every step alike. A NaN loss becomes infinite here, so that no mean leaves out an optimizer
    that diverged.

    Raises:
        DataError: there are no steps, or the weights are negative, not finite or all 0.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> episode = sample_tasks.Quadratics(steps=4).sample("test", [0, 1])
        >>> stay = episode.support.source.initial[:, None].expand(-1, 4, -1)
        >>> objective(lambda x: stay, episode)["curve"].shape
        torch.Size([2, 4])
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
"""Each kind with its scorer, by name, in the order of ``kshot.spec.KIND_NAMES``."""
