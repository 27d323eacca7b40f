"""CACTUs: Hsu, Levine & Finn, "Unsupervised learning via meta-learning", 2018 (1810.02334), algorithm 1.

Letters: B meta-batch, N way, K shot, Q queries per class, n examples, D embedding, P partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kshot import Episode, Pool, TaskDistribution, TaskSpec
from kshot.episode import Examples, Origin, Support
from kshot.errors import OptionError
from kshot.preparing import Preparation
from kshot.protocols import Pooled, Portable
from kshot.randomness import as_tensor, below, draws, episode_keys
from kshot.registry import Range, check_values
from kshot.sampling import Drawn, check_enough, check_split, draw, pooled, shape_of_block
from kshot.spec import bounds
from kshot_cactus.clusters import Clustering, How, Options

LABELLED = ("val", "test")
"""The splits that keep their classes by default, as far as the tasks have them."""


class Cactus:
    """A view of classification tasks whose training classes are clusters of embeddings, so that no label is used.

    The examples of a split are embedded, and the embeddings are divided into clusters, once or several times. An
    episode takes one of these partitions, N of its clusters, and examples of each. All splits are divided, except
    those of ``labelled``, whose episodes are those of the tasks below. So every learner trains without labels, and is
    tested on true classes.

    Args:
        of: the tasks below; they must have a pool of examples. Their own way, shot, query and seed have no effect.
        way, shot, query, block: options of the episodes, see ``kshot.ClassificationTasks``.
        seed: fixes all episodes; the partitions do not depend on it.
        encoder: the encoder of the embeddings: the name of an encoder plugin, ``{"name": "run", "run": FOLDER}`` for
            that of a trained run, or a module from [n, *input] to [n, D]. None clusters the inputs themselves. It
            should be one that was trained without labels.
        how: ``kmeans``; ``hyperplanes``, which cut the space of embeddings at random; or ``random``, groups of examples
            that have nothing in common, for learners that use no labels, such as ``simclr``, and as a control.
        clusters: number of clusters of a partition, for ``kmeans`` and ``random``. 500 is the paper's.
        partitions: P; None for 1, or 100 for ``hyperplanes``, which give few clusters each.
        restarts: how often k-means starts anew for each partition; the best result is kept. The authors' code has 10 if
            there is one partition, and 1 if there are several.
        planes: number of hyperplanes of a partition; None for the least that can separate the way.
        margin: distance from the planes within which examples are in no cluster, in standard deviations, because each
            dimension is scaled to variance 1 before. The authors' code has 1.2 without this scaling.
        smallest: clusters with fewer members are dropped; None for shot + query.
        partition_seed: fixes the partitions.
        labelled: the splits that keep their classes.
        cache: kshot's cache folder for the partitions; by default KSHOT_CACHE, or the system's.

    Raises:
        OptionError: a number is out of its range, or options contradict each other.
        MisfitError: ``of`` are not classification tasks, or have no pool.
        DataError: the encoder does not accept the inputs; at ``sample``: there are fewer examples than clusters, all
            are the same, an embedding is not finite, or too few clusters are left.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> from kshot_cactus import Cactus
        >>> tasks = Cactus(sample_tasks.classification(), way=3, query=2, clusters=8, cache="runs/cache")
        >>> tasks.sample("train", [0, 1]).support.x.shape
        torch.Size([2, 3, 6])
    """

    pool: Callable[[str], Pool]
    """Return the examples of a split by clusters, or by classes if it is labelled (``Pooled``); only if P is 1."""

    def __init__(
        self,
        of: TaskDistribution,
        way: int | tuple[int, int] = 5,
        shot: int | tuple[int, int] = 1,
        query: int | tuple[int, int] = 15,
        seed: int = 0,
        *,
        encoder: nn.Module | None = None,
        how: How = "kmeans",
        clusters: Annotated[int, Range(2)] = 500,
        partitions: Annotated[int, Range(1)] | None = None,
        restarts: Annotated[int, Range(1)] = 1,
        planes: Annotated[int, Range(1, 16)] | None = None,
        margin: Annotated[float, Range(0)] = 0.5,
        smallest: Annotated[int, Range(1)] | None = None,
        partition_seed: Annotated[int, Range(0)] = 0,
        labelled: tuple[str, ...] = LABELLED,
        block: int = 1,
        cache: Path | str | None = None,
    ) -> None:
        check_values(Cactus, locals())
        self.of: Pooled = pooled(of, "cactus")
        if tuple(labelled) != LABELLED and (unknown := sorted(set(labelled) - set(of.spec.splits))):
            raise OptionError(
                f"cactus: got labelled {', '.join(unknown)}, expected splits of the tasks: {', '.join(of.spec.splits)}"
            )
        self.seed, self.labelled = seed, tuple(labelled)
        most = (bounds(way)[1] or 2, (bounds(shot)[1] or 0) + (bounds(query)[1] or 0))
        self.options = Options.of(how, clusters, partitions, restarts, planes, margin, smallest, partition_seed, most)
        self.clustering = Clustering(of, encoder if how != "random" else None, self.options, cache)
        self.fingerprint = f"{getattr(of, 'fingerprint', '')}-cactus-{self.clustering.fingerprint}"
        self.spec: TaskSpec = attrs.evolve(
            of.spec, way=way, shot=shot, query=query, block=block, provides={"identities"}, semantics_shape=None
        )
        if self.options.partitions == 1:
            self.pool = self._pool

    def _pool(self, split: str) -> Pool:
        check_split(split, self.spec)
        if split in self.labelled:
            pool: Pool = self.of.pool(split)
            return attrs.evolve(pool, semantics=None)
        return self.clustering.pools(split)[0]

    def prepare(self, raw: Any) -> Tensor:
        """Turn raw examples into inputs as the tasks below do (ability ``Pooled``)."""
        return self.of.prepare(raw)

    @property
    def preparation(self) -> Preparation | None:
        """The preparation of the tasks below, as a value (ability ``Portable``); None if they have none."""
        return self.of.preparation if isinstance(self.of, Portable) else None

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices`` of ``split``: support [B, N K, *input] and query [B, N Q, *input]."""
        return self.sample_with(split, indices, lambda pool, ids: pool.gather(ids))

    def sample_with(
        self, split: str, indices: Sequence[int], gather: Callable[[Pool, NDArray[np.int64]], Tensor]
    ) -> Episode:
        """Return the same episodes, whose examples are gathered by another function (ability ``Gathered``)."""
        check_split(split, self.spec)
        shape = shape_of_block(self.spec, self.seed, split, indices)
        N, K, Q = shape["way"] or 0, shape["shot"] or 0, shape["query"] or 0
        if split in self.labelled:
            pools, advice = [self._pool(split)], ""
        else:
            pools, advice = self.clustering.pools(split), self.options.advice
        for pool in pools:
            check_enough(split, pool, N, K, Q, advice)
        keys = episode_keys(self.seed, split, indices)
        # Algorithm 1: sample a partition uniformly, then N of its clusters uniformly, then examples of each of them.
        chosen = below(draws(keys, "partition", 1), len(pools))[:, 0]  # [B]
        drawn = _drawn_from(pools, chosen, keys, (N, K, Q))
        x, S = gather(pools[0], drawn.ids), N * K  # all partitions are of the same table
        return Episode(
            support=Support(
                x=x[:, :S],
                y=torch.arange(N).repeat_interleave(K).repeat(len(indices), 1),
                key=as_tensor(keys),
                way=N,
            ),
            query=Examples(x=x[:, S:], y=torch.from_numpy(drawn.query_y)),
            origin=Origin(
                split=split,
                indices=tuple(int(i) for i in indices),
                seed=self.seed,
                way=N,
                shot=K,
                query=Q,
                classes=drawn.classes,
                names=pools[0].names if len(pools) == 1 else self.clustering.names(split),
                support_ids=drawn.ids[:, :S],
                query_ids=drawn.ids[:, S:],
            ),
        )


def _drawn_from(
    pools: Sequence[Pool], chosen: NDArray[np.int64], keys: NDArray[np.uint64], shape: tuple[int, int, int]
) -> Drawn:
    """Draw episodes with ``keys`` [B], each from the pool whose number is in ``chosen`` [B].

    The classes of all pools are numbered one after another.
    """
    (N, K, Q), B = shape, len(keys)
    classes, ids, y = (np.empty((B, length), np.int64) for length in (N, N * (K + Q), N * Q))
    first = np.cumsum([0, *(pool.classes for pool in pools)])
    for p in np.unique(chosen):
        own = chosen == p
        drawn = draw(pools[p], keys[own], N, K, Q)
        classes[own], ids[own], y[own] = drawn.classes + first[p], drawn.ids, drawn.query_y
    return Drawn(keys, classes, ids, y)
