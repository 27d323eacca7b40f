"""Objectives are functions to be minimised: their losses and gradients, and how malformed ones are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kshot import Objective
from kshot.episode import check_objective
from kshot.errors import DataError


def bowl(point: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:
    """Compute sum_i a_i (p_i - c_i)^2 for curvature a and centre c."""
    curvature, centre = data
    return (curvature * (point - centre).square()).sum()


BOWLS = Objective(
    torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])),
    bowl,
)


def test_loss_and_gradient_are_computed_for_each_task():
    """By hand: losses 1 + 0 and 3 + 4 * 4, gradients 2 a (p - c)."""
    loss, gradient = BOWLS.loss_and_gradient(BOWLS.initial)
    assert BOWLS.loss(BOWLS.initial).tolist() == loss.tolist() == [1.0, 19.0]
    assert gradient.tolist() == [[-2.0, 0.0], [6.0, -16.0]]


@pytest.mark.parametrize("enabled", [True, False])
def test_at_a_constant_point_no_graph_is_kept(enabled):
    """An optimizer that runs for thousands of steps must not keep their graphs, with ``no_grad`` or without."""
    with torch.set_grad_enabled(enabled):
        loss_and_gradient = BOWLS.loss_and_gradient(BOWLS.initial)
    assert [t.requires_grad for t in loss_and_gradient] == [False, False]
    assert not BOWLS.initial.requires_grad


def test_through_a_point_the_loss_can_be_differentiated_and_the_gradient_on_request():
    """The first derivative is 2 a (p - c), also by ``backward``; the second, of the sum of gradients, is 2 a."""
    point = BOWLS.initial.clone().requires_grad_()
    loss, gradient = BOWLS.loss_and_gradient(point)
    assert not gradient.requires_grad
    loss.sum().backward()
    assert torch.equal(point.grad, gradient)
    _, gradient = BOWLS.loss_and_gradient(point, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), point)
    assert second.tolist() == [[2.0, 4.0], [6.0, 8.0]]


def test_autocast_does_not_change_the_precision_of_a_problem():
    """Under bfloat16 autocast a matrix product would lose the digits by which good optimizers differ."""
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
        (lambda p, d: p * d[0], (2, 3), (2, 3), r"got a loss of shape \[3\].*expected a scalar.*loss\.sum\(\)"),
        (lambda p, d: (p * d[0]).sum(0, keepdim=True), (2, 3), (2, 3), r"got a loss of shape \[1\].*expected a scalar"),
        (lambda p, d: d[0].sum(), (2, 3), (2, 3), r"does not depend on the point.*nothing to minimise"),
        (lambda p, d: (p.detach() * d[0]).sum(), (2, 3), (2, 3), r"does not depend on the point"),
        (
            lambda p, d: (p * d[0]).sum(),
            (2, 3),
            (4, 3),
            r"got points of shape \[2, 3\].*data of shapes \[\[4, 3\]\].*same B",
        ),
        (lambda p, d: (p * d[0]).sum(), (2, 3), (), r"got points of shape \[2, 3\].*data of shapes \[\[\]\]"),
    ],
    ids=["vector", "kept axis", "ignores", "detached", "other B", "no B"],
)
@pytest.mark.parametrize("follow", [False, True])
def test_malformed_objectives_are_refused(function, initial, data, message, follow):
    """The first use says what was given, what was expected and what to do, before any long compute."""
    wrong = Objective(torch.ones(initial), (torch.ones(data),), function)
    with pytest.raises(DataError, match=message):
        wrong.loss_and_gradient(wrong.initial.requires_grad_(follow))


def test_a_loss_of_other_parameters_alone_ignores_its_point_too():
    """Such a loss requires a gradient, but not that of the point."""
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(DataError, match="does not depend on the point"):
        Objective(torch.ones(2, 3), (), lambda p, d: weight.sum()).loss_and_gradient(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nothing", "got a source of type NoneType, expected a kshot.Objective"),
        (Objective(torch.ones(2, 4), (), lambda p, d: p.sum()), r"got initial of shape \[2, 4\], expected \[2, 3\]"),
        (Objective(torch.ones(1, 3), (), lambda p, d: p.sum()), r"got initial of shape \[1, 3\], expected \[2, 3\]"),
        (Objective(torch.full((2, 3), torch.nan), (), lambda p, d: p.sum()), "initial: got 6 of 6 values that are NaN"),
        (Objective(torch.ones(2, 3), (torch.ones(2) / 0,), lambda p, d: d[0] * p.sum()), r"data\[0\]: got 2 of 2"),
        (Objective(torch.zeros(2, 3), (), lambda p, d: p.log().sum()), "loss at the initial points: got 2 of 2"),
        (Objective(torch.zeros(2, 3), (), lambda p, d: p.norm() + p.sqrt().sum()), "gradient at the initial points"),
        (Objective(torch.ones(2, 3), (), lambda p, d: p), r"got a loss of shape \[3\]"),
    ],
    ids=["none", "P", "B", "initial", "data", "loss", "gradient", "vector"],
)
def test_a_malformed_task_is_refused_before_it_is_tried(wrong, message):
    """The check reports whatever would fail at the first step."""
    with pytest.raises(DataError, match=f"mine: .*{message}|{message}"):
        check_objective(None if wrong == "nothing" else wrong, 2, (3,), "mine")
