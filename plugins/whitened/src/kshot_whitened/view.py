"""Tasks whose inputs are whitened principal components: what few examples can be compared by.

Letters: B meta-batch, S support size, U unlabelled examples, n queries, D numbers of an input, k components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from kshot import Episode, Pool, TaskDistribution, TaskSpec
from kshot.errors import DataError, OptionError
from kshot.preparing import Preparation
from kshot.protocols import Pooled, Portable
from kshot.sampling import pooled
from kshot_whitened.whitening import Whitening, whitening


class Whitened:
    """A view of classification tasks whose inputs are vectors of uncorrelated numbers of variance 1.

    Neighbouring pixels say nearly the same, so a distance of pixels counts what they agree on many times over, and a
    metric is slowly learned from them. Components are fitted once, on one split, and are the same for all.

    Episodes are those of the tasks below, classes, examples and their changes, with each input as its components:
    way, shot, query and seed are theirs.

    Args:
        of: the tasks below; they must have a pool of labelled examples.
        components: k, how many are kept.
        floor: is added to each component's variance before it is divided by its root, as a share of the mean variance:
            small ones are mostly noise, and then count less. 0 makes all variances 1.
        fit: the split whose examples the components are fitted on: what a learner is trained on.
        examples: the most that are taken of them, evenly over all.

    Raises:
        OptionError: a number makes no sense.
        MisfitError: ``of`` is no classification, has no pool, or shows other inputs than its pool has.
        DataError: there is no such split, or its examples are too few or too much alike for so many components.
    """

    def __init__(
        self,
        of: TaskDistribution,
        components: int = 50,
        *,
        floor: float = 0.1,
        fit: str = "train",
        examples: int = 2000,
    ) -> None:
        self.of: Pooled = pooled(of, "whitened")
        if components < 1 or examples < 2:
            raise OptionError(
                f"whitened: components is {components} and examples {examples}; expected at least 1 and at least 2"
            )
        if not 0 <= floor < float("inf"):
            raise OptionError(f"whitened: floor is {floor}, expected a share of the mean variance, 0 or more")
        if fit not in of.spec.splits:
            raise DataError(f"whitened: fit is {fit!r}, but these tasks have the splits {', '.join(of.spec.splits)}")
        self._tasks = of
        self.seed = int(getattr(of, "seed", 0))
        self.components = fitted(self.of.pool(fit), components, floor, examples, f"split {fit!r}")
        self.fingerprint = f"{getattr(of, 'fingerprint', '')}-whitened-{components}-{floor}-{fit}-{examples}"
        self.spec: TaskSpec = attrs.evolve(of.spec, input_shape=(components,), input_range=None)
        self._pools: dict[str, Pool] = {}

    def pool(self, split: str) -> Pool:
        """The labelled examples of a split, as their components (ability ``Pooled``); rows are those below."""
        if split not in self._pools:
            pool = self.of.pool(split)
            ids, _ = pool.table()
            x = torch.zeros(len(pool.x), self.spec.input_shape[0])
            for piece in np.array_split(ids, max(1, len(ids) // 4096)):
                x[torch.from_numpy(piece)] = self.components(pool.gather(piece))
            self._pools[split] = Pool(x, pool.rows, pool.counts, names=pool.names, semantics=pool.semantics)
        return self._pools[split]

    def prepare(self, raw: Any) -> Tensor:
        """Raw examples as the tasks below prepare them, and then as their components (ability ``Pooled``)."""
        return self.components(self.of.prepare(raw))

    @property
    def preparation(self) -> Preparation | None:
        """What ``prepare`` does, as a value (ability ``Portable``): that of the tasks below and the components."""
        below = self.of.preparation if isinstance(self.of, Portable) else None
        fields = attrs.asdict(self.components, recurse=False)
        return None if below is None else Preparation.of(prepared, below=below, **fields)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Episodes ``indices`` of ``split``: support [B, S, k], query [B, n, k], and what else they show."""
        episode = self._tasks.sample(split, indices)

        def seen(x: Tensor) -> Tensor:
            return self.components(x).view(*x.shape[:2], *self.spec.input_shape)

        support, query, external = episode.support, episode.query, episode.external
        more = None if support.unlabelled is None else seen(support.unlabelled)
        return attrs.evolve(
            episode,
            support=attrs.evolve(support, x=seen(support.x), unlabelled=more),
            query=attrs.evolve(query, x=seen(query.x)),
            external=None if external is None else attrs.evolve(external, x=seen(external.x)),
        )


def prepared(raw: Any, *, below: Preparation, mean: Tensor, directions: Tensor, scales: Tensor) -> Tensor:
    """Prepare raw examples as the tasks below do, then map them to components by a ``Whitening``'s fields: [n, k]."""
    return Whitening(mean, directions, scales)(below(raw))


def fitted(pool: Pool, components: int, floor: float, examples: int, where: str) -> Whitening:
    """The whitening of a pool's examples.

    Raises:
        DataError: they are too few or too much alike for so many components.
    """
    ids, _ = pool.table()
    if len(ids) > examples:
        ids = ids[np.linspace(0, len(ids) - 1, examples).round().astype(np.int64)]
    x = pool.gather(ids).flatten(1)
    most = min(len(x) - 1, x.shape[1])
    if components > most:
        raise DataError(
            f"whitened: components is {components}, but {len(x)} examples of {x.shape[1]} numbers ({where}) have at "
            f"most {most}; ask for fewer"
        )
    made = whitening(x, components, floor)
    least = float(made.scales.min() / made.scales.max().clamp_min(1e-300))
    if not least > 1e-6:
        raise DataError(
            f"whitened: components is {components}, but the examples of {where} vary in fewer directions; ask for "
            "fewer, or for a floor above 0"
        )
    return made
