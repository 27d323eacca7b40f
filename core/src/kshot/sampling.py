"""Episodes from a table of labelled examples: addressable, without loops, an index gather each.

A data-set plugin loads one contiguous tensor, says which rows belong to which class of which split, and is done:
``ClassificationTasks`` is a complete ``TaskDistribution`` over that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kshot import randomness
from kshot.episode import Environment, Episode, Examples, Origin, Support, as_inputs, check_finite
from kshot.errors import DataError, MisfitError
from kshot.preparing import Preparation
from kshot.protocols import Pooled
from kshot.spec import Count, TaskSpec, bounds

AHEAD = 64
"""Episodes drawn at once where they are asked for one after another."""


@frozen(eq=False)
class Pool:
    """The labelled examples of one split.

    Attributes:
        x: all examples [num, *input], uint8 (whose 255 is 1.0) or float32. Splits may share one tensor.
        rows: for each class its rows of ``x``, padded with -1: [C, most].
        counts: examples of each class [C].
        names: a name for each class, or ().
        semantics: a vector for each class [C, A], or None.
        input_range: of the inputs as float32.
    """

    x: Tensor
    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    names: Sequence[str] = ()
    semantics: Tensor | None = None
    input_range: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        x: ArrayLike | Tensor,
        y: ArrayLike,
        *,
        names: Sequence[str] = (),
        semantics: ArrayLike | Tensor | None = None,
        input_range: tuple[float, float] | None = None,
    ) -> Pool:
        """A pool from examples ``x`` [num, *input] and class numbers ``y`` [num], 0..C-1.

        Raises:
            DataError: lengths differ, a number of 0..C-1 has no example, or an input is not finite.
        """
        tensor = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
        if tensor.dtype != torch.uint8:
            tensor = as_inputs(tensor)
        labels = np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(tensor):
            raise DataError(f"Pool.of: {len(tensor)} examples and labels of shape {labels.shape}; expected one each")
        present = np.unique(labels)
        if len(labels) == 0 or not np.array_equal(present, np.arange(len(present))):
            raise DataError(
                f"Pool.of: class numbers {present[:12].tolist()}..., expected exactly 0..C-1 with examples of each; "
                "renumber them, e.g. numpy.unique(y, return_inverse=True)[1]"
            )
        if tensor.dtype == torch.uint8 and input_range is None:
            input_range = (0.0, 1.0)
        sizes = np.bincount(labels)
        rows = np.full((len(sizes), int(sizes.max())), -1, np.int64)
        order = np.argsort(labels, kind="stable")
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        rows[labels[order], np.arange(len(labels)) - np.repeat(starts, sizes)] = order
        vectors = None if semantics is None else as_inputs(semantics)
        return cls(tensor, rows, sizes, names=tuple(names), semantics=vectors, input_range=input_range)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return len(self.rows)

    @cached_property
    def fewest(self) -> int:
        """Examples of the smallest class."""
        return int(self.counts.min())

    def gather(self, ids: NDArray[np.int64]) -> Tensor:
        """Rows ``ids`` [.., n] of the table as float32 inputs [.., n, *input]."""
        flat = self.x.index_select(0, torch.from_numpy(ids.reshape(-1)))
        inputs = flat.to(torch.float32)
        if flat.dtype == torch.uint8:
            inputs.div_(255)  # apart from the conversion: dividing uint8 itself is not vectorised
        return inputs.view(*ids.shape, *self.x.shape[1:])

    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and class numbers of every example, class by class: ids [n], y [n]."""
        held = self.rows >= 0
        return self.rows[held], np.repeat(np.arange(self.classes), self.counts)


