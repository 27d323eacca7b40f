"""Register rules for tasks, and observe the episodes that they sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kshot.episode import Episode
from kshot.testing.compare import Facts, clones, facts
from kshot.testing.rulebook.rule import Rule, add, always, named
from kshot.testing.subjects import TasksSubject

Check = Callable[[TasksSubject], None]

EPISODES = 400
"""Number of episodes over which random assignments are judged."""


def tasks_rule(unless: Callable[[TasksSubject], str | None] = always) -> Callable[[Check], Check]:
    """Register a check as a rule for tasks; ``unless`` returns the reason why it does not apply, or None."""

    def put(check: Check) -> Check:
        add(Rule(named(check), "tasks", check, unless))
        return check

    return put


def labelled_by_actions(subject: TasksSubject) -> str | None:
    """Return why rules on labels do not apply to classes that are actions: inputs show them, in their order."""
    spec = subject.spec
    actions = spec.kind == "classification" and "environment" in spec.provides
    return "their labels are actions of demonstrations" if actions else None


def observed(subject: TasksSubject, split: str, indices: list[int], tasks: Any = None) -> Facts:
    """Sample episodes again and copy everything that can be observed of them.

    Args:
        subject: the tasks under test.
        split: the split to sample from.
        indices: the numbers of the episodes.
        tasks: other tasks to sample from instead.
    """
    tasks = subject.tasks if tasks is None else tasks
    return clones(facts(tasks.sample(split, indices), subject.spec.target_shape))


def shapes(episode: Episode) -> dict[str, tuple[int, ...]]:
    """Return the shapes of support and query within one task, and the way."""
    inputs = {"support": episode.support.x, "query": episode.query.x}
    return {name: tuple(x.shape[1:]) for name, x in inputs.items()} | {"way": (episode.support.way or 0,)}
