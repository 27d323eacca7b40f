"""Tasks over the files of a folder, decoded when the first episode is asked for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kshot.data.folders import Splits
from kshot.episode import Episode
from kshot.errors import DataError
from kshot.preparing import Preparation
from kshot.sampling import ClassificationTasks, Pool, check_enough
from kshot.spec import Count, TaskSpec, bounds

log = logging.getLogger("kshot.data.folders")


class FolderTasks:
    """N-way K-shot episodes over examples that are only loaded when the first is asked for.

    So a spec, a check and ``prepare`` cost no decoding. Episodes are those of ``kshot.ClassificationTasks``.

    Args:
        splits: rows of each class of each split.
        load: -> all examples [num, *input], uint8 or float32, and the data's fingerprint; called once.
        input_shape, input_range: of an input.
        split_by: what no two splits share.
        way, shot, query, block, seed: see ``kshot.ClassificationTasks``. A way or query of None is 5, or as many as the
            smallest split has classes, or as the smallest class leaves examples: at least 2, and 1.
        prepare: raw examples -> inputs [n, *input].

    Raises:
        DataError: there is no split of which such episodes can be drawn. One of which none can, beside others, is
            logged, and refused when it is sampled.
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
    ) -> None:
        if not splits or not all(splits.values()):
            raise DataError("FolderTasks: a split without classes, or no split, came; expected at least one of each")
        if way is None:
            way = max(2, min(5, *(len(classes) for classes in splits.values())))
        if query is None:
            fewest = min(len(rows) for classes in splits.values() for rows in classes.values())
            query = max(1, min(5, fewest - (bounds(shot)[1] or 0)))
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
        self.seed = seed
        self._splits, self._load, self._prepare = dict(splits), load, prepare
        needed = {name: bounds(count)[1] or 0 for name, count in (("way", way), ("shot", shot), ("query", query))}
        failed: list[DataError] = []
        for split in splits:
            try:
                check_enough(split, self._pool(split, torch.empty(0)), **needed)
            except DataError as error:
                failed.append(error)
        if len(failed) == len(splits):
            raise failed[0]
        for told in failed:
            log.info("%s", told)  # to train on, one split is enough

    @property
    def fingerprint(self) -> str:
        """What identifies the data and their splits. Loads them."""
        return self._loaded.fingerprint

    def pool(self, split: str) -> Pool:
        """The labelled examples of a split (ability ``Pooled``)."""
        return self._loaded.pool(split)

    def prepare(self, raw: Any) -> Tensor:
        """Raw examples as inputs [n, *input] (ability ``Pooled``). Loads nothing else."""
        return self._prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """What ``prepare`` does, as a value (ability ``Portable``); None where it was given as another callable."""
        return self._prepare if isinstance(self._prepare, Preparation) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``, stacked."""
        return self._loaded.sample(split, indices)

    @cached_property
    def _loaded(self) -> ClassificationTasks:
        x, fingerprint = self._load()
        spec, made = self.spec, hashlib.blake2b(digest_size=4)
        for split, classes in self._splits.items():
            for name, rows in classes.items():
                made.update(f"{split}\0{name}\0{rows.tolist()}\n".encode())
        return ClassificationTasks(
            {split: self._pool(split, x) for split in self._splits},
            way=spec.way or 0,
            shot=spec.shot or 0,
            query=spec.query or 0,
            block=spec.block,
            seed=self.seed,
            fingerprint=f"{fingerprint}-split-{made.hexdigest()}",
        )

    def _pool(self, split: str, x: Tensor) -> Pool:
        classes = self._splits[split]
        counts = np.array([len(rows) for rows in classes.values()], np.int64)
        padded = np.full((len(classes), int(counts.max())), -1, np.int64)
        for row, rows in zip(padded, classes.values(), strict=True):
            row[: len(rows)] = rows
        return Pool(x, padded, counts, names=tuple(classes), input_range=self.spec.input_range)
