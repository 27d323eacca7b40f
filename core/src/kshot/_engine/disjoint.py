"""Draw episodes that share no example with each other, so that their scores are those of separate examples.

Ordinary episodes are drawn independently, so in a split of few examples the same examples are in many of them. The
interval over such episodes gets smaller with each further episode, although there are no further examples.

Letters: B episodes, N way, K shot, Q queries per class, C classes of a pool, E disjoint episodes of a split.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kshot import randomness
from kshot.episode import Episode
from kshot.errors import DataError, MisfitError
from kshot.pools import Pool
from kshot.protocols import Pooled, Redrawn, TaskDistribution
from kshot.sampling import Drawn
from kshot.spec import TaskSpec, bounds

log = logging.getLogger("kshot.runs")


def disjoint(tasks: TaskDistribution, split: str, episodes: int) -> tuple[Disjoint, int]:
    """Return tasks whose episodes share no example, and how many of the wanted ones a split has; log it if fewer.

    Raises:
        MisfitError: the episodes of these tasks are not drawn from a pool, or have varying shapes.
        DataError: the split does not have enough examples for one episode.
    """
    view = Disjoint(tasks)
    number = view.number(split)
    if number < episodes:
        log.warning(
            "note: split %r has examples for %d disjoint episodes, fewer than the %d that were asked for; with fewer "
            "queries (--tasks.query) there are more",
            split,
            number,
            episodes,
        )
    return view, min(number, episodes)


class Disjoint:
    """A view of classification tasks whose episodes of a split share no example with each other.

    The examples of each class are divided at random into groups of shot + query. Each episode takes one group of each
    of its classes, of those that have the most groups left, which gives as many episodes as possible. Episode i
    depends on the seed, the split and i alone.

    Args:
        of: the tasks; they have a pool, and can be drawn by another function (ability ``Redrawn``).

    Raises:
        MisfitError: they don't have these abilities, or their way, shot or query varies.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = Disjoint(sample_tasks.classification(way=2, shot=1, query=1))
        >>> ids = [i for b in range(3) for i in tasks.sample("test", [b]).origin.query_ids.flat]
        >>> len(set(ids)) == len(ids)
        True
    """

    def __init__(self, of: TaskDistribution) -> None:
        who = f"disjoint: got {of.spec.kind} tasks"
        if of.spec.kind != "classification" or not isinstance(of, Pooled) or not isinstance(of, Redrawn):
            raise MisfitError(
                f"{who} ({type(of).__name__}), expected classification tasks whose episodes are drawn from a pool of "
                "examples; leave disjoint out"
            )
        if of.spec.varies:
            raise MisfitError(
                f"{who} of varying way, shot or query, expected fixed ones; choose them, e.g. --tasks.way=5"
            )
        self._of = of
        self.spec: TaskSpec = of.spec
        self.seed = int(getattr(of, "seed", 0))
        self._composed: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def number(self, split: str) -> int:
        """Return E, the number of disjoint episodes of a split.

        Raises:
            DataError: it does not have enough examples for one.
        """
        of: Any = self._of
        pool = of.pool(split)
        way, shot, query = self._shape
        number = number_of(pool.counts, way, shot + query)
        if number == 0:
            able = int((pool.counts >= shot + query).sum())
            raise DataError(
                f"split {split!r}: got {able} classes with at least shot + query = {shot} + {query} = {shot + query} "
                f"examples, expected at least {way} (way) for one episode; lower way, shot or query, or add examples"
            )
        return number

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices`` of ``split``, stacked into one meta-batch.

        Raises:
            DataError: there are fewer episodes.
        """
        wanted, number = np.asarray(indices, np.int64), self.number(split)
        if not len(wanted) or wanted.min() < 0 or wanted.max() >= number:
            raise DataError(f"disjoint: got episodes {list(indices)[:5]}, expected some of 0 to {number - 1}")

        def draw(pool: Pool, keys: randomness.U64, way: int, shot: int, query: int) -> Drawn:
            """Return the episodes ``wanted``, as rows of the pool of the tasks."""
            if split not in self._composed:
                self._composed[split] = composed(pool, split, self.seed, way, shot + query)
            classes, rows = self._composed[split]
            return arranged(keys, classes[wanted], rows[wanted], shot)

        redrawn: Any = self._of
        episode: Episode = redrawn.sample_drawn(split, indices, draw)
        return episode

    @property
    def _shape(self) -> tuple[int, int, int]:
        """N, K and Q."""
        way, shot, query = (bounds(count)[0] or 0 for count in (self.spec.way, self.spec.shot, self.spec.query))
        return way, shot, query


