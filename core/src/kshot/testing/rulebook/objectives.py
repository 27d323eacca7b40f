"""Rules for objective tasks, and for the learners that minimise them."""

from __future__ import annotations

from typing import Any

import torch

from kshot.episode import Objective, check_objective, check_weights
from kshot.errors import DataError
from kshot.testing.cases import Case, precise
from kshot.testing.compare import clones, difference, gap, named_tensors, tolerance
from kshot.testing.rulebook.learner_rule import learner_rule, only
from kshot.testing.rulebook.rule import broken
from kshot.testing.rulebook.tasks import tasks_rule
from kshot.testing.subjects import TasksSubject


def _no_objectives(subject: TasksSubject) -> str | None:
    return None if subject.spec.kind == "objective" else f"their kind is {subject.spec.kind}"


@tasks_rule(_no_objectives)
def objectives_can_be_minimised(subject: TasksSubject) -> None:
    """The objectives of support and query have initial points [B, P] by the spec's target_shape, at which loss and
    gradient are finite; they depend on the point alone, and write to nothing. The steps of the query are whole
    numbers, none negative, and its targets weigh them: none negative, in each task one positive.
    """
    for split in subject.spec.splits:
        episode = subject.tasks.sample(split, list(subject.block(0, 3)))
        x, where = episode.query.x, f"split {split!r}"
        if bool((x != x.round()).any() or (x < 0).any()):
            broken(f"{where}: query.x has steps {x.flatten()[:8].tolist()}..., expected whole numbers from 0 on")
        try:
            check_weights(episode.query.y, x, f"{where}: query")
            for name, source in (("support", episode.support.source), ("query", episode.query.source)):
                check_objective(source, episode.size, subject.spec.target_shape, f"{where}: {name}.source")
                _check_pure(source, f"{where}: {name}.source")
        except DataError as found:
            broken(str(found))


def _check_pure(objective: Objective, where: str) -> None:
    before = clones(named_tensors(objective))
    point = objective.initial.clone()
    found = [objective.loss(at) for at in (point, point + 1, point)]
    if gap(found[0], found[2]) > 0:
        broken(f"{where}: evaluated again at the same point, the loss differs by {gap(found[0], found[2]):.2g} of it")
    after = {**named_tensors(objective), "point": point}
    if where_differs := difference({**before, "point": before["initial"]}, after, 0):
        broken(f"{where}: evaluating the loss wrote to its tensors: {where_differs}")


@learner_rule(only("objective"))
def iterates_by_step(case: Case) -> None:
    """Asked for fewer steps, or in another order, a predictor of an objective task gives the iterates of those steps:
    ``x`` says how many updates were made, not how often it is asked.
    """
    learner, cast, dtype = precise(case)
    x = cast(case.episode()).query.x
    T = x.shape[1]
    whole = case.predict(learner, cast(case.episode()), x)
    chosen: dict[str, Any] = {
        "the last alone": [T - 1],
        "in reverse": list(range(T))[::-1],
        "every other": range(0, T, 2),
    }
    for what, steps in chosen.items():
        order = torch.tensor(list(steps))
        found = case.predict(learner, cast(case.episode()), x[:, order])
        if found.shape != whole[:, order].shape or gap(found, whole[:, order]) > tolerance(dtype):
            broken(
                f"asked for steps {x[0, order].tolist()} ({what}), it gives other iterates than for these steps among "
                f"{x[0].tolist()}; expected the points after so many updates"
            )
