"""Tasks over the files of a folder, which are decoded when the first episode is requested."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot._shown import described
from kshot.data._names import shortened
from kshot.data.splits import Splits
from kshot.episode import Episode
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot.randomness import U64, as_seed, draws, episode_keys
from kshot.sampling import ClassificationTasks, Draw, Gather, Pool, check_enough
from kshot.spec import Count, TaskSpec, bounds

log = logging.getLogger("kshot.data.folder_tasks")

Augment = Callable[[Tensor, U64], Tensor]
"""A function that changes inputs [n, *input] at random, by a key for each [n]."""

TRAINING = ("train", "trainval")
"""Splits whose episodes are augmented."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def make_pool(
    x: Tensor, classes: Mapping[str, NDArray[np.int64]], input_range: tuple[float, float] | None = None
) -> Pool:
    """Make a pool of classes with different numbers of examples.

    Args:
        x: all examples [num, *input].
        classes: class -> its rows in ``x``.
        input_range: least and greatest value of an input, if they are known.

    Example:
        >>> pool = make_pool(torch.rand(5, 2), {"cat": np.array([0, 1, 2]), "dog": np.array([3, 4])})
        >>> pool.counts.tolist(), pool.rows.tolist()
        ([3, 2], [[0, 1, 2], [3, 4, -1]])
    """
    counts = np.array([len(rows) for rows in classes.values()], np.int64)
    # Classes of different sizes in one array [classes, most]: -1 stands where a class has no example.
    padded = np.full((len(classes), int(counts.max())), -1, np.int64)
    for row, rows in zip(padded, classes.values(), strict=True):
        row[: len(rows)] = rows
    return Pool(x, padded, counts, names=tuple(classes), input_range=input_range)


def with_options_of(tasks: Callable[..., Any], names: Iterable[str]) -> Callable[[_Function], _Function]:
    """Give a function some options of tasks, with their types and defaults, so that these are stated in one place.

    A plugin of files uses it for the attribute ``prepares`` of its tasks: a function that takes the options by which
    files become inputs, and returns a preparation, the shape of an input, and its range.

    Args:
        tasks: the factory of the tasks.
        names: names of its options.

    Example:
        >>> def tasks(way: int = 5, *, size: int = 84): ...
        >>> @with_options_of(tasks, ["size"])
        ... def prepares(**options):
        ...     return options
        >>> prepares(), prepares(size=8)
        ({'size': 84}, {'size': 8})
    """
    own = inspect.signature(tasks)
    chosen = own.replace(parameters=[own.parameters[name] for name in names])

    def put(function: _Function) -> _Function:
        @functools.wraps(function)
        def complete(**options: Any) -> Any:
            bound = chosen.bind(**options)
            bound.apply_defaults()
            return function(**bound.arguments)

        complete.__signature__ = chosen  # type: ignore[attr-defined]
        return cast(_Function, complete)

    return put


