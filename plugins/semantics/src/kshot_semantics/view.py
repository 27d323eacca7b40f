"""Tasks whose classes are described by vectors, down to zero-shot tasks (Snell et al. 2017, 1703.05175, section 2.7).

Letters: B meta-batch, N way, K shot, C classes of a split, A attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot import ClassificationTasks, Episode, Pool, TaskDistribution
from kshot.errors import DataError, MisfitError, OptionError
from kshot.preparing import Preparation
from kshot.protocols import Pooled, Portable
from kshot.randomness import episode_keys
from kshot.sampling import pooled
from kshot_semantics.drawings import ATTRIBUTES, attributes
from kshot_semantics.table import read

CHUNK = 4096
"""Drawings described at once."""


class Semantics:
    """A view of classification tasks that describes each class by a vector, its row of a table.

    With ``shot`` 0 an episode has no labelled examples: a learner knows its classes by their vectors alone.

    The table is one that is given, by the classes' names, or ``drawings``: the mean of geometric attributes (see
    ``kshot_semantics.drawings``) of ``described`` examples of each class. These are set aside, chosen by a hash of
    their rows, and are in no episode: a class's description knows nothing of the queries that are judged by it.

    Args:
        of: the tasks whose examples these are; they must have a pool of labelled examples. Their seed, way, shot and
            query have no say.
        table: a CSV file (a header, then a name and A numbers a line), an npz file (arrays names and vectors), a dict
            of name and vector, or ``drawings``.
        way, shot, query, block: of the episodes, see ``kshot.ClassificationTasks``; shot may be 0.
        seed: fixes all episodes.
        standardise: shift and scale each attribute to mean 0 and standard deviation 1 over the classes of the first
            split, train as a rule; of other splits' classes nothing is used.
        described: examples of each class that ``drawings`` describes it by.

    Raises:
        MisfitError: ``of`` is no classification or has no pool, or ``drawings`` of what is no image [1, H, W] within 0
            and 1.
        OptionError: ``described`` is not positive.
        DataError: the table can't be read, or lacks classes; at ``sample``: an unknown split, or too few examples.
    """

    def __init__(
        self,
        of: TaskDistribution,
        table: Path | str | Mapping[str, Any],
        way: int | tuple[int, int] = 5,
        shot: int | tuple[int, int] = 0,
        query: int | tuple[int, int] = 10,
        seed: int = 0,
        *,
        standardise: bool = True,
        described: int = 10,
        block: int = 1,
    ) -> None:
        self.of: Pooled = pooled(of, "semantics")
        self.seed, self.described, self.standardise = seed, described, standardise
        self.fingerprint = str(getattr(of, "fingerprint", ""))
        self._first = of.spec.splits[0]
        self._shape: dict[str, Any] = {"way": way, "shot": shot, "query": query, "block": block, "seed": seed}
        self._tasks: dict[str, ClassificationTasks] = {}
        self._vectors: dict[str, NDArray[np.float64]] = {}
        self._drawn = isinstance(table, str) and table == "drawings"
        if self._drawn:
            check_drawings(of, described)
            A = len(ATTRIBUTES)
        else:
            given = read(table)
            self._vectors = {split: given.take(self.of.pool(split).names, split) for split in of.spec.splits}
            A = given.vectors.shape[1]
        self.spec = attrs.evolve(
            of.spec,
            way=way,
            shot=shot,
            query=query,
            block=block,
            provides={"identities", "semantics"},
            semantics_shape=(A,),
        )

    def pool(self, split: str) -> Pool:
        """The labelled examples of a split, with the classes' vectors; none of those set aside (ability ``Pooled``)."""
        return self._of(split).pool(split)

    def prepare(self, raw: Any) -> Tensor:
        """Raw examples as inputs, as the tasks below do it (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """That of the tasks below, as a value (ability ``Portable``)."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``: semantics [B, N, A], support [B, N K, *input], query [B, N Q, *input]."""
        return self._of(split).sample(split, indices)

    def vectors(self, split: str) -> NDArray[np.float64]:
        """The classes' vectors as the table has them, in the order of the pool: [C, A]."""
        if split not in self._vectors:
            pool = self.of.pool(split)
            self._vectors[split] = describe(pool, set_aside(pool, self.described))
        return self._vectors[split]

    def _of(self, split: str) -> ClassificationTasks:
        """The tasks of a split, made when first asked for: describing thousands of classes takes seconds."""
        if split not in self.spec.splits:
            raise DataError(f"unknown split {split!r}; these tasks have {', '.join(self.spec.splits)}")
        if split not in self._tasks:
            pool, found = self.of.pool(split), self.vectors(split)
            if self.standardise:
                train = self.vectors(self._first)
                spread = train.std(0)
                found = (found - train.mean(0)) / np.where(spread > 0, spread, 1)
            if self._drawn:
                pool = without(pool, set_aside(pool, self.described))
            pool = attrs.evolve(pool, semantics=torch.from_numpy(found).float())
            self._tasks[split] = ClassificationTasks({split: pool}, **self._shape)
        return self._tasks[split]


def set_aside(pool: Pool, count: int) -> NDArray[np.bool_]:
    """Which places of ``pool.rows`` [C, most] are set aside: ``count`` of each class, by a hash of the rows alone."""
    words = episode_keys(0, "semantics/set aside", pool.rows.reshape(-1)).reshape(pool.rows.shape)  # type: ignore[arg-type]
    words = np.where(pool.rows >= 0, words, np.uint64(2**64 - 1))  # what only fills a row up comes last
    chosen = np.zeros(pool.rows.shape, bool)
    np.put_along_axis(chosen, words.argsort(1, kind="stable")[:, :count], True, 1)
    return chosen


def without(pool: Pool, chosen: NDArray[np.bool_]) -> Pool:
    """The pool without the examples in the ``chosen`` places [C, most], as many of each class."""
    order = chosen.argsort(1, kind="stable")
    rows = np.take_along_axis(np.where(chosen, -1, pool.rows), order, 1)
    counts = pool.counts - chosen.sum(1)
    return attrs.evolve(pool, rows=rows[:, : int(counts.max())], counts=counts)


def describe(pool: Pool, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean attributes of the drawings in the ``chosen`` places [C, most], as many of each class: [C, A]."""
    ids = pool.rows[chosen]
    parts = np.array_split(ids, range(CHUNK, len(ids), CHUNK))
    found = np.concatenate([attributes(pool.gather(part)[:, 0].double().numpy()) for part in parts])
    made: NDArray[np.float64] = found.reshape(pool.classes, -1, len(ATTRIBUTES)).mean(1)
    return made


def check_drawings(of: TaskDistribution, described: int) -> None:
    """Raises an error unless the examples are drawings, and each class has enough of them to set some aside."""
    if described < 1:
        raise OptionError(f"semantics: described is {described}, expected at least 1 example of each class")
    shape, shown = of.spec.input_shape, of.spec.input_range
    if len(shape) != 3 or shape[0] != 1 or shown != (0.0, 1.0):
        raise MisfitError(
            f"semantics: table is 'drawings', which describes images (1, height, width) of ink 1 on paper 0, and these "
            f"inputs have shape {shape} and range {shown}; give a table instead: a CSV or npz file, or a dict"
        )
    for split in of.spec.splits:
        pool = of.pool(split)  # type: ignore[attr-defined]
        if pool.fewest <= described:
            c = int(pool.counts.argmin())
            name = repr(pool.names[c]) if pool.names else f"number {c}"
            raise DataError(
                f"semantics: split {split!r}: class {name} has {pool.fewest} examples, of which {described} would be "
                "set aside to describe it and none would be left; lower described"
            )