def arranged(keys: randomness.U64, classes: NDArray[np.int64], rows: NDArray[np.int64], shot: int) -> Drawn:
    """Divide the chosen examples of episodes into support and query, and put the queries in random order.

    Args:
        keys: of the episodes [B].
        classes: class numbers within the pool [B, N].
        rows: rows of the pool [B, N, K + Q], of which the first K of each class are its support.
        shot: K.

    Example:
        >>> arranged(randomness.episode_keys(0, "train", [0]), np.array([[1, 0]]), np.array([[[2], [0]]]), 1).ids
        array([[2, 0]])
    """
    (B, way), query = classes.shape, rows.shape[2] - shot
    order = randomness.draws(keys, "query order", way * query).argsort(axis=1)  # [B, N * Q]
    queries = rows[:, :, shot:].reshape(B, way * query)[np.arange(B)[:, None], order]
    ids = np.concatenate([rows[:, :, :shot].reshape(B, way * shot), queries], 1)
    return Drawn(keys, classes, ids, order // max(query, 1))


def number_of(counts: NDArray[np.int64], way: int, size: int) -> int:
    """Return how many episodes can be composed that share no example: the greatest E with sum min(g_c, E) >= N E.

    Args:
        counts: the number of examples of each class [C]; class c has g_c = counts[c] // size groups.
        way: N.
        size: K + Q, the examples of a class in an episode.

    Example:
        >>> number_of(np.array([6, 6, 6, 2]), way=2, size=2)  # groups 3, 3, 3, 1
        5
    """
    groups = counts // size
    E = int(groups.sum()) // way
    while E and int(np.minimum(groups, E).sum()) < way * E:
        E -= 1
    return E


def composed(pool: Pool, split: str, seed: int, way: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the classes [E, N] and the rows [E, N, size] of as many disjoint episodes as a pool has examples for.

    Args:
        pool: of the split; it has examples for at least one episode.
        split, seed: determine the random choices.
        way: N.
        size: K + Q.
    """
    # 1. Put the examples of each class in random order; the padding of rows comes last.
    key = randomness.episode_keys(seed, f"{split}/disjoint", [0])
    C, most = pool.rows.shape
    order = randomness.draws(randomness.draws(key, "examples", C).reshape(-1), "rows", most) >> np.uint64(1)
    places = np.where(pool.rows >= 0, order, np.uint64(2**64 - 1)).argsort(axis=1, kind="stable")
    rows = np.take_along_axis(pool.rows, places, axis=1)
    # 2. Each episode takes the next group of N classes: of those with the most groups left, at random among equals.
    left = pool.counts // size
    episodes: list[NDArray[np.int64]] = []
    while int((left > 0).sum()) >= way:
        chance = randomness.draws(randomness.episode_keys(seed, f"{split}/disjoint classes", [len(episodes)]), "", C)[0]
        chosen = np.lexsort((chance, -left))[:way]
        episodes.append(chosen[randomness.draws(chance[:1], "labels", way)[0].argsort()])
        left[chosen] -= 1
    # 3. Episode i is the i-th in a random order, as the last ones have other classes where classes differ in size.
    shuffled = randomness.draws(key, "order", len(episodes))[0].argsort()
    classes = np.stack(episodes)
    used = np.zeros(C, np.int64)
    groups = np.empty_like(classes)
    for e, row in enumerate(classes):
        groups[e] = used[row]
        used[row] += 1
    columns = groups[:, :, None] * size + np.arange(size)
    return classes[shuffled], rows[classes[:, :, None], columns][shuffled]