def shape_of_block(spec: TaskSpec, seed: int, split: str, indices: Sequence[int]) -> dict[str, int | None]:
    """way, shot and query of the block in which ``indices`` lie: a pure function of (seed, split, i // block).

    Raises:
        DataError: no indices, a negative one, or blocks with different shapes.
    """
    if len(indices) == 0 or min(indices) < 0:
        raise DataError(f"sample: indices are {list(indices)[:5]}, expected at least one and none negative")
    counts = {"way": spec.way, "shot": spec.shot, "query": spec.query}
    if not spec.varies:
        return counts  # type: ignore[return-value]
    blocks = {i // spec.block for i in indices}
    if len(blocks) > 1:
        raise DataError(
            f"sample: indices {indices[0]}..{indices[-1]} lie in {len(blocks)} blocks of {spec.block} episodes, and "
            "the shape varies between blocks; choose a meta-batch that divides the block"
        )
    key = randomness.episode_keys(seed, f"{split}/shape", [blocks.pop()])

    def drawn(name: str, count: Count | None) -> int | None:
        low, high = bounds(count)
        if low is None or high is None or low == high:
            return low
        return low + int(randomness.below(randomness.draws(key, name, 1), high - low + 1)[0, 0])

    return {name: drawn(name, count) for name, count in counts.items()}


class ClassificationTasks:
    """N-way K-shot episodes over labelled pools, one for each split.

    In every episode the classes are drawn without replacement and numbered 0..N-1 in random order; support and query
    are different examples of them; the support is ordered by class, the query is shuffled.

    Args:
        pools: the pool of each split. No two splits should share a class.
        way: N, or a range (least, greatest) drawn anew for each block.
        shot, query: examples a class in support and query, or ranges.
        block: episodes with the same i // block have the same shape.
        seed: fixes all episodes.
        prepare: turns raw examples into inputs [n, *input], for prediction on files; a ``kshot.preparing.Preparation``
            travels with a run, another callable does not.
        fingerprint: what identifies the data; results record it.

    Raises:
        DataError: pools of different input shapes; at ``sample``: an unknown split, more way than classes, more
            shot + query than a class has examples.
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
        if not pools:
            raise DataError("ClassificationTasks: no pools came; expected at least one split")
        shapes = {tuple(p.x.shape[1:]) for p in pools.values()}
        if len(shapes) > 1:
            raise DataError(f"ClassificationTasks: the splits' inputs have shapes {sorted(shapes)}; expected one shape")
        first = next(iter(pools.values()))
        semantics = first.semantics is not None
        self._pools = dict(pools)
        self._prepare = prepare
        self._ahead: dict[str, tuple[int, Drawn]] = {}
        self.seed = seed
        self.fingerprint = fingerprint
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

    def pool(self, split: str) -> Pool:
        """The labelled examples of a split (ability ``Pooled``)."""
        if split not in self._pools:
            raise DataError(f"unknown split {split!r}; these tasks have {', '.join(self._pools)}")
        return self._pools[split]

    def prepare(self, raw: Any) -> Tensor:
        """Raw examples as inputs [n, *input] in the spec's range (ability ``Pooled``)."""
        return as_inputs(raw) if self._prepare is None else self._prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """What ``prepare`` does, as a value (ability ``Portable``); None where it was given as another callable."""
        if self._prepare is None:
            return Preparation.of(as_inputs)
        return self._prepare if isinstance(self._prepare, Preparation) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``, stacked."""
        pool = self.pool(split)
        shape = shape_of_block(self.spec, self.seed, split, indices)
        way, shot, query = shape["way"] or 0, shape["shot"] or 0, shape["query"] or 0
        check_enough(split, pool, way, shot, query)
        drawn = self._draw(split, pool, indices, (way, shot, query))
        S = way * shot
        x = pool.gather(drawn.ids)
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
        """Which examples; asked for a few episodes after the last ones, the next ``AHEAD`` are drawn at once.

        Drawing 64 episodes costs little more than drawing one. What was drawn ahead is only remembered: what an
        episode is does not depend on it.
        """
        first, count = indices[0], len(indices)
        in_order = (isinstance(indices, range) and indices.step == 1) or count == 1
        if not in_order or self.spec.varies or count > AHEAD // 4:
            return draw(pool, randomness.episode_keys(self.seed, split, indices), *shape)
        follows = False
        if split in self._ahead:
            start, held = self._ahead[split]
            end = start + len(held.keys)
            if start <= first and first + count <= end:
                return held.cut(first - start, count)
            follows = first == end
        ahead = range(first, first + (AHEAD if follows else count))
        drawn = draw(pool, randomness.episode_keys(self.seed, split, ahead), *shape)
        self._ahead[split] = (first, drawn)
        return drawn.cut(0, count)


@frozen(eq=False)
class Drawn:
    """Which examples make up B episodes.

    Attributes:
        keys [B]; classes [B, N]; ids [B, S + N * Q], rows of the pool, support first; query_y [B, N * Q], labels.
    """

    keys: randomness.U64
    classes: NDArray[np.int64]
    ids: NDArray[np.int64]
    query_y: NDArray[np.int64]

    def cut(self, first: int, count: int) -> Drawn:
        """Copies: what is handed out may be written to."""
        part = slice(first, first + count)
        return Drawn(
            self.keys[part].copy(), self.classes[part].copy(), self.ids[part].copy(), self.query_y[part].copy()
        )


def draw(pool: Pool, keys: randomness.U64, way: int, shot: int, query: int) -> Drawn:
    """Draw the classes and examples of the episodes with ``keys`` [B]."""
    B, fewest, most = len(keys), pool.fewest, pool.rows.shape[1]
    classes = randomness.choose(keys, "classes", pool.classes, way)  # [B, N]
    class_keys = randomness.draws(keys, "examples", way).reshape(-1)  # [B * N]
    population = most if fewest == most else pool.counts[classes].reshape(-1)
    chosen = randomness.choose(class_keys, "rows", population, shot + query, least=fewest, most=most)
    rows = pool.rows[classes[:, :, None], chosen.reshape(B, way, shot + query)]  # [B, N, K + Q]
    order = randomness.draws(keys, "query order", way * query).argsort(axis=1)  # [B, N * Q]
    queries = rows[:, :, shot:].reshape(B, way * query)[np.arange(B)[:, None], order]
    ids = np.concatenate([rows[:, :, :shot].reshape(B, way * shot), queries], 1)
    return Drawn(keys, classes, ids, order // max(query, 1))


@lru_cache(maxsize=64)
def _labels(count: int, way: int, shot: int) -> Tensor:
    """Labels [count, S] of a support ordered by class."""
    return torch.from_numpy(np.arange(way).repeat(shot)[None].repeat(count, 0))


def pooled(of: Any, who: str) -> Pooled:
    """``of``, tasks that a view shows in another way: classification tasks with a pool of labelled examples.

    Args:
        who: the view's name, for the message.

    Raises:
        MisfitError: they are of another kind, or have no pool.
    """
    if of.spec.kind != "classification" or not isinstance(of, Pooled):
        has = "with" if isinstance(of, Pooled) else "without"
        raise MisfitError(
            f"{who}: {type(of).__name__} are {of.spec.kind} tasks {has} a pool of examples; expected classification "
            "tasks that have one, such as kshot.ClassificationTasks"
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


def check_enough(split: str, pool: Pool, way: int, shot: int, query: int) -> None:
    """Raises DataError where a split has too few classes, or a class too few examples, for such episodes."""
    if way > pool.classes:
        raise DataError(f"split {split!r} has {pool.classes} classes, but way is {way}; lower way or use another split")
    fewest = pool.fewest
    if shot + query > fewest:
        c = int(pool.counts.argmin())
        name = repr(pool.names[c]) if pool.names else f"number {c}"
        raise DataError(
            f"split {split!r}: class {name} has {fewest} examples, but shot + query is {shot} + {query} = "
            f"{shot + query}; lower shot or query, or drop small classes"
        )


def check_episode(episode: Episode, spec: TaskSpec, who: str) -> None:
    """The engine's door: is this meta-batch what the spec says, and fit to compute with?

    Raises:
        DataError: wrong shapes or types, labels other than 0..N-1, values that are not finite or out of range.
    """
    support, query = episode.support, episode.query
    B = episode.size
    for name, x in (("support.x", support.x), ("query.x", query.x)):
        if x.numel() == 0:
            continue
        if x.shape[0] != B or tuple(x.shape[2:]) != spec.input_shape:
            raise DataError(
                f"{who}: {name} has shape {tuple(x.shape)}, expected [{B}, n, "
                f"{', '.join(map(str, spec.input_shape))}] by the spec's input_shape {spec.input_shape}"
            )
        if x.dtype != torch.float32:
            raise DataError(f"{who}: {name} is {x.dtype}, expected torch.float32; convert when sampling")
        check_finite(x, f"{who}: {name}")
        if spec.input_range is not None:
            low, high = float(x.min()), float(x.max())
            if low < spec.input_range[0] - 1e-6 or high > spec.input_range[1] + 1e-6:
                raise DataError(
                    f"{who}: {name} lies in [{low:.4g}, {high:.4g}], but the spec's input_range is "
                    f"{list(spec.input_range)}; scale the inputs or correct the spec"
                )
    if spec.kind == "classification":
        check_class_labels(episode, who)
    elif spec.kind == "regression":
        check_finite(support.y, f"{who}: support.y")
        check_finite(query.y, f"{who}: query.y")
    elif spec.kind == "control":
        for name, source in (("support", support.source), ("query", query.source)):
            if not isinstance(source, Environment):
                raise DataError(
                    f"{who}: {name}.source is {type(source).__name__}, expected an environment: an object with "
                    "rollout(policy, number=0), see kshot.episode.Environment"
                )


def check_class_labels(episode: Episode, who: str) -> None:
    """Raises DataError unless support labels are exactly 0..N-1 (where there are any) and query labels among them."""
    support, query, way = episode.support, episode.query, episode.support.way
    if way is None:
        raise DataError(f"{who}: support.way is None, expected N for a classification episode")
    for name, y, x in (("support.y", support.y, support.x), ("query.y", query.y, query.x)):
        if y.dtype != torch.int64 or y.shape != x.shape[:2]:
            raise DataError(
                f"{who}: {name} is {y.dtype} of shape {tuple(y.shape)}, expected int64 of shape {tuple(x.shape[:2])}"
            )
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= way):
            raise DataError(
                f"{who}: {name} has labels {int(y.min())}..{int(y.max())}, expected 0..{way - 1} for {way} ways"
            )
    if support.y.shape[1]:
        held = torch.zeros(episode.size, way, dtype=torch.bool).scatter_(1, support.y.cpu(), True)
        if not bool(held.all()):
            b, c = (~held).nonzero()[0].tolist()
            raise DataError(f"{who}: support of task {b} has no example of label {c}; expected each of 0..{way - 1}")
