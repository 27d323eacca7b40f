"""A view that adds labelled examples from outside the tasks to every episode.

Letters: B meta-batch, E external examples of an episode, C external classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import attrs
import numpy as np
import torch
from torch import Tensor

from kshot import Episode, Examples, Pool, TaskDistribution
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot.protocols import Pooled, Portable
from kshot.randomness import choose
from kshot.registry import Range
from kshot.sampling import check_split, pooled

MEASURED = "test"
"""The split whose classes may not be external ones, as it measures how well unseen classes are learnt."""


class WithExternal:
    """A view of classification tasks that adds external examples, drawn from the pool of other tasks.

    Episodes are those of the tasks below. To each of them, ``examples`` labelled examples are added as
    ``Episode.external``: a uniform draw without replacement from a split of the source, which depends on the episode
    alone. Its labels are numbers of the source's classes, whose names are ``spec.external_classes``. The source, and
    so the set of external classes, is the same for all splits of the tasks.

    Args:
        of: the tasks.
        source: the tasks whose examples are the external set. Way, shot, query and seed of the source have no effect.
        split: of the source.
        examples: E, the number of external examples of an episode.

    Raises:
        MisfitError: ``of`` or ``source`` are not classification tasks, or have no pool.
        DataError: the inputs of the source have another shape than those of the tasks; the source has no such split,
            fewer than two classes, or fewer than ``examples`` examples; or an external class is a class of the split
            ``test`` of the tasks.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = WithExternal(sample_tasks.classification(), sample_tasks.classification(), split="val", examples=8)
        >>> tasks.sample("train", [0, 1]).external.x.shape
        torch.Size([2, 8, 6])
        >>> tasks.spec.external_classes[:2]
        ('val 0', 'val 1')
    """

    def __init__(
        self,
        of: TaskDistribution,
        source: TaskDistribution,
        *,
        split: str = "train",
        examples: Annotated[int, Range(1)] = 16,
    ) -> None:
        self.of: Pooled = pooled(of, "with-external")
        self.source: Pooled = pooled(source, "with-external: source")
        if of.spec.input_shape != source.spec.input_shape:
            raise DataError(
                f"with-external: got external inputs of shape {source.spec.input_shape} for tasks with inputs of shape "
                f"{of.spec.input_shape}, expected the same shape, as one network takes both; give the source the "
                "options of the tasks, such as size"
            )
        check_split(split, source.spec)
        self.external: Pool = self.source.pool(split)
        self._ids, self._y = self.external.table()
        if self.external.classes < 2 or not 1 <= examples <= len(self._ids):
            raise DataError(
                f"with-external: got {examples} external examples from {len(self._ids)} of {self.external.classes} "
                "classes, expected at least 1, at most as many as there are, and at least 2 classes; change examples, "
                "or choose another source or split"
            )
        self.split, self.examples = split, examples
        self.seed = int(getattr(of, "seed", 0))
        self.fingerprint = "-external-".join(str(getattr(tasks, "fingerprint", "")) for tasks in (of, source))
        names = tuple(self.external.names) or tuple(f"class {c}" for c in range(self.external.classes))
        if MEASURED in of.spec.splits:
            check_unseen(self.external, self.of.pool(MEASURED))
        ranges = (of.spec.input_range, source.spec.input_range)
        low, high = zip(*(r for r in ranges if r is not None), strict=True) if any(ranges) else ((), ())
        self.spec = attrs.evolve(
            of.spec,
            input_range=(min(low), max(high)) if all(ranges) else None,
            provides={*of.spec.provides, "external"},
            external_classes=names,
        )

    def pool(self, split: str) -> Pool:
        """Return the examples of a split of the tasks below, without external ones (ability ``Pooled``)."""
        pool: Pool = self.of.pool(split)
        return pool

    def prepare(self, raw: Any) -> Tensor:
        """Turn raw examples into inputs as the tasks below do (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """The preparation of the tasks below, as a value (ability ``Portable``); None if they have none."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return the episodes of the tasks below, with external x [B, E, *input] and y [B, E]."""
        episode: Episode = self.of.sample(split, indices)  # type: ignore[attr-defined]
        keys = episode.support.key.numpy().view(np.uint64)
        chosen = choose(keys, "with-external/examples", len(self._ids), self.examples)
        x = self.external.gather(self._ids[chosen])
        return attrs.evolve(episode, external=Examples(x, torch.from_numpy(self._y[chosen])))


def check_unseen(external: Pool, measured: Pool) -> None:
    """Raise DataError if an external class is a class of the pool that measures: same name and same first example."""
    rows = {name: row for row, name in enumerate(measured.names)}
    shared = [(row, rows[name]) for row, name in enumerate(external.names) if name in rows]
    same = [
        external.names[a]
        for a, b in shared
        if torch.equal(external.gather(external.rows[a, :1]), measured.gather(measured.rows[b, :1]))
    ]
    if same:
        listed = ", ".join(map(repr, same[:3])) + (", ..." if len(same) > 3 else "")
        raise DataError(
            f"with-external: got {len(same)} external classes that are classes of split {MEASURED!r} "
            f"({listed}), expected classes that the test does not have; choose another source or split"
        )
