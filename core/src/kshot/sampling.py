"""Sample N-way K-shot episodes from tables of labelled examples, each by its number, without Python loops.

A data-set plugin loads one contiguous tensor and says which rows belong to which class of which split (a ``Pool`` per
split). ``ClassificationTasks`` is a complete ``TaskDistribution`` over those pools.

Letters: B episodes, N way, K shot, Q queries per class, S = N * K support size, C classes of a pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot import randomness
from kshot._shown import described
from kshot.checks import check_class_labels, check_episode
from kshot.episode import Episode, Examples, Origin, Support, as_inputs
from kshot.errors import DataError, MisfitError
from kshot.pools import Pool
from kshot.preparing import Preparation
from kshot.protocols import Pooled
from kshot.spec import Count, TaskSpec, bounds

__all__ = [
    "AHEAD",
    "ClassificationTasks",
    "Drawn",
    "Pool",
    "check_class_labels",
    "check_enough",
    "check_episode",
    "draw",
    "pooled",
    "shape_of_block",
]

AHEAD = 64
"""How many episodes are drawn at once when they are requested one after another."""


def shape_of_block(spec: TaskSpec, seed: int, split: str, indices: Sequence[int]) -> dict[str, int | None]:
    """Return way, shot and query of the block that contains ``indices``: a pure function of (seed, split, i // block).

    Raises:
        DataError: no indices, a negative one, or blocks with different shapes.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(3,), way=5, shot=1, query=15)
        >>> shape_of_block(spec, seed=0, split="train", indices=[0, 1])
        {'way': 5, 'shot': 1, 'query': 15}
    """
    if len(indices) == 0 or min(indices) < 0:
        raise DataError(f"sample: got indices {list(indices)[:5]}, expected at least one and none negative")
    counts = {"way": spec.way, "shot": spec.shot, "query": spec.query}
    if not spec.varies:
        return counts  # type: ignore[return-value]
    blocks = {i // spec.block for i in indices}
    if len(blocks) > 1:
        raise DataError(
            f"sample: got indices {indices[0]}..{indices[-1]} in {len(blocks)} blocks of {spec.block} episodes, "
            "expected one block, as the shape varies between blocks; choose a meta-batch size that divides the block"
        )
    key = randomness.episode_keys(seed, f"{split}/shape", [blocks.pop()])

    def draw_count(name: str, count: Count | None) -> int | None:
        low, high = bounds(count)
        if low is None or high is None or low == high:
            return low
        return low + int(randomness.below(randomness.draws(key, name, 1), high - low + 1)[0, 0])

    return {name: draw_count(name, count) for name, count in counts.items()}


Gather = Callable[[Pool, NDArray[np.int64]], Tensor]
"""A function from a pool and rows of it [B, n] to inputs [B, n, *input]."""

Draw = Callable[[Pool, randomness.U64, int, int, int], "Drawn"]
"""A function from a pool, the keys of B episodes, way, shot and query to what makes up the episodes."""


class ClassificationTasks:
    """Sample N-way K-shot episodes from labelled pools, one for each split.

    In every episode the classes are drawn without replacement and numbered 0..N-1 in random order. Support and query
    are different examples of them. The support is ordered by class, the query is shuffled.

    Args:
        pools: the pool of each split. No two splits should share a class.
        way: N, or a range (least, greatest) from which each block draws.
        shot: K, support examples per class, or a range.
        query: Q, queries per class, or a range.
        block: episodes with the same i // block have the same shape.
        seed: determines all episodes.
        prepare: turns raw examples into inputs [n, *input], for prediction on files. A ``kshot.preparing.Preparation``
            is stored with a run, another callable is not.
        fingerprint: identifies the data; results record it. By default it is a digest of all examples, computed when
            it is first asked for.

    Raises:
        DataError: pools of different input shapes; at ``sample``: an unknown split, more way than classes, more
            shot + query than a class has examples.

    Example:
        >>> pool = Pool.of(np.arange(20.0).reshape(10, 2), np.repeat(np.arange(5), 2))
        >>> tasks = ClassificationTasks({"train": pool}, way=3, shot=1, query=1, seed=0)
        >>> tasks.sample("train", range(4)).support.x.shape
        torch.Size([4, 3, 2])
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        *,
        way: Count = 5,
        shot: Count = 1,
        query: Count = 15,
        block: int = 1,
        seed: int = 0,
        prepare: Callable[[Any], Tensor] | None = None,
        fingerprint: str = "",
    ) -> None:
        who = "ClassificationTasks"
        if not pools:
            raise DataError(f"{who}: got no pools, expected one for each split; pass e.g. {{'train': pool}}")
        for split, pool in pools.items():
            if not isinstance(pool, Pool):
                raise DataError(
                    f"{who}: got {type(pool).__name__} for split {split!r}, expected a pool; make one with "
                    "kshot.Pool.of(x, y), or of a data set of pairs (example, label) with kshot.Pool.of_dataset"
                )
        shapes = {tuple(p.x.shape[1:]) for p in pools.values()}
        if len(shapes) > 1:
            raise DataError(
                f"{who}: got splits with inputs of shapes {sorted(shapes)}, expected one shape; resize or crop the "
                "examples first"
            )
        first = next(iter(pools.values()))
        semantics = first.semantics is not None
        self._pools = dict(pools)
        self._prepare = prepare
        self._ahead: dict[str, tuple[int, Drawn]] = {}
        self.seed = randomness.as_seed(seed, who)
        self._fingerprint = fingerprint
        self.spec = TaskSpec(
            kind="classification",
            input_shape=shapes.pop(),
            input_range=first.input_range,
            way=way,
            shot=shot,
            query=query,
            block=block,
            splits=tuple(pools),
            split_by="class",
            provides={"identities", *(["semantics"] if semantics else [])},
            semantics_shape=tuple(first.semantics.shape[1:]) if first.semantics is not None else None,
        )

    def __repr__(self) -> str:
        return described(self)

    @property
    def fingerprint(self) -> str:
        """What identifies the data: as given, or a digest of the pools' contents."""
        if not self._fingerprint:
            digest = hashlib.blake2b(digest_size=8)
            for split, pool in self._pools.items():
                digest.update(f"{split}\0".encode() + pool.digest())
            self._fingerprint = f"arrays-{digest.hexdigest()}"
        return self._fingerprint

    @fingerprint.setter
    def fingerprint(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def pool(self, split: str) -> Pool:
        """Return the labelled examples of a split (ability ``Pooled``)."""
        if split not in self._pools:
            raise DataError(f"tasks: got unknown split {split!r}, expected one of {', '.join(self._pools)}")
        return self._pools[split]

    def prepare(self, raw: Any) -> Tensor:
        """Return raw examples as inputs [n, *input] in the spec's range (ability ``Pooled``)."""
        return as_inputs(raw) if self._prepare is None else self._prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """How ``prepare`` makes inputs, as a value (ability ``Portable``); None if another callable was given."""
        if self._prepare is None:
            return Preparation.of(as_inputs)
        return self._prepare if isinstance(self._prepare, Preparation) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices`` of ``split``, stacked into one meta-batch."""
        return self.sample_with(split, indices, lambda pool, ids: pool.gather(ids))

    def sample_drawn(self, split: str, indices: Sequence[int], draw: Draw, gather: Gather | None = None) -> Episode:
        """Return other episodes, whose classes and examples are drawn by a function (ability ``Redrawn``)."""
        return self.sample_with(split, indices, gather or (lambda pool, ids: pool.gather(ids)), draw)

    def sample_with(self, split: str, indices: Sequence[int], gather: Gather, draw: Draw | None = None) -> Episode:
        """Return the same episodes, whose examples are gathered by another function (ability ``Gathered``)."""
        pool = self.pool(split)
        if not isinstance(indices, range):
            indices = [int(i) for i in indices]  # JSON has no numbers of numpy
        shape = shape_of_block(self.spec, self.seed, split, indices)
        way, shot, query = shape["way"] or 0, shape["shot"] or 0, shape["query"] or 0
        if draw is None:
            check_enough(split, pool, way, shot, query)
            drawn = self._draw(split, pool, indices, (way, shot, query))
        else:
            drawn = draw(pool, randomness.episode_keys(self.seed, split, indices), way, shot, query)
        S = way * shot
        x = gather(pool, drawn.ids)
        return Episode(
            support=Support(
                x=x[:, :S],
                y=_labels(len(indices), way, shot).clone(),
                semantics=None if pool.semantics is None else pool.semantics[torch.from_numpy(drawn.classes)],
                key=randomness.as_tensor(drawn.keys),
                way=way,
            ),
            query=Examples(x=x[:, S:], y=torch.from_numpy(drawn.query_y)),
            origin=Origin(
                split=split,
                indices=tuple(indices),
                seed=self.seed,
                way=way,
                shot=shot,
                query=query,
                classes=drawn.classes,
                names=pool.names,
                support_ids=drawn.ids[:, :S],
                query_ids=drawn.ids[:, S:],
            ),
        )

    def _draw(self, split: str, pool: Pool, indices: Sequence[int], shape: tuple[int, int, int]) -> Drawn:
        """Draw the examples of episodes; if they follow the last ones, draw the next ``AHEAD`` episodes at once.

        Drawing 64 episodes costs little more than drawing one. What was drawn ahead is only kept for later: an episode
        does not depend on it.
        """
        first, count = indices[0], len(indices)
        in_order = (isinstance(indices, range) and indices.step == 1) or count == 1
        if not in_order or self.spec.varies or count > AHEAD // 4:
            return draw(pool, randomness.episode_keys(self.seed, split, indices), *shape)
        follows = False
        if split in self._ahead:
            start, kept = self._ahead[split]
            end = start + len(kept.keys)
            if start <= first and first + count <= end:
                return kept.cut(first - start, count)
            follows = first == end
        ahead = range(first, first + (AHEAD if follows else count))
        drawn = draw(pool, randomness.episode_keys(self.seed, split, ahead), *shape)
        self._ahead[split] = (first, drawn)
        return drawn.cut(0, count)


@frozen(eq=False)
class Drawn:
    """Store which examples make up B episodes.

    Attributes:
        keys: the randomness of each episode [B].
        classes: class numbers within the pool [B, N].
        ids: rows of the pool, support first [B, S + N * Q].
        query_y: labels of the queries [B, N * Q].

    Example:
        >>> one = np.zeros((2, 1), np.int64)
        >>> drawn = Drawn(randomness.episode_keys(0, "train", [0, 1]), one, one, one)
        >>> len(drawn.cut(1, 1).keys)
        1
    """

    keys: randomness.U64
    classes: NDArray[np.int64]
    ids: NDArray[np.int64]
    query_y: NDArray[np.int64]

    def cut(self, first: int, count: int) -> Drawn:
        """Return episodes ``first`` to ``first + count - 1`` as copies, which the caller may write to."""
        b = slice(first, first + count)
        return Drawn(self.keys[b].copy(), self.classes[b].copy(), self.ids[b].copy(), self.query_y[b].copy())


def draw(pool: Pool, keys: randomness.U64, way: int, shot: int, query: int) -> Drawn:
    """Draw the classes and examples of the episodes with ``keys`` [B].

    Args:
        pool: of the split.
        keys: of the episodes, see ``kshot.randomness.episode_keys``.
        way, shot, query: N, K and Q, the same for all of these episodes.

    Example:
        >>> pool = Pool.of(np.zeros((6, 1)), [0, 0, 1, 1, 2, 2])
        >>> draw(pool, randomness.episode_keys(0, "train", [0, 1]), way=2, shot=1, query=1).ids.shape
        (2, 4)
    """
    B, fewest, most = len(keys), pool.fewest, pool.rows.shape[1]
    # 1. N different classes for each episode; label c is the c-th class drawn.
    classes = randomness.choose(keys, "classes", pool.classes, way)  # [B, N]
    # 2. K + Q different examples of each class; each class of each episode has its own key.
    class_keys = randomness.draws(keys, "examples", way).reshape(-1)  # [B * N]
    population = most if fewest == most else pool.counts[classes].reshape(-1)
    chosen = randomness.choose(class_keys, "rows", population, shot + query, least=fewest, most=most)
    rows = pool.rows[classes[:, :, None], chosen.reshape(B, way, shot + query)]  # [B, N, K + Q]
    # 3. The first K are the support, in order of class; the other Q of all classes are shuffled together.
    order = randomness.draws(keys, "query order", way * query).argsort(axis=1)  # [B, N * Q]
    queries = rows[:, :, shot:].reshape(B, way * query)[np.arange(B)[:, None], order]
    ids = np.concatenate([rows[:, :, :shot].reshape(B, way * shot), queries], 1)
    return Drawn(keys, classes, ids, order // max(query, 1))


@lru_cache(maxsize=64)
def _labels(count: int, way: int, shot: int) -> Tensor:
    """Return the labels [count, S] of supports that are ordered by class."""
    return torch.from_numpy(np.arange(way).repeat(shot)[None].repeat(count, 0))


def pooled(of: Any, who: str) -> Pooled:
    """Return ``of``, the tasks that a view changes, after checking that they have a pool of labelled examples.

    Args:
        of: a task distribution.
        who: the view's name, for messages.

    Raises:
        MisfitError: the tasks are of another kind, or have no pool.

    Example:
        >>> tasks = ClassificationTasks({"train": Pool.of(np.zeros((2, 1)), [0, 1])}, way=2)
        >>> pooled(tasks, "my-view") is tasks
        True
    """
    if of.spec.kind != "classification" or not isinstance(of, Pooled):
        has = "with" if isinstance(of, Pooled) else "without"
        raise MisfitError(
            f"{who}: got unsuitable tasks ({type(of).__name__} are {of.spec.kind} tasks {has} a pool of examples), "
            "expected classification tasks with a pool; use e.g. kshot.ClassificationTasks"
        )
    return of


def check_split(split: str, spec: TaskSpec) -> None:
    """Raise an error unless tasks with this ``spec`` have the split.

    Raises:
        DataError: they have no split of that name; the message lists those they have.
    """
    if split not in spec.splits:
        raise DataError(f"got unknown split {split!r}, expected one of {', '.join(spec.splits)}")


def class_name(pool: Pool, c: int) -> str:
    """Return how an error message calls class number ``c`` of a pool: its quoted name, or 'number c' without names."""
    return repr(pool.names[c]) if pool.names else f"number {c}"


def check_enough(split: str, pool: Pool, way: int, shot: int, query: int, advice: str = "") -> None:
    """Raise DataError if a split has too few classes, or a class too few examples, for such episodes.

    Args:
        split: its name, for messages.
        pool: of the split.
        way, shot, query: N, K and Q.
        advice: what to do, if the caller knows better than to choose smaller numbers.

    Example:
        >>> check_enough("train", Pool.of(np.zeros((4, 1)), [0, 0, 1, 1]), way=2, shot=1, query=1)
    """
    if way > pool.classes:
        smaller = f"lower way to at most {pool.classes}" if pool.classes >= 2 else "give it more classes"
        raise DataError(
            f"split {split!r}: got way {way}, expected at most {pool.classes}, its number of classes; "
            f"{advice or smaller + ' or use another split'}"
        )
    fewest = pool.fewest
    if shot + query > fewest:
        c = int(pool.counts.argmin())
        name = repr(pool.names[c]) if pool.names else f"number {c}"
        smaller = "lower shot or query" if fewest >= 2 else "give it more"
        raise DataError(
            f"split {split!r}: got shot + query = {shot} + {query} = {shot + query}, expected at most {fewest}, the "
            f"number of examples of class {name}; {advice or smaller + ', or drop small classes'}"
        )
