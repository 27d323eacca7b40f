"""Each kind of task has a scorer; the expected scores of sequences and objectives are worked out by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kshot import Engine, Episode, Examples, Needs, Objective, Result, Support
from kshot._engine.evaluation import join
from kshot.episode import IGNORED
from kshot.errors import DataError, TrainingError
from kshot.kinds import KINDS
from kshot.spec import KIND_NAMES
from kshot.testing import sample_tasks

NAN = math.nan


def test_every_kind_has_a_scorer_under_its_name() -> None:
    """``kshot.spec.KindName`` is the one list; the scorers follow its order."""
    assert tuple(KINDS) == KIND_NAMES
    assert [kind.name for kind in KINDS.values()] == list(KIND_NAMES)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_kit_has_sample_tasks_of_every_kind(kind: str) -> None:
    """A learner of any kind can be tried on small tasks."""
    assert sample_tasks.example(kind).spec.kind == kind


# --- Sequences ----------------------------------------------------------------------------------------------------


def score_sequence(logits: Any, y: Any) -> dict[str, Tensor]:
    """Score a predictor that returns ``logits`` for any inputs."""
    targets = torch.as_tensor(y)
    B, T = targets.shape[:2]
    support = Support(torch.zeros(B, 0, 1), targets[:, :0], key=torch.arange(B))
    episode = Episode(support, Examples(torch.zeros(B, T, 1), targets))
    return KINDS["sequence"].score(lambda _: torch.as_tensor(logits), episode)


def one_hot(labels: list[list[int]], way: int) -> Tensor:
    """Return logits [B, T, N] that are greatest at ``labels``."""
    return nn.functional.one_hot(torch.tensor(labels), way).float()


def test_the_curve_begins_with_the_first_scored_step() -> None:
    """Copies of different lengths are answered at different steps; columns count answers, not time steps."""
    y = torch.tensor([[[NAN, NAN], [1.0, 1.0], [0.0, 0.0]], [[NAN, NAN], [NAN, NAN], [0.0, 1.0]]])
    scores = score_sequence(torch.ones(2, 3, 2), y)
    assert scores["error"].tolist() == [0.5, 0.5]
    assert np.array_equal(scores["error_by_step"].numpy(), [[0, 1], [0.5, NAN]], equal_nan=True)
    assert set(scores) == {"error", "error_by_step"}


def test_instances_are_counted_class_by_class() -> None:
    """By hand: 2 1 2 2 1 shows instances 1 1 2 3 2; an unscored step is not counted."""
    y = [[2, 1, 2, 2, 1], [0, 0, IGNORED, 0, 0]]
    scores = score_sequence(one_hot([[2, 0, 2, 0, 1], [1, 0, 0, 0, 1]], 3), y)
    expected = [[0.5, 1.0, 0.0, NAN], [0.0, 1.0, 1.0, 0.0]]
    assert np.array_equal(scores["accuracy_by_instance"].numpy(), expected, equal_nan=True)
    assert scores["error"].tolist() == pytest.approx([0.4, 0.5])
    assert np.array_equal(scores["error_by_step"].numpy(), [[0, 1, 0, 1, 0], [1, 0, 0, 1, NAN]], equal_nan=True)


def test_a_string_is_right_if_all_of_its_characters_are() -> None:
    """Instances are those of the whole string, whatever number it gets, and two tasks have classes of their own."""
    y = torch.tensor([[[1, 0], [1, 1], [1, 0], [IGNORED, IGNORED]], [[0, 1], [0, 1], [0, 1], [0, 0]]])
    answers = torch.tensor([[[1, 0], [1, 0], [0, 0], [0, 0]], [[0, 0], [0, 1], [0, 1], [0, 0]]])
    logits = torch.nn.functional.one_hot(answers, 2).float()
    episode = Episode(Support(torch.zeros(2, 0, 1), torch.zeros(2, 0)), Examples(torch.zeros(2, 4, 1), y))
    scores = KINDS["sequence"].score(lambda x: logits, episode)
    # Task 0: right, wrong (its second character), wrong (its first); task 1: wrong, right, right, right.
    assert scores["error"].tolist() == pytest.approx([2 / 3, 1 / 4])
    assert scores["error_by_step"].nan_to_num(-1).tolist() == [[0, 1, 1, -1], [1, 0, 0, 0]]
    # First instances of task 0: steps 0 and 1, second: step 2. Of task 1: steps 0 and 3, step 1, step 2.
    assert scores["accuracy_by_instance"].nan_to_num(-1).tolist() == [[0.5, 0.0, -1], [0.5, 1.0, 1.0]]


def test_more_strings_than_characters_are_counted() -> None:
    """The number of classes is not the number of logits: here there are nine strings of two characters of three."""
    y = torch.cartesian_prod(torch.arange(3), torch.arange(3)).repeat(2, 1)[None]
    logits = torch.nn.functional.one_hot(y, 3).float()
    episode = Episode(Support(torch.zeros(1, 0, 1), torch.zeros(1, 0)), Examples(torch.zeros(1, 18, 1), y))
    scores = KINDS["sequence"].score(lambda x: logits, episode)
    assert scores["accuracy_by_instance"].tolist() == [[1.0, 1.0]]


def test_sequences_of_another_shape_are_refused() -> None:
    """Broadcasting would compute a wrong score from them."""
    with pytest.raises(TrainingError, match=r"\(1, 2, 1\) for a sequence of bits, expected \(1, 2, 3\)"):
        score_sequence(torch.zeros(1, 2, 1), torch.zeros(1, 2, 3))
    with pytest.raises(TrainingError, match="a sequence of labels"):
        score_sequence(torch.zeros(1, 3, 4), [[0, 1]])


def test_scores_of_different_lengths_are_joined_in_a_result() -> None:
    """Curves are padded with NaN, without a warning from their means or their JSON."""
    parts = [
        score_sequence(torch.ones(3, n, 1), torch.cat([torch.full((3, n - 1, 1), NAN), torch.ones(3, 1, 1)], 1))
        for n in (2, 4)
    ]
    parts.append(score_sequence(torch.ones(3, 3, 1), torch.zeros(3, 3, 1)))
    scores = {name: join([part[name].double() for part in parts]) for name in parts[0]}
    result = Result(scores=scores, kind="sequence", split="test")
    assert result.mean == pytest.approx(1 / 3)
    assert result.means("error_by_step").tolist() == pytest.approx([1 / 3, 1, 1])
    assert Result.from_json(result.to_json()).mean == result.mean


# --- Objectives ---------------------------------------------------------------------------------------------------


def objective_episode(weights: list[list[float]]) -> Episode:
    """Make tasks whose loss is the point itself, f(p) = p_0."""
    y = torch.tensor(weights)
    B, T = y.shape
    source = Objective(torch.zeros(B, 1), (), lambda p, d: p[0])
    empty = torch.zeros(B, 0)
    steps = torch.arange(1.0, T + 1).expand(B, T)
    return Episode(Support(empty, empty, source=source, key=torch.arange(B)), Examples(steps, y, source=source))


def score_losses(losses: list[list[float]], weights: list[list[float]]) -> dict[str, Any]:
    """Score iterates that have these losses at these steps."""
    scores = KINDS["objective"].score(lambda x: torch.tensor(losses)[..., None], objective_episode(weights))
    return {name: values.tolist() for name, values in scores.items()}


def test_the_score_is_the_mean_over_the_steps_that_count():
    """By hand, for the last step alone, a window, and steps of different weight; the curve has every step."""
    losses = [[8.0, 4.0, 2.0, 1.0]] * 3
    scores = score_losses(losses, [[0, 0, 0, 1], [0, 1, 1, 0], [3, 0, 0, 1]])
    assert scores == {"loss": [1.0, 3.0, 6.25], "curve": losses}


def test_an_optimizer_that_diverged_has_an_infinite_loss():
    """Means over episodes would skip NaN. At a step of weight 0 the loss does not count, whatever it is."""
    scores = score_losses([[1.0, torch.nan], [torch.inf, 2.0], [1.0, 1.0]], [[1, 1], [0, 1], [1, 1]])
    assert scores["loss"] == [torch.inf, 2.0, 1.0]
    assert scores["curve"] == [[1.0, torch.inf], [torch.inf, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize("weights", [[[0.0, 0.0]], [[1.0, -0.5]], [[1.0, float("nan")]], [[]]])
def test_steps_that_can_not_be_weighed_are_refused(weights):
    """Without a step, without a positive weight, or with a negative one, the score would have no meaning."""
    with pytest.raises(DataError, match="expected a weight for each step"):
        score_losses([[1.0] * len(weights[0])], weights)


def test_iterates_of_another_shape_are_refused():
    """One point too few would shift the curve."""
    with pytest.raises(TrainingError, match=r"shape \(1, 1, 1\) for objective, expected \(1, 2, 1\)"):
        score_losses([[1.0]], [[1, 1]])


class Descent(nn.Module):
    """Run gradient descent with a fixed rate up to any step."""

    needs = Needs(kinds=("objective",))

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def meta_gradient(self, episodes: Episode) -> Any:
        return {"loss": 0.0}

    def adapt(self, support: Support) -> Any:
        def predict(x: Tensor) -> Tensor:
            points = [support.source.initial]
            for _ in range(int(x.max())):
                points.append(points[-1] - self.rate * support.source.loss_and_gradient(points[-1])[1])
            return torch.stack(points, 1)[torch.arange(len(x))[:, None], x.long()]

        return predict


def test_an_evaluation_has_the_curve_of_every_episode():
    """The engine keeps |A p - b|^2 / 2 after each step, as plots need it; computed naively here."""
    tasks = sample_tasks.Quadratics(steps=4)
    result = Engine(Descent(0.1), tasks, hooks=()).evaluate(5)
    assert result.headline == "loss"
    assert result.scores["curve"].shape == (5, 4)
    source = tasks.sample("test", [3]).query.source
    A, b = (t[0].double().numpy() for t in source.data)
    p, expected = source.initial[0].double().numpy(), []
    for _ in range(4):
        p = p - 0.1 * A.T @ (A @ p - b)
        expected.append(0.5 * np.square(A @ p - b).sum())
    assert np.allclose(result.scores["curve"][3], expected, rtol=1e-5)
    assert result.scores["loss"][3] == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_result_with_an_optimizer_that_diverged_prints_and_round_trips():
    """Its mean is infinite and its interval unknown, also after JSON: infinity must not become a missing value."""
    result = Engine(Descent(1e30), sample_tasks.Quadratics(), hooks=()).evaluate(3)
    assert str(result) == "inf ± nan loss (3 episodes, test)"
    again = Result.from_json(result.to_json())
    assert str(again) == str(result)
    assert np.isinf(again.scores["curve"][:, -1]).all()
    strict = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert (strict["mean"], strict["interval"]) == ("inf", None)


# --- Demonstrations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
def test_policies_that_imitate_play_in_the_environment_too(discrete: bool) -> None:
    """Behind the error of the actions there are the return and the scores of rollout 0, as played by hand."""
    tasks = sample_tasks.Demonstrations(discrete, query=2)
    episode = tasks.sample("test", range(3))
    weights = torch.tensor([[1.0, -2.0]])

    def predictor(x: Tensor) -> Tensor:
        return x @ weights if discrete else -0.5 * x

    scores = KINDS[tasks.spec.kind].score(predictor, episode)
    played = episode.query.source.rollout(lambda x: (x @ weights).argmax(-1) if discrete else -0.5 * x, 0)
    assert list(scores)[-len(played.scores) - 1 :] == ["return", *played.scores]
    assert torch.allclose(scores["return"].float(), played.rewards.sum(-1).mean(-1))
    for name, values in played.scores.items():
        assert torch.allclose(scores[name].float(), values.float().mean(-1))
    assert next(iter(scores)) == KINDS[tasks.spec.kind].headline


def test_an_evaluation_reports_the_rollouts_of_an_imitator() -> None:
    """The engine needs nothing else: each score has a value per episode."""
    tasks = sample_tasks.Demonstrations()

    class Still(nn.Module):
        needs = Needs(kinds=("regression",))

        def meta_gradient(self, episodes: Episode) -> dict[str, float]:
            return {}

        def adapt(self, support: Support) -> Any:
            return torch.zeros_like

    result = Engine(Still(), tasks, hooks=()).evaluate(7)
    assert result.headline == "mse"
    assert {name: v.shape for name, v in result.scores.items()} == {"mse": (7,), "return": (7,)}
