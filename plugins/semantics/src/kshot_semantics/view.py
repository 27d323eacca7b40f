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
from kshot.sampling import check_split, class_name, pooled
from kshot_semantics.drawings import ATTRIBUTES, attributes
from kshot_semantics.table import read

CHUNK = 4096
"""The number of drawings that are described at once, to bound the memory."""


class Semantics:
    """A view of classification tasks that describes each class by a vector, its row of a table.

    With ``shot`` 0 an episode has no labelled examples, and a learner knows the classes by their vectors alone.

    The table is either given, with the names of the classes, or computed: ``drawings`` is the mean of geometric
    attributes (see ``kshot_semantics.drawings``) over ``described`` examples of each class. A hash of the rows chooses
    these examples, and no episode shows them, so the queries have no part in the description of their class.

    Args:
        of: the tasks that the examples are taken from; they must have a pool of labelled examples. Their own seed,
            way, shot and query have no effect.
        table: a CSV file (a header line, then a name and A numbers per line), an npz file (arrays names and vectors),
            a dict of names and vectors, or ``drawings``.
        way, shot, query, block: options of the episodes, see ``kshot.ClassificationTasks``; shot may be 0.
        seed: fixes all episodes.
        standardise: shift and scale each attribute to mean 0 and standard deviation 1 over the classes of the first
            split (usually train); the classes of other splits are not used.
        described: number of examples of each class from which ``drawings`` computes its vector.

    Raises:
        MisfitError: ``of`` are not classification tasks or have no pool; or the table is ``drawings`` and the inputs
            are not images [1, H, W] with values from 0 to 1.
        OptionError: ``described`` is not positive.
        DataError: the table cannot be read, or lacks classes; at ``sample``: the split is unknown, or a class has too
            few examples.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> from kshot_semantics import Semantics
        >>> below = sample_tasks.classification()
        >>> table = {f"{split} {c}": [c, c % 2] for split in below.spec.splits for c in range(10)}
        >>> Semantics(below, table, way=3).sample("test", [0]).support.semantics.shape
        torch.Size([1, 3, 2])
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
            rows = read(table)
            self._vectors = {split: rows.take(self.of.pool(split).names, split) for split in of.spec.splits}
            A = rows.vectors.shape[1]
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
        """Return the labelled examples of a split with class vectors, without those set aside (ability ``Pooled``)."""
        return self._of(split).pool(split)

    def prepare(self, raw: Any) -> Tensor:
        """Turn raw examples into inputs as the tasks below do (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """The preparation of the tasks below, as a value (ability ``Portable``); None if they have none."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices``: semantics [B, N, A], support [B, N K, *input] and query [B, N Q, *input]."""
        return self._of(split).sample(split, indices)

    def vectors(self, split: str) -> NDArray[np.float64]:
        """Return the class vectors of the table, before standardisation, in the order of the pool [C, A]."""
        if split not in self._vectors:
            pool = self.of.pool(split)
            self._vectors[split] = describe(pool, set_aside(pool, self.described))
        return self._vectors[split]

    def _of(self, split: str) -> ClassificationTasks:
        """Return the tasks of a split, made at the first call: describing thousands of classes takes seconds."""
        check_split(split, self.spec)
        if split not in self._tasks:
            pool, vectors = self.of.pool(split), self.vectors(split)
            if self.standardise:
                # The scale is that of the training classes. A constant attribute becomes 0.
                train = self.vectors(self._first)
                spread = train.std(0)
                vectors = (vectors - train.mean(0)) / np.where(spread > 0, spread, 1)
            if self._drawn:
                pool = without(pool, set_aside(pool, self.described))
            pool = attrs.evolve(pool, semantics=torch.from_numpy(vectors).float())
            self._tasks[split] = ClassificationTasks({split: pool}, **self._shape)
        return self._tasks[split]


def set_aside(pool: Pool, count: int) -> NDArray[np.bool_]:
    """Choose ``count`` examples of each class by a hash of their rows: a mask over ``pool.rows`` [C, most]."""
    words = episode_keys(0, "semantics/set aside", pool.rows.reshape(-1)).reshape(pool.rows.shape)  # type: ignore[arg-type]
    words = np.where(pool.rows >= 0, words, np.uint64(2**64 - 1))  # the padding comes last
    chosen = np.zeros(pool.rows.shape, bool)
    np.put_along_axis(chosen, words.argsort(1, kind="stable")[:, :count], True, 1)
    return chosen


def without(pool: Pool, chosen: NDArray[np.bool_]) -> Pool:
    """Return the pool without the ``chosen`` examples, a mask [C, most] with the same number for each class."""
    order = chosen.argsort(1, kind="stable")  # moves the chosen places behind the others
    rows = np.take_along_axis(np.where(chosen, -1, pool.rows), order, 1)
    counts = pool.counts - chosen.sum(1)
    return attrs.evolve(pool, rows=rows[:, : int(counts.max())], counts=counts)


def describe(pool: Pool, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each class's mean attributes [C, A] over its ``chosen`` drawings.

    Args:
        pool: the drawings.
        chosen: mask over ``pool.rows`` [C, most], with the same number for each class.
    """
    ids = pool.rows[chosen]
    chunks = np.array_split(ids, range(CHUNK, len(ids), CHUNK))
    described = np.concatenate([attributes(pool.gather(chunk)[:, 0].double().numpy()) for chunk in chunks])
    means: NDArray[np.float64] = described.reshape(pool.classes, -1, len(ATTRIBUTES)).mean(1)
    return means


def check_drawings(of: TaskDistribution, described: int) -> None:
    """Raise an error unless the inputs are drawings, and each class has enough of them to set some aside.

    Raises:
        OptionError: ``described`` is not positive.
        MisfitError: the inputs are not images [1, H, W] with values from 0 to 1.
        DataError: a class has too few examples.
    """
    if described < 1:
        raise OptionError(f"semantics: got described {described}, expected at least 1 example of each class")
    shape, values = of.spec.input_shape, of.spec.input_range
    if len(shape) != 3 or shape[0] != 1 or values != (0.0, 1.0):
        raise MisfitError(
            f"semantics: got inputs of shape {shape} and range {values}, expected images (1, height, width) of ink 1 "
            "on paper 0, which table='drawings' describes; give a table instead: a CSV or npz file, or a dict"
        )
    for split in of.spec.splits:
        pool = of.pool(split)  # type: ignore[attr-defined]
        if pool.fewest <= described:
            name = class_name(pool, int(pool.counts.argmin()))
            raise DataError(
                f"semantics: got described {described}, but class {name} of split {split!r} has {pool.fewest} "
                "examples, and none would be left when these are set aside to describe it; lower described"
            )
