"""Check episodes and their shapes before any compute, so that malformed data are not found hours later."""

from __future__ import annotations

from typing import Any, cast

from kshot.episode import Episode
from kshot.errors import DataError, MisfitError
from kshot.protocols import TaskDistribution
from kshot.sampling import check_episode
from kshot.spec import TaskSpec


def expect_tasks(tasks: Any) -> TaskDistribution:
    """Return tasks, after checking that they can be sampled; for ``check``, their spec is enough.

    Raises:
        MisfitError: they are a spec.
    """
    if isinstance(tasks, TaskSpec):
        raise MisfitError("tasks: got a TaskSpec, expected the tasks themselves, such as kshot.tasks(NAME)")
    return cast(TaskDistribution, tasks)


class Door:
    """Check the first meta-batch of every split that an engine uses, once."""

    def __init__(self) -> None:
        self._entered: set[tuple[int, str]] = set()

    def enter(self, tasks: TaskDistribution, split: str, size: int) -> Episode:
        """Return the first ``size`` episodes of a split, checked.

        Raises:
            DataError: the tasks have no such split, or an episode does not fit their spec.
        """
        if split not in tasks.spec.splits:
            raise DataError(f"got split {split!r}, expected one of {', '.join(tasks.spec.splits)}")
        episode = tasks.sample(split, range(size))
        if (id(tasks), split) not in self._entered:
            check_episode(episode, tasks.spec, f"{type(tasks).__name__}, split {split!r}")
            self._entered.add((id(tasks), split))
        return episode


def check_batching(learner: Any, spec: TaskSpec, meta_batch: int, chunk: int) -> None:
    """Raise MisfitError if a meta-batch can't be divided into chunks, or does not lie within a block of one shape."""
    if learner.needs.couples_tasks and chunk < meta_batch:
        raise MisfitError(
            f"{type(learner).__name__} couples the tasks of a meta-batch, so its {meta_batch} tasks can't be computed "
            f"in chunks of {chunk}; leave chunk out or lower meta_batch"
        )
    if spec.varies and spec.block % meta_batch:
        raise MisfitError(
            f"the shape of the tasks varies every {spec.block} episodes, which is no multiple of meta_batch "
            f"{meta_batch}; choose a meta_batch that divides {spec.block}, or a larger tasks.block"
        )
