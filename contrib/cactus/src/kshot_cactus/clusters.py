"""Embed the examples of a split, divide them into clusters, keep the partition on disk, and drop small clusters.

Letters: n examples, D embedding, P partitions.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Literal

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from torch import nn

from kshot import Pool, TaskDistribution
from kshot.data.tables import Made, cache_folder, open_or_build
from kshot.errors import DataError, OptionError
from kshot.protocols import Pooled
from kshot.runs.embedded import Embedded
from kshot_cactus import partitions as dividing
from kshot_cactus.partitions import Floats, Labels

log = logging.getLogger("kshot_cactus")

How = Literal["kmeans", "hyperplanes", "random"]

VERSION = 1
"""Version of the cached partitions; raise it when they are computed otherwise."""


@frozen
class Options:
    """Store the options of ``Cactus`` that determine partitions, without open choices.

    Attributes:
        how, clusters, partitions, restarts, planes, margin, smallest, seed: as in ``Cactus``.
        least: the least number of clusters of a partition by hyperplanes, the way.
    """

    how: How
    clusters: int
    partitions: int
    restarts: int
    planes: int
    margin: float
    smallest: int
    seed: int
    least: int

    @classmethod
    def of(
        cls,
        how: How,
        clusters: int,
        partitions: int | None,
        restarts: int,
        planes: int | None,
        margin: float,
        smallest: int | None,
        seed: int,
        most: tuple[int, int],
    ) -> Options:
        """Choose what is open by the greatest way and the greatest shot + query, ``most``.

        Raises:
            OptionError: the planes can't separate so many classes.
        """
        way, members = most
        if planes is not None and 2**planes < way:
            raise OptionError(
                f"cactus: got planes {planes}, which make {2**planes} clusters at most, expected at least the way, "
                f"{way}; raise planes to {dividing.planes_for(way)}"
            )
        return cls(
            how=how,
            clusters=clusters,
            partitions=partitions or (100 if how == "hyperplanes" else 1),
            restarts=restarts,
            planes=planes or dividing.planes_for(way),
            margin=margin,
            smallest=members if smallest is None else smallest,
            seed=seed,
            least=way,
        )

    @property
    def determining(self) -> dict[str, str | int | float]:
        """The options that have an effect, by name."""
        without = {
            "kmeans": ("planes", "margin", "smallest", "least"),
            "hyperplanes": ("clusters", "restarts"),
            "random": ("planes", "margin", "smallest", "least", "restarts"),
        }[self.how]
        return {name: value for name, value in attrs.asdict(self).items() if name not in without}

    @property
    def advice(self) -> str:
        """What to do if too few clusters are left for an episode."""
        kept = f"clusters with fewer than {self.smallest} examples were dropped"
        return f"{kept}; lower " + ("margin, way, shot or query" if self.how == "hyperplanes" else "clusters or way")


class Clustering:
    """Divide the examples of splits into clusters.

    Args:
        of: tasks with a pool of examples, whose classes are not used.
        encoder: of the embeddings, or None to cluster the inputs themselves.
        options: how to divide.
        cache: kshot's cache folder.

    Attributes:
        fingerprint: identifies options and encoder.
    """

    def __init__(self, of: TaskDistribution, encoder: nn.Module | None, options: Options, cache: Path | str | None):
        self.of, self.options, self.cache = of, options, cache
        self.embedded = None if encoder is None else Embedded(of, encoder, cache=cache)
        by = "inputs" if self.embedded is None else self.embedded.digest
        text = json.dumps([options.determining, "" if options.how == "random" else by])
        self.fingerprint = f"{options.how}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
        self._pools: dict[str, list[Pool]] = {}
        self._labels: dict[str, Labels] = {}

    def examples(self, split: str) -> NDArray[np.int64]:
        """Return the rows [n] of the examples of a split in the pool below, in the order of the table.

        The order does not show the classes.
        """
        assert isinstance(self.of, Pooled)
        return np.unique(self.of.pool(split).table()[0])

    def embeddings(self, split: str) -> Floats:
        """Return the embeddings [n, D] of the examples of a split."""
        ids = self.examples(split)
        if self.embedded is None:
            assert isinstance(self.of, Pooled)
            z: Floats = self.of.pool(split).gather(ids).flatten(1).numpy()
            return z
        # Class by class, the pool below and the pool of embeddings list the same examples.
        below, own = self.of.pool(split), self.embedded.pool(split)  # type: ignore[attr-defined]
        order = np.argsort(below.table()[0], kind="stable")
        rows, first = np.unique(below.table()[0][order], return_index=True)
        assert np.array_equal(rows, ids)
        embedded: Floats = own.gather(own.table()[0][order][first]).numpy()
        return embedded

    def labels(self, split: str) -> Labels:
        """Return the number of the cluster of each example in each partition [P, n]; OUTSIDE if it is in none.

        They are computed once for the same embeddings and options, and kept in the cache.

        Raises:
            DataError: see ``Cactus``.
        """
        if split not in self._labels:
            z = None if self.options.how == "random" else np.ascontiguousarray(self.embeddings(split))
            path = cache_folder("cactus", self.cache) / f"{self._key(split, z)}.table"

            def made() -> Made:
                labels = self._divided(split, z)
                facts = {"options": self.options.determining, "split": split}
                return Made(facts, "int32", labels.shape, [labels])

            table = open_or_build(path, made, name="cactus", version=VERSION)
            self._labels[split] = np.asarray(table.x)
        return self._labels[split]

    def _key(self, split: str, z: Floats | None) -> str:
        """Return the name of a partition: a digest of the rows, the embeddings, and the options.

        The embeddings are those of the data and of the encoder's weights, so a change of either is another partition.
        """
        key = hashlib.blake2b(json.dumps(self.options.determining).encode(), digest_size=16)
        key.update(self.examples(split).tobytes())
        if z is not None:
            key.update(f"{z.shape}".encode() + z.tobytes())
        return key.hexdigest()

    def _divided(self, split: str, z: Floats | None) -> Labels:
        """Divide the examples of a split: labels [P, n]."""
        options, where = self.options, f"split {split!r}"
        rng = np.random.default_rng(options.seed)
        if z is None:
            n = len(self.examples(split))
            if n < options.clusters:
                raise DataError(
                    f"cactus: got {n} examples in {where}, expected at least as many as clusters, {options.clusters}; "
                    "lower clusters"
                )
            return dividing.random_partitions(n, options.partitions, options.clusters, rng)
        if options.how == "hyperplanes":
            dividing.check_points(z, options.least, where)
            z = dividing.standardised(z)
            counts = (options.partitions, options.planes, options.margin, options.least, options.smallest)
            return dividing.hyperplane_partitions(z, *counts, rng)
        dividing.check_points(z, options.clusters, where)
        log.info("cactus: dividing %d examples of %s into clusters, %d times", len(z), where, options.partitions)
        return dividing.kmeans_partitions(z, options.partitions, options.clusters, options.restarts, rng)

    def pools(self, split: str) -> list[Pool]:
        """Return a pool for each partition of a split, with its clusters as classes, without those that are too small.

        Raises:
            DataError: see ``Cactus``.
        """
        if split not in self._pools:
            assert isinstance(self.of, Pooled)
            below, ids, pools, dropped = self.of.pool(split), self.examples(split), [], []
            for p, labels in enumerate(self.labels(split)):
                sizes = np.bincount(labels[labels >= 0], minlength=1)
                kept = np.flatnonzero(sizes >= self.options.smallest)
                dropped.append(int((sizes > 0).sum()) - len(kept))
                pools.append(_pool_of(below, ids, labels, kept, p))
            self._pools[split] = pools
            self._show(split, pools, dropped)
        return self._pools[split]

    def _show(self, split: str, pools: list[Pool], dropped: list[int]) -> None:
        """Report how many clusters there are, and how many were dropped."""
        n, P = len(self.examples(split)), len(pools)
        members = np.mean([pool.counts.sum() for pool in pools])
        log.warning(
            "note: cactus: split %r has %d clusters in %d partition%s, and %.1f %% of its %d examples are in them; %d "
            "smaller clusters, with fewer than %d members, were dropped",
            *(split, sum(pool.classes for pool in pools), P, "s" * (P > 1), 100 * members / n, n),
            *(sum(dropped), self.options.smallest),
        )

    def names(self, split: str) -> tuple[str, ...]:
        """Return the names of the clusters of all partitions of a split."""
        return tuple(name for pool in self.pools(split) for name in pool.names)


def _pool_of(below: Pool, ids: NDArray[np.int64], labels: Labels, kept: NDArray[np.int64], p: int) -> Pool:
    """Return the pool whose classes are the clusters ``kept`` of a partition, over the table of the pool below."""
    members = [ids[labels == c] for c in kept]
    counts = np.array([len(each) for each in members], np.int64)
    rows = np.full((len(kept), int(counts.max(initial=1))), -1, np.int64)
    for row, each in zip(rows, members, strict=True):
        row[: len(each)] = each
    names = tuple(f"partition {p}, cluster {c}" for c in kept)
    return attrs.evolve(below, rows=rows, counts=counts, names=names, semantics=None)
