"""The tests of one run: told apart by what they don't share, and compared where they are of the same episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from kshot.runs.recipe import Table
from kshot._engine.result import Difference, Result

PRINTED = ("way", "shot")
"""Options of the tasks that a result's own line shows."""


@frozen
class Compared:
    """One test against the first of those on the same episodes.

    Attributes:
        test, against: labels of the two.
        difference: of the first from the second.
    """

    test: str
    against: str
    difference: Difference

    def to_dict(self) -> Table:
        return {"test": self.test, "against": self.against, **self.difference.to_dict()}

    def __str__(self) -> str:
        return f"{self.test} against {self.against}: {self.difference}"


def labels(tests: Sequence[tuple[Table, Table]]) -> tuple[str, ...]:
    """A name for each test, (options of the tasks, of the learner): the options that are not the same in all.

    ``"refine soft, distractors 5"``; empty where what a result prints says it all.
    """
    flat = [{**dict(_flat(learner)), **dict(_flat(tasks))} for tasks, learner in tests]
    names = list(dict.fromkeys(name for options in flat for name in options))
    absent = object()
    told = [n for n in names if n not in PRINTED and any(o.get(n, absent) != flat[0].get(n, absent) for o in flat)]
    return tuple(", ".join(f"{name} {options[name]}" for name in told if name in options) for options in flat)


def _flat(options: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options by dotted names."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def compare(results: Sequence[Result], names: Sequence[str]) -> tuple[Compared, ...]:
    """The paired difference of each result from the first one of the same episodes."""
    found = []
    for i, result in enumerate(results):
        first = next(j for j in range(i + 1) if not result.other_episodes(results[j]))
        if first < i:
            test, against = (names[k] or f"test {k + 1}" for k in (i, first))
            found.append(Compared(test, against, result.minus(results[first])))
    return tuple(found)
