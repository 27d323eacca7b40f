"""``kshot_l2l.tuned``: the optimizers are torch's, task by task, and the rate is the best of the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kshot
from kshot import Engine, Objective, Support
from kshot.errors import OptionError
from kshot.testing import sample_tasks
from kshot_l2l import TunedOptimizer

SPEC = sample_tasks.Quadratics().spec


def bowl(point: Tensor, data: tuple[Tensor]) -> Tensor:
    """Return an ill-conditioned bowl around 1, and a wave."""
    return (data[0] * (point - 1).square()).sum() + point.sin().sum()


@pytest.mark.parametrize(
    ("method", "alone"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01)),
        ("momentum", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        ("nesterov", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.01)),
    ],
)
def test_each_task_gets_the_steps_that_it_gets_alone(method, alone):
    """Minimising the sum of all tasks gives each task the steps that it gets alone, in float64 over twenty steps."""
    initial = torch.tensor([[0.0, 3.0, -1.0], [50.0, 0.5, 0.0]], dtype=torch.float64)
    curvature = torch.tensor([[1.0, 2.0, 30.0], [4.0, 0.1, 6.0]], dtype=torch.float64)
    source = Objective(initial, (curvature,), bowl)
    support = Support(torch.zeros(2, 0), torch.zeros(2, 0), source=source, key=torch.arange(2))
    points = TunedOptimizer(SPEC, method=method, lr=0.01).adapt(support)(torch.arange(21.0).repeat(2, 1))
    for b in range(2):
        p = initial[b].clone().requires_grad_()
        optimizer = alone([p])
        for t in range(21):
            assert torch.allclose(points[b, t], p, rtol=0, atol=1e-12)
            optimizer.zero_grad()
            ((curvature[b] * (p - 1) ** 2).sum() + p.sin().sum()).backward()
            optimizer.step()
    assert torch.equal(source.initial, initial)


def naive_scores(tasks: Any, rates: list[float], indices: range) -> list[float]:
    """Compute by numpy the mean loss of gradient descent on |A p - b|^2 / 2 over all steps and tasks."""
    source = tasks.sample("train", indices).query.source
    found = []
    for rate in rates:
        losses = []
        for b in range(len(indices)):
            A, y = (t[b].double().numpy() for t in source.data)
            p = source.initial[b].double().numpy()
            for _ in range(int(tasks.spec.query)):
                p = p - rate * A.T @ (A @ p - y)
                losses.append(0.5 * np.square(A @ p - y).sum())
        found.append(float(np.mean(losses)))
    return found


@pytest.mark.parametrize("chunk", [None, 2])
def test_training_is_the_search_for_the_rate_of_the_best_score(chunk):
    """The summed scores over two meta-batches, also in chunks, and the best rate equal those computed by hand."""
    tasks = sample_tasks.Quadratics()
    learner = TunedOptimizer(SPEC, method="sgd", lowest=0.01, highest=1.0, rates=3)
    assert learner.lr == pytest.approx(0.01)
    Engine(learner, tasks, meta_batch=4, chunk=chunk, hooks=()).train(2)
    rates = [0.01, 0.1, 1.0]
    assert learner.grid == pytest.approx(rates)
    expected = [2 * loss for loss in naive_scores(tasks, rates, range(8))]
    assert learner.losses.tolist() == pytest.approx(expected, rel=1e-4)
    assert learner.lr == pytest.approx(rates[int(np.argmin(expected))])


def test_a_rate_that_diverges_never_wins():
    """The score of a rate that diverged is infinite."""
    tasks = sample_tasks.Quadratics(steps=40)
    learner = TunedOptimizer(SPEC, method="sgd", lowest=1e-3, highest=1e9, rates=2)
    Engine(learner, tasks, meta_batch=2, hooks=()).train(3)
    assert learner.losses[1] == torch.inf
    assert learner.lr == pytest.approx(1e-3)


def test_it_trains_and_resumes_through_the_engine_without_parameters(tmp_path):
    """The table of scores is all that it learns, and the checkpoint contains it."""
    tasks = sample_tasks.Quadratics()

    def engine() -> Engine:
        return Engine(TunedOptimizer(SPEC, rates=4), tasks, meta_batch=2, hooks=(), run=tmp_path / "run")

    first, second = engine(), engine()
    metrics = first.train(3)
    assert metrics["lr"] == pytest.approx(first.learner.lr)
    assert second.resume() == 3
    assert torch.equal(first.learner.losses, second.learner.losses)
    assert second.evaluate(4).mean == first.evaluate(4).mean


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "adamw"}, r"got method 'adamw', expected one of sgd, momentum, nesterov, rmsprop, adam"),
        ({"lr": 0.0}, "expected positive rates"),
        ({"lowest": 1.0, "highest": 0.1}, "expected positive rates, the lowest first"),
        ({"rates": 0}, "expected positive rates"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    """The message gives the option, its value and what was expected."""
    with pytest.raises(OptionError, match=message):
        TunedOptimizer(SPEC, **wrong)


def test_by_name_its_methods_are_checked_like_all_options():
    """The command line gets the list of methods from the type."""
    with pytest.raises(OptionError, match="adamw"):
        kshot.learner("tuned-optimizer", SPEC, method="adamw")
