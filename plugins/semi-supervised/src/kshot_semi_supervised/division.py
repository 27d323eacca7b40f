"""The two parts of every class, and which examples an episode draws from them.

Letters as in ``view``: B meta-batch, N way, K shot, Q queries a class, D distractor classes, M unlabelled examples a
class, U = (N + D) M, C classes of a split.
"""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot import Pool
from kshot.randomness import U64, choose, draws, episode_keys


@frozen(eq=False)
class Divided:
    """The classes of a split, each divided in two.

    Attributes:
        pool: their examples.
        rows: of each class, its rows of the pool's table: the labelled part, the unlabelled part, -1 [C, most].
        labelled: examples of the labelled part [C].
    """

    pool: Pool
    rows: NDArray[np.int64]
    labelled: NDArray[np.int64]

    @classmethod
    def of(cls, pool: Pool, labelled: int | float, seed: int) -> Divided:
        """Divide by a hash of each example's row, so that a class has the same parts in every split that has it."""
        words = episode_keys(seed, "semi-supervised/division", pool.rows.reshape(-1)).reshape(pool.rows.shape)  # type: ignore[arg-type]
        order = in_groups(words, (pool.rows < 0).astype(np.uint64))
        if isinstance(labelled, int):
            number = np.full(pool.classes, labelled)
        else:
            number = np.maximum(1, np.rint(labelled * pool.counts).astype(np.int64))
        return cls(pool, np.take_along_axis(pool.rows, order, 1), number)

    def draw(
        self, keys: U64, classes: NDArray[np.int64], way: int, counts: tuple[int, int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows of support [B, N K], query [B, N Q] and unlabelled [B, U], class by class.

        Args:
            classes: [B, N + D]; the first ``way`` of them have support and query.
            counts: K, Q, M.
        """
        K, Q, M = counts
        B, most = len(keys), self.rows.shape[1]
        own = draws(keys, "examples", classes.shape[1]).reshape(-1)  # a key for each class of each episode
        words = draws(own, "rows", most).reshape(*classes.shape, most)
        number = self.pool.counts[classes][..., None]
        column = np.arange(most)
        group = (column >= self.labelled[classes][..., None]).astype(np.uint64) + (column >= number)
        rows = np.take_along_axis(self.rows[classes], in_groups(words, group), -1)  # both parts in random order
        last = np.take_along_axis(rows, number - 1 - np.arange(M), -1)  # so that support and query don't depend on M
        parts = (rows[:, :way, :K], rows[:, :way, K : K + Q], last)
        support, query, more = (part.reshape(B, -1) for part in parts)
        return support, query, more


def in_groups(words: U64, group: U64) -> NDArray[np.int64]:
    """The order in which the last axis is sorted by ``group`` (0 to 3), and at random, by ``words``, within each."""
    return ((words >> np.uint64(2)) | (group << np.uint64(62))).argsort(axis=-1, kind="stable")


def choose_others(keys: U64, purpose: str, population: int, taken: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` different integers of [0, population) that are not among ``taken`` [B, n]: [B, count]."""
    if not count:
        return np.zeros((len(keys), 0), np.int64)
    chosen = choose(keys, purpose, population - taken.shape[1], count)
    for passed in np.sort(taken, axis=1).T:  # the numbers that are left, counted off
        chosen = chosen + (chosen >= passed[:, None])
    return chosen


def shuffled(
    keys: U64, purpose: str, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows [B, n] and their labels [n], in a random order of each episode: both [B, n]."""
    order = draws(keys, purpose, rows.shape[1]).argsort(axis=1)
    return np.take_along_axis(rows, order, 1), labels[order]
