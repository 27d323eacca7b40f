"""Rules for tasks: overlaps that show in the contents of examples, whatever their identities say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from kshot.episode import Episode
from kshot.testing.rulebook.rule import broken
from kshot.testing.subjects import TasksSubject


def contents(x: Tensor) -> list[bytes]:
    """Return the bytes of each input of one task."""
    return [row.tobytes() for row in x.contiguous().numpy()]


class Repeats:
    """Count the queries whose input is also elsewhere in their episode, bit for bit.

    Args:
        part: ``support`` or ``unlabelled``.
    """

    def __init__(self, part: str) -> None:
        self.part, self.queries, self.here, self.among, self.lonely = part, 0, 0, 0, 0

    def add(self, episode: Episode) -> None:
        """Count the queries of a meta-batch."""
        others = episode.support.x if self.part == "support" else episode.support.unlabelled
        if others is None:
            return
        for x, asked, y in zip(others, episode.query.x, episode.query.y, strict=True):
            there, queries = set(contents(x)), contents(asked)
            self.queries += len(queries)
            self.here += sum(q in there for q in queries)
            self.among += len(queries) - len(set(queries))
            self.lonely += len(y.flatten().unique()) == y.numel()

    def check(self, split: str) -> None:
        """Break the rule if queries repeat examples more often than each other, as duplicates in the data would."""
        if self.here < 3 or self.here <= 0.02 * self.queries:
            return
        # Duplicates in the data would also show among the queries of a class. With one query a class they can't.
        if self.among * 2 >= self.here or (self.lonely and self.here * 2 <= self.queries):
            return
        broken(
            f"split {split!r}: got {self.here} of {self.queries} queries whose inputs are also {self.part} inputs of "
            f"their episode, bit for bit, expected none (among queries, {self.among} are repeated); draw the examples "
            "of an episode without replacement, and give them their true identities"
        )


def by_class(subject: TasksSubject, split: str) -> dict[int, set[bytes]]:
    """Return the inputs of 64 episodes of a split by class number; by 0 if the classes are not known."""
    found: dict[int, set[bytes]] = defaultdict(set)
    for episode in subject.many(split, 64, at_once=16):
        for x, y, classes in _rows(episode):
            for content, label in zip(contents(x), y, strict=True):
                found[int(classes[label]) if classes is not None and label < len(classes) else 0].add(content)
    return found


def _rows(episode: Episode) -> Iterator[tuple[Tensor, list[int], np.ndarray[tuple[int], np.dtype[np.int64]] | None]]:
    origin = episode.origin
    for part in (episode.support, episode.query):
        for b in range(episode.size):
            known = origin is not None and origin.classes is not None and not part.y.is_floating_point()
            classes = origin.classes[b] if known and origin is not None and origin.classes is not None else None
            y = part.y[b].flatten().tolist() if known else [0] * len(part.x[b])
            yield part.x[b], y, classes


def check_contents(subject: TasksSubject, a: str, b: str, known: dict[str, dict[int, set[bytes]]]) -> None:
    """Break the rule if inputs of split ``a`` are in split ``b`` too: more than half, or all of a class."""
    first, second = (known.setdefault(s, by_class(subject, s)) if s not in known else known[s] for s in (a, b))
    there: set[bytes] = set().union(*second.values())
    every: set[bytes] = set().union(*first.values())
    repeated = len(every & there)
    if repeated * 2 > len(every):
        broken(
            f"splits {a!r} and {b!r}: got {repeated} of {len(every)} inputs of {a!r} in {b!r} too, bit for bit, "
            "expected at most half; give each split its own classes or examples"
        )
    if subject.spec.split_by != "class" or len(first) < 2:
        return
    for c, inputs in first.items():
        if len(inputs) >= 3 and len(inputs & there) > 0.9 * len(inputs):
            broken(
                f"splits {a!r} and {b!r}: got {len(inputs & there)} of {len(inputs)} inputs of class {c} of {a!r} in "
                f"{b!r} too, bit for bit, expected no class in both; give each split its own classes"
            )
