"""The kit's rule for learners whose meta-gradient is a sum over tasks: a good one keeps it, broken
ones are rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Needs, Support, TaskSpec
from kshot.testing import RuleViolation, sample_tasks, suite

RULE = "task-losses-part-the-gradient"


class Whole(nn.Module):
    """One gradient step of a linear model on the support, by hand, of first order, without ``task_losses``."""

    needs = Needs(kinds=("regression",))

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*spec.input_shape, 1))
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(1))

    def fitted(self, support: Support) -> Tensor:
        """Return the adapted weights theta' [B, d, 1]."""
        errors = support.x @ self.weight - support.y
        return self.weight - 0.1 * (support.x.transpose(1, 2) @ errors).detach() / support.x.shape[1]

    def parts(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of each task [B] and its displacements."""
        adapted = self.fitted(episodes.support)
        if self.training:
            self.seen += episodes.query.y.mean()
        wrong = self.scale * (episodes.query.x @ adapted) - episodes.query.y
        return wrong.square().flatten(1).mean(1), {"weight": self.weight - adapted}

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        losses, _ = self.parts(episodes)
        losses.mean().backward()
        return {"loss": losses.mean().detach()}

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        adapted, scale = self.fitted(support).detach(), self.scale.detach()
        return lambda x: scale * (x @ adapted)


class Rates(Whole):
    """The same learner with ``task_losses``."""

    def task_losses(self, episodes: Episode) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.parts(episodes)


def summed(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Return losses whose mean has the gradient of the sum."""
    losses, away = self.parts(episodes)
    return losses * len(losses), away


def no_graph(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Return losses without a graph."""
    losses, away = self.parts(episodes)
    return losses.detach(), away


def mean(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Return one loss for all tasks."""
    losses, away = self.parts(episodes)
    return losses.mean(), away


def of_neighbours(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Return the loss of the neighbouring task; the mean and its gradient are right."""
    losses, away = self.parts(episodes)
    return losses.roll(1), away


def displaced_neighbours(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Return the displacements of the neighbouring task."""
    losses, away = self.parts(episodes)
    return losses, {n: d.roll(1, 0) for n, d in away.items()}


def shared(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Return one displacement for all tasks."""
    losses, away = self.parts(episodes)
    return losses, {n: d.mean(0) for n, d in away.items()}


def nowhere(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Return no displacement."""
    return self.parts(episodes)[0], {}


def infinite(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Return infinite displacements."""
    losses, away = self.parts(episodes)
    return losses, {n: d / 0 for n, d in away.items()}


def twice_seen(self: Whole, episodes: Episode) -> tuple[Any, Any]:
    """Update the running statistic twice."""
    self.parts(episodes)
    return self.parts(episodes)


def test_a_learner_that_parts_keeps_every_rule() -> None:
    """The learner has a parameter that does not adapt and a buffer that training changes."""
    report = suite(learner=Rates, tasks=sample_tasks.Lines).run()
    assert report.ok, str(report)
    assert {f.rule for f in report if f.outcome == "passed"} >= {RULE}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (summed, "gradient of the mean loss that differs in weight"),
        (no_graph, "with a graph"),
        (mean, r"losses of shape \(\) for 3 tasks, expected shape \(3,\)"),
        (of_neighbours, "got other values for task 0 among 3 tasks than alone: its loss"),
        (displaced_neighbours, "got other values for task 0 among 3 tasks than alone: weight"),
        (shared, "expected B = 3 as first axis"),
        (nowhere, "expected one or more tensors"),
        (infinite, "got NaN or infinite values in weight"),
        (twice_seen, "got other buffers than after meta_gradient, expected the same: seen"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_task_losses_that_do_not_add_up_are_rejected(
    broken: Callable[..., Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a wrapper would train on something else than the learner does, and nobody would notice."""
    learner = type("Broken", (Whole,), {"task_losses": broken})
    with pytest.raises(RuleViolation, match=f"{RULE}: .*{message}"):
        suite(learner=learner, tasks=sample_tasks.Lines).verify(RULE)


def test_learners_without_the_ability_are_not_asked() -> None:
    """The ability is optional, so the rule does not apply without it."""
    assert suite(learner=Whole, tasks=sample_tasks.Lines).verify(RULE) == "it has no task_losses"


def test_the_losses_of_the_good_learner_are_the_squared_errors() -> None:
    """The losses of the good learner equal torch's own mean squared error."""
    tasks = sample_tasks.Lines()
    learner, episodes = Rates(tasks.spec), tasks.sample("train", [0, 1])
    losses, away = learner.task_losses(episodes)
    for b in range(2):
        outputs = learner.scale * episodes.query.x[b] @ (learner.weight - away["weight"][b])
        assert torch.allclose(losses[b], F.mse_loss(outputs, episodes.query.y[b]))
