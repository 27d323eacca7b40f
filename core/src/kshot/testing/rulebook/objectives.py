"""Rules for objective tasks and for the learners that minimise them."""

from __future__ import annotations

from typing import Any

import torch

from kshot.episode import Objective, check_objective, check_weights
from kshot.errors import DataError
from kshot.testing.cases import Case, precise
from kshot.testing.compare import clones, difference, gap, named_tensors, tolerance
from kshot.testing.rulebook.learner_rule import learner_rule, only
from kshot.testing.rulebook.rule import broken
from kshot.testing.rulebook.task_rule import tasks_rule
from kshot.testing.subjects import TasksSubject


def _no_objectives(subject: TasksSubject) -> str | None:
    return None if subject.spec.kind == "objective" else f"their kind is {subject.spec.kind}"


@tasks_rule(_no_objectives)
def objectives_can_be_minimised(subject: TasksSubject) -> None:
    """The objectives of support and query have initial points [B, P] as the spec's target_shape says, at which loss and
    gradient are finite. A loss depends on the point only, and computing it writes to no tensor. The steps in query.x
    are non-negative integers. The weights in query.y are non-negative, and at least one of each task is positive.
    """
    for split in subject.spec.splits:
        episode = subject.tasks.sample(split, list(subject.block(0, 3)))
        x, where = episode.query.x, f"split {split!r}"
        if bool((x != x.round()).any() or (x < 0).any()):
            broken(f"{where}: got steps {x.flatten()[:8].tolist()}... in query.x, expected non-negative integers")
        try:
            check_weights(episode.query.y, x, f"{where}: query")
            for name, source in (("support", episode.support.source), ("query", episode.query.source)):
                check_objective(source, episode.size, subject.spec.target_shape, f"{where}: {name}.source")
                _check_pure(source, f"{where}: {name}.source")
        except DataError as refusal:
            broken(str(refusal))


def _check_pure(objective: Objective, where: str) -> None:
    """Evaluate an objective at a point, at another, and at the first again."""
    before = clones(named_tensors(objective))
    point = objective.initial.clone()
    losses = [objective.loss(at) for at in (point, point + 1, point)]
    if (far := gap(losses[0], losses[2])) > 0:
        broken(f"{where}: got a loss that differs by {far:.2g} of it at the same point again, expected the same loss")
    after = {**named_tensors(objective), "point": point}
    if where_differs := difference({**before, "point": before["initial"]}, after, 0):
        broken(f"{where}: got changed tensors after evaluating the loss, expected none: {where_differs}")


@learner_rule(only("objective"))
def iterates_by_step(case: Case) -> None:
    """A predictor of an objective task returns the iterates of the steps in ``x``, also if ``x`` has fewer steps or has
    them in another order: each number of ``x`` is the number of updates before the iterate.
    """
    learner, cast, dtype = precise(case)
    x = cast(case.episode()).query.x
    T = x.shape[1]
    all_steps = case.predict(learner, cast(case.episode()), x)
    chosen: dict[str, Any] = {
        "the last alone": [T - 1],
        "in reverse": list(range(T))[::-1],
        "every other": range(0, T, 2),
    }
    for what, steps in chosen.items():
        order = torch.tensor(list(steps))
        iterates = case.predict(learner, cast(case.episode()), x[:, order])
        expected = all_steps[:, order]
        if iterates.shape != expected.shape or gap(iterates, expected) > tolerance(dtype):
            broken(
                f"got other iterates for the steps {x[0, order].tolist()} ({what}) than for these steps among "
                f"{x[0].tolist()}, expected the points after that many updates"
            )
