"""Objective tasks: functions to be minimised as values, and how an optimizer's iterates are scored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kshot import Engine, Episode, Examples, Needs, Objective, Result, Support
from kshot.episode import check_objective
from kshot.errors import DataError, TrainingError
from kshot.kinds import objective as score
from kshot.testing import sample_tasks


def bowl(point: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """sum_i a_i (p_i - c_i)^2."""
    curvature, centre = data
    return (curvature * (point - centre).square()).sum()


BOWLS = Objective(
    torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])),
    bowl,
)


def test_loss_and_gradient_are_each_tasks_own():
    """By hand: 1 + 0 and 3 + 4 * 4; gradients 2 a (p - c)."""
    loss, gradient = BOWLS.loss_and_gradient(BOWLS.initial)
    assert BOWLS.loss(BOWLS.initial).tolist() == loss.tolist() == [1.0, 19.0]
    assert gradient.tolist() == [[-2.0, 0.0], [6.0, -16.0]]


@pytest.mark.parametrize("enabled", [True, False])
def test_at_a_constant_point_no_graph_is_kept(enabled):
    """An optimizer that runs for thousands of steps must not remember them, under ``no_grad`` as at evaluation too."""
    with torch.set_grad_enabled(enabled):
        found = BOWLS.loss_and_gradient(BOWLS.initial)
    assert [t.requires_grad for t in found] == [False, False]
    assert not BOWLS.initial.requires_grad


def test_through_a_point_the_loss_can_be_differentiated_and_the_gradient_on_request():
    """The first derivative is 2 a (p - c) whoever takes it; the second, of the sum of gradients, is 2 a."""
    point = BOWLS.initial.clone().requires_grad_()
    loss, gradient = BOWLS.loss_and_gradient(point)
    assert not gradient.requires_grad
    loss.sum().backward()
    assert torch.equal(point.grad, gradient)
    _, gradient = BOWLS.loss_and_gradient(point, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), point)
    assert second.tolist() == [[2.0, 4.0], [6.0, 8.0]]


def test_a_problem_does_not_change_with_the_precision_of_who_solves_it():
    """Under bfloat16 autocast a matrix product would lose the digits that tell a good optimizer from a better one."""
    matrix = torch.full((1, 3, 3), 1.001)
    problem = Objective(torch.full((1, 3), 1.001), (matrix,), lambda p, d: (d[0] @ p).square().sum())
    expected = 3 * (3 * 1.001**2) ** 2
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = problem.loss_and_gradient(problem.initial)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize(
    ("function", "initial", "data", "message"),
    [
        (lambda p, d: p * d[0], (2, 3), (2, 3), r"gave shape \[3\].*expected a scalar.*loss\.sum\(\)"),
        (lambda p, d: (p * d[0]).sum(0, keepdim=True), (2, 3), (2, 3), r"gave shape \[1\].*expected a scalar"),
        (lambda p, d: d[0].sum(), (2, 3), (2, 3), r"does not depend on the point.*nothing to minimise"),
        (lambda p, d: (p.detach() * d[0]).sum(), (2, 3), (2, 3), r"does not depend on the point"),
        (lambda p, d: (p * d[0]).sum(), (2, 3), (4, 3), r"points have shape \[2, 3\].*data \[\[4, 3\]\].*one B"),
        (lambda p, d: (p * d[0]).sum(), (2, 3), (), r"points have shape \[2, 3\].*data \[\[\]\]"),
    ],
    ids=["vector", "kept axis", "ignores", "detached", "other B", "no B"],
)
@pytest.mark.parametrize("follow", [False, True])
def test_malformed_objectives_are_told(function, initial, data, message, follow):
    """What came, what was expected and what to do, when first used: before any long compute."""
    wrong = Objective(torch.ones(initial), (torch.ones(data),), function)
    with pytest.raises(DataError, match=message):
        wrong.loss_and_gradient(wrong.initial.requires_grad_(follow))


def test_a_loss_of_other_parameters_alone_ignores_its_point_too():
    """It requires a gradient, but not that of the point."""
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(DataError, match="does not depend on the point"):
        Objective(torch.ones(2, 3), (), lambda p, d: weight.sum()).loss_and_gradient(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nothing", "source is NoneType, expected a kshot.Objective"),
        (Objective(torch.ones(2, 4), (), lambda p, d: p.sum()), r"initial has shape \[2, 4\], expected \[2, 3\]"),
        (Objective(torch.ones(1, 3), (), lambda p, d: p.sum()), r"initial has shape \[1, 3\], expected \[2, 3\]"),
        (Objective(torch.full((2, 3), torch.nan), (), lambda p, d: p.sum()), "initial: 6 of 6 values are NaN"),
        (Objective(torch.ones(2, 3), (torch.ones(2) / 0,), lambda p, d: d[0] * p.sum()), r"data\[0\]: 2 of 2"),
        (Objective(torch.zeros(2, 3), (), lambda p, d: p.log().sum()), "loss at the initial points: 2 of 2"),
        (Objective(torch.zeros(2, 3), (), lambda p, d: p.norm() + p.sqrt().sum()), "gradient at the initial points"),
        (Objective(torch.ones(2, 3), (), lambda p, d: p), r"gave shape \[3\]"),
    ],
    ids=["none", "P", "B", "initial", "data", "loss", "gradient", "vector"],
)
def test_a_malformed_task_is_told_before_it_is_tried(wrong, message):
    """Who checks tasks finds everything that would go wrong at the first step."""
    with pytest.raises(DataError, match=f"mine: .*{message}|{message}"):
        check_objective(None if wrong == "nothing" else wrong, 2, (3,), "mine")


# --- The score ------------------------------------------------------------------------------------


def episode(weights: list[list[float]]) -> Episode:
    """Losses are the points themselves: f(p) = p_0."""
    y = torch.tensor(weights)
    B, T = y.shape
    source = Objective(torch.zeros(B, 1), (), lambda p, d: p[0])
    empty = torch.zeros(B, 0)
    steps = torch.arange(1.0, T + 1).expand(B, T)
    return Episode(Support(empty, empty, source=source, key=torch.arange(B)), Examples(steps, y, source=source))


def scored(losses: list[list[float]], weights: list[list[float]]) -> dict[str, Any]:
    found = score(lambda x: torch.tensor(losses)[..., None], episode(weights))
    return {name: values.tolist() for name, values in found.items()}


def test_the_score_is_the_mean_over_the_steps_that_count():
    """By hand: the end alone, a window, and steps of different weight; the curve has every step."""
    losses = [[8.0, 4.0, 2.0, 1.0]] * 3
    found = scored(losses, [[0, 0, 0, 1], [0, 1, 1, 0], [3, 0, 0, 1]])
    assert found == {"loss": [1.0, 3.0, 6.25], "curve": losses}


def test_an_optimizer_that_diverged_is_left_out_of_no_mean():
    """NaN would be skipped by means over episodes; where a step does not count, nothing of it does."""
    found = scored([[1.0, torch.nan], [torch.inf, 2.0], [1.0, 1.0]], [[1, 1], [0, 1], [1, 1]])
    assert found["loss"] == [torch.inf, 2.0, 1.0]
    assert found["curve"] == [[1.0, torch.inf], [torch.inf, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize("weights", [[[0.0, 0.0]], [[1.0, -0.5]], [[1.0, float("nan")]], [[]]])
def test_steps_that_can_not_be_weighed_are_refused(weights):
    """No step at all, none that counts, or a negative one: the score would mean nothing."""
    with pytest.raises(DataError, match="expected a weight for each step"):
        scored([[1.0] * len(weights[0])], weights)


def test_iterates_of_another_shape_are_refused():
    """One point too few would shift the curve."""
    with pytest.raises(TrainingError, match=r"shape \(1, 1, 1\) for objective, expected \(1, 2, 1\)"):
        scored([[1.0]], [[1, 1]])


class Descent(nn.Module):
    """Gradient descent with a fixed rate, asked for any steps."""

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
    """What a picture on a log axis needs, through the engine: |A p - b|^2 / 2 after each step, naively."""
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


def test_a_result_with_an_optimizer_that_diverged_prints_and_travels():
    """Its mean is infinite and its interval unknown, after JSON too, where infinity must not become a missing value."""
    result = Engine(Descent(1e30), sample_tasks.Quadratics(), hooks=()).evaluate(3)
    assert str(result) == "inf ± nan loss (3 episodes, test)"
    again = Result.from_json(result.to_json())
    assert str(again) == str(result)
    assert np.isinf(again.scores["curve"][:, -1]).all()
    strict = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert (strict["mean"], strict["interval"]) == ("inf", None)
