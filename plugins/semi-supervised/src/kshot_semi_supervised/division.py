"""Division of every class into a labelled and an unlabelled part, and the draw of an episode's examples from both.

Letters as in ``view``: B meta-batch, N way, K shot, Q queries per class, D distractor classes, M unlabelled examples
per class, U = (N + D) M, C classes of a split.
"""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kshot import Pool
from kshot.randomness import U64, choose, draws, episode_keys


@frozen(eq=False)
class Divided:
    """Store the classes of a split, each divided into a labelled and an unlabelled part.

    Attributes:
        pool: the examples of the classes.
        rows: for each class its rows of the pool's table [C, most]: first the labelled part, then the unlabelled
            part, then -1 as padding.
        labelled: the number of examples in the labelled part of each class [C].
    """

    pool: Pool
    rows: NDArray[np.int64]
    labelled: NDArray[np.int64]

    @classmethod
    def of(cls, pool: Pool, labelled: int | float, seed: int) -> Divided:
        """Divide by a hash of each example's row, so that a class is divided alike in every split that has it."""
        # Sort each class's rows by their hash; the padding (-1) comes last.
        words = episode_keys(seed, "semi-supervised/division", pool.rows.reshape(-1)).reshape(pool.rows.shape)  # type: ignore[arg-type]
        order = in_groups(words, (pool.rows < 0).astype(np.uint64))
        # An integer is a number of examples; a fraction leaves at least one example of each class.
        if isinstance(labelled, int):
            number = np.full(pool.classes, labelled)
        else:
            number = np.maximum(1, np.rint(labelled * pool.counts).astype(np.int64))
        return cls(pool, np.take_along_axis(pool.rows, order, 1), number)

    def draw(
        self, keys: U64, classes: NDArray[np.int64], way: int, counts: tuple[int, int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Draw the rows of support [B, N K], query [B, N Q] and unlabelled examples [B, U], class by class.

        Args:
            keys: keys of the episodes [B].
            classes: class numbers [B, N + D]; the first ``way`` of them have support and query.
            way: N.
            counts: K, Q and M.
        """
        K, Q, M = counts
        B, most = len(keys), self.rows.shape[1]
        class_keys = draws(keys, "examples", classes.shape[1]).reshape(-1)  # a key for each class of each episode
        words = draws(class_keys, "rows", most).reshape(*classes.shape, most)
        number = self.pool.counts[classes][..., None]
        # Shuffle each part by itself: group 0 is the labelled part, 1 the unlabelled part, 2 the padding.
        column = np.arange(most)
        group = (column >= self.labelled[classes][..., None]).astype(np.uint64) + (column >= number)
        rows = np.take_along_axis(self.rows[classes], in_groups(words, group), -1)
        # Support and query come from the front, the unlabelled examples from the back: then M changes neither of them.
        last = np.take_along_axis(rows, number - 1 - np.arange(M), -1)
        parts = (rows[:, :way, :K], rows[:, :way, K : K + Q], last)
        support, query, unlabelled = (part.reshape(B, -1) for part in parts)
        return support, query, unlabelled


def in_groups(words: U64, group: U64) -> NDArray[np.int64]:
    """Return the order that sorts the last axis by ``group`` (0 to 3), and by the random ``words`` within a group."""
    return ((words >> np.uint64(2)) | (group << np.uint64(62))).argsort(axis=-1, kind="stable")


def choose_others(keys: U64, purpose: str, population: int, taken: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Choose ``count`` different integers of [0, population) that are not among ``taken`` [B, n]: [B, count]."""
    if not count:
        return np.zeros((len(keys), 0), np.int64)
    chosen = choose(keys, purpose, population - taken.shape[1], count)
    # ``chosen`` counts the integers that are left. Skip each taken one, in rising order, to get the integers.
    for skipped in np.sort(taken, axis=1).T:
        chosen = chosen + (chosen >= skipped[:, None])
    return chosen


def shuffled(
    keys: U64, purpose: str, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows [B, n] and their labels [n] in a random order for each episode: both [B, n]."""
    order = draws(keys, purpose, rows.shape[1]).argsort(axis=1)
    return np.take_along_axis(rows, order, 1), labels[order]