class FolderTasks:
    """Represent N-way K-shot tasks over examples that are loaded when the first episode is requested.

    So ``spec``, a check of the options and ``prepare`` decode nothing. Episodes are those of
    ``kshot.ClassificationTasks``.

    Args:
        splits: split -> class -> the rows of its examples.
        load: a function that returns all examples [num, *input], uint8 or float32, and the data's fingerprint; it is
            called once.
        input_shape: shape of an input.
        input_range: least and greatest value of an input, or None if they are not known.
        prepare: a function from raw examples to inputs [n, *input].
        split_by: ``"class"`` if no two splits share a class, ``"example"`` if they share classes but no example.
        way, shot, query, block, seed: see ``kshot.ClassificationTasks``. By default (None) the way is 5, or as many
            classes as the smallest split has, at least 2; query is 5, or as many examples as the smallest class leaves
            after the shots, at least 1. Classes with fewer than shot + query examples are left out of a split, and
            logged, if it has enough others.
        augment: a function that changes inputs [n, *input] at random, by a key for each [n]. It is applied to support
            and query in the episodes of the splits ``train`` and ``trainval`` only, and never to ``pool``.

    Raises:
        DataError: such episodes can be drawn from none of the splits. If they can from some, each of the others is
            logged, and refused when it is sampled.

    Example:
        >>> splits = {"train": {"cat": np.arange(4), "dog": np.arange(4, 8)}}
        >>> tasks = FolderTasks(splits, lambda: (torch.rand(8, 3), "example"), input_shape=(3,), input_range=(0, 1),
        ...                     prepare=torch.as_tensor, shot=1, query=2)
        >>> tasks.sample("train", [0]).query.x.shape  # [B, N * Q, *input]
        torch.Size([1, 4, 3])
    """

    def __init__(
        self,
        splits: Splits,
        load: Callable[[], tuple[Tensor, str]],
        *,
        input_shape: tuple[int, ...],
        input_range: tuple[float, float] | None,
        prepare: Callable[[Any], Tensor],
        split_by: Literal["class", "example"] = "class",
        way: Count | None = None,
        shot: Count = 1,
        query: Count | None = None,
        block: int = 1,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if not splits or not all(splits.values()):
            given = "a split without classes" if splits else "no splits"
            raise DataError(f"FolderTasks: got {given}, expected at least one split, each with classes; add some")
        self._splits, self._load, self._prepare, self._split_by = dict(splits), load, prepare, split_by
        if max(len(classes) for classes in splits.values()) < 2:  # before TaskSpec refuses a way of 1
            first = next(iter(splits))
            check_enough(first, make_pool(torch.empty(0), splits[first]), 2, 1, 1, self._advice(first, 2, 1, 1))
        if way is None:
            way = max(2, min(5, *(len(classes) for classes in splits.values())))
        shots = bounds(shot)[1] or 0
        if query is None:
            sizes = [len(rows) for classes in splits.values() for rows in classes.values()]
            fewest = min((size for size in sizes if size > shots), default=0)
            query = max(1, min(5, fewest - shots))
        for split in splits:
            self._leave_out(split, bounds(way)[1] or 0, shots + (bounds(query)[1] or 0))
        self.spec = TaskSpec(
            kind="classification",
            input_shape=input_shape,
            input_range=input_range,
            way=way,
            shot=shot,
            query=query,
            block=block,
            splits=tuple(splits),
            split_by=split_by,
            provides={"identities"},
        )
        self.seed, self._augment = as_seed(seed, "FolderTasks"), augment
        failures: list[DataError] = []
        for split in splits:
            try:
                self._check(split, 1)  # by the greatest numbers of each range
            except DataError as error:
                failures.append(error)
        if len(failures) == len(splits):
            raise failures[0]
        for failure in failures:
            log.info("%s", failure)  # one split is enough to train on

    def __repr__(self) -> str:
        return described(self)

    @property
    def fingerprint(self) -> str:
        """Identifies the data and their splits. Asking for it loads the data."""
        return self._loaded.fingerprint

    def pool(self, split: str) -> Pool:
        """Return the labelled examples of a split (ability ``Pooled``)."""
        return self._loaded.pool(split)

    def prepare(self, raw: Any) -> Tensor:
        """Return raw examples as inputs [n, *input] (ability ``Pooled``). The data of the folder are not loaded."""
        return self._prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """``prepare`` as a value (ability ``Portable``), or None if it was given as another callable."""
        return self._prepare if isinstance(self._prepare, Preparation) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return the episodes ``indices`` of ``split``, stacked."""
        return self.sample_with(split, indices, lambda pool, ids: pool.gather(ids))

    def sample_drawn(self, split: str, indices: Sequence[int], draw: Draw, gather: Gather | None = None) -> Episode:
        """Return other episodes, whose classes and examples are drawn by a function (ability ``Redrawn``)."""
        return self._loaded.sample_drawn(split, indices, draw, gather)

    def sample_with(self, split: str, indices: Sequence[int], gather: Gather) -> Episode:
        """Return the same episodes, whose examples are gathered by another function (ability ``Gathered``)."""
        if split in self._splits:
            self._check(split, 0)  # by the least, before anything is decoded
        if self._augment is None or split not in TRAINING:
            return self._loaded.sample_with(split, indices, gather)
        augment, keys = self._augment, episode_keys(self.seed, split, indices)

        def augmented(pool: Pool, ids: NDArray[np.int64]) -> Tensor:
            """Return changed inputs [B, n, *input] of rows ``ids`` [B, n] of a pool."""
            x = gather(pool, ids)
            if tuple(x.shape[2:]) != self.spec.input_shape:
                raise DataError(
                    f"augment: got embeddings of {list(x.shape[2:])} numbers, which were computed once for each "
                    f"example, expected inputs of shape {list(self.spec.input_shape)}; leave augment out, or train the "
                    "encoder too (tune=head or tune=all)"
                )
            each = draws(keys, "augment", ids.shape[1]).reshape(-1)
            return augment(x.flatten(0, 1), each).view(x.shape)

        return self._loaded.sample_with(split, indices, augmented)

    def _leave_out(self, split: str, way: int, size: int) -> None:
        """Leave classes with fewer than ``size`` examples out of a split, if ``way`` others remain, and log it."""
        classes = self._splits[split]
        small = [name for name, rows in classes.items() if len(rows) < size]
        if small and len(classes) - len(small) >= way:
            self._splits[split] = {name: rows for name, rows in classes.items() if name not in small}
            listed = shortened(small)
            log.warning(
                "split %r: left out classes with fewer than %d examples (shot + query): %s", split, size, listed
            )

    def check(self, split: str) -> None:
        """Raise DataError if a split is too small for the largest of the episodes; nothing is loaded."""
        self._check(split, 1)

    def _check(self, split: str, end: int) -> None:
        """Refuse a split that is too small for its episodes, with what to do.

        Args:
            split: its name.
            end: 0 to check the least numbers of ranges, 1 for the greatest.
        """
        way, shot, query = (bounds(count)[end] or 0 for count in (self.spec.way, self.spec.shot, self.spec.query))
        # Only the rows are counted here, so a pool without examples will do.
        pool = self._pool(split, torch.empty(0))
        check_enough(split, pool, way, shot, query, self._advice(split, way, shot, query))

    def _advice(self, split: str, way: int, shot: int, query: int) -> str:
        """Return what makes the episodes of a split possible, as a clause for messages. It is true if it is followed.

        Every folder can be divided in two halves, by class or by example; so what one half has is the limit.
        """
        own = self._splits[split]
        least = min(map(len, own.values()))
        if way > len(own):
            if len(own) >= 2:
                return f"lower way to at most {len(own)}, or give the split a larger share"
            classes = {name for held in self._splits.values() for name in held}
            if self._split_by == "class" and len(classes) >= 4:
                return "divide the classes in two, split=(0.5, 0, 0.5), with way=2"
            if self._split_by == "class" and self._fewest() >= 4:
                return (
                    "add classes; or divide the examples of each class instead, split_by='example' with "
                    f"split=(0.5, 0, 0.5), way={len(classes)}, shot=1 and query=1"
                )
            return "add classes with at least 4 examples each"
        if least >= 2 or (least and not shot):
            return f"lower shot and query to {least} in all, or remove classes of few examples"
        if self._split_by == "example" and self._fewest() >= 4:
            return "divide the examples in two, split=(0.5, 0, 0.5), with shot=1 and query=1"
        if self._split_by == "example" and len(own) >= 4 and self._fewest() >= 2:
            return "divide the classes instead, split_by='class' with split=(0.5, 0, 0.5), way=2, shot=1 and query=1"
        return "add examples to this class, at least 4 in all, or remove it"

    def _fewest(self) -> int:
        """Return the number of examples of the smallest class in all splits together."""
        rows: dict[str, set[int]] = {}
        for classes in self._splits.values():
            for name, held in classes.items():
                rows.setdefault(name, set()).update(held.tolist())
        return min(map(len, rows.values()))

    @cached_property
    def _loaded(self) -> ClassificationTasks:
        x, fingerprint = self._load()
        # The same data divided otherwise give other scores, so the splits are a part of the fingerprint.
        spec, digest = self.spec, hashlib.blake2b(digest_size=4)
        for split, classes in self._splits.items():
            for name, rows in classes.items():
                digest.update(f"{split}\0{name}\0{rows.tolist()}\n".encode())
        return ClassificationTasks(
            {split: self._pool(split, x) for split in self._splits},
            way=spec.way or 0,
            shot=spec.shot or 0,
            query=spec.query or 0,
            block=spec.block,
            seed=self.seed,
            fingerprint=f"{fingerprint}-split-{digest.hexdigest()}",
        )

    def _pool(self, split: str, x: Tensor) -> Pool:
        return make_pool(x, self._splits[split], self.spec.input_range)
