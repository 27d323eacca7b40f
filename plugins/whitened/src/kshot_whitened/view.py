"""Tasks whose inputs are whitened principal components, which help to compare examples when there are few.

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
from kshot.episode import map_inputs
from kshot.errors import DataError, OptionError
from kshot.preparing import Preparation
from kshot.protocols import Pooled, Portable
from kshot.sampling import pooled
from kshot_whitened.whitening import Whitening, whitening


class Whitened:
    """A view of classification tasks whose inputs are vectors of uncorrelated numbers of variance 1.

    Neighbouring pixels are nearly equal. A distance between pixels therefore counts what they have in common many
    times, and learning a metric from pixels is slow. The components are fitted once, on one split, and are the same
    for all splits.

    Episodes are those of the tasks below, with their classes, examples and augmentations; only the inputs are replaced
    by their components. So way, shot, query and seed are options of ``of``.

    Args:
        of: the tasks below; they must have a pool of labelled examples.
        components: k, the number of components.
        floor: added to the variance of each component before the component is divided by its square root, as a share
            of the mean variance. Small components are mostly noise, and count less then. 0 makes all variances 1.
        fit: the split on whose examples the components are fitted; it should be the one that a learner trains on.
        examples: the largest number of examples to fit on, taken evenly from the split.

    Raises:
        OptionError: a number is out of its range.
        MisfitError: ``of`` are not classification tasks, or have no pool.
        DataError: the split to fit on is unknown, or its examples are too few or too similar for so many components.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> from kshot_whitened import Whitened
        >>> tasks = Whitened(sample_tasks.classification(way=3, shot=2), components=4)
        >>> tasks.sample("test", [0]).support.x.shape
        torch.Size([1, 6, 4])
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
                f"whitened: got components {components} and examples {examples}, expected at least 1 and at least 2"
            )
        if not 0 <= floor < float("inf"):
            raise OptionError(f"whitened: got floor {floor}, expected a share of the mean variance, 0 or more")
        if fit not in of.spec.splits:
            raise DataError(f"whitened: got fit {fit!r}, expected one of the splits {', '.join(of.spec.splits)}")
        self._tasks = of
        self.seed = int(getattr(of, "seed", 0))
        self.components = fitted(self.of.pool(fit), components, floor, examples, f"split {fit!r}")
        self.fingerprint = f"{getattr(of, 'fingerprint', '')}-whitened-{components}-{floor}-{fit}-{examples}"
        self.spec: TaskSpec = attrs.evolve(of.spec, input_shape=(components,), input_range=None)
        self._pools: dict[str, Pool] = {}

    def pool(self, split: str) -> Pool:
        """Return the labelled examples of a split as components, in the rows of the pool below (ability ``Pooled``)."""
        if split not in self._pools:
            pool = self.of.pool(split)
            ids, _ = pool.table()
            x = torch.zeros(len(pool.x), self.spec.input_shape[0])
            # Map chunks of about 4096 examples, so that the inputs of all examples are never in memory at once.
            for chunk in np.array_split(ids, max(1, len(ids) // 4096)):
                x[torch.from_numpy(chunk)] = self.components(pool.gather(chunk))
            self._pools[split] = Pool(x, pool.rows, pool.counts, names=pool.names, semantics=pool.semantics)
        return self._pools[split]

    def prepare(self, raw: Any) -> Tensor:
        """Prepare raw examples as the tasks below do, and map them to components [n, k] (ability ``Pooled``)."""
        return self.components(self.of.prepare(raw))

    @property
    def preparation(self) -> Preparation | None:
        """The computation of ``prepare``, as a value (ability ``Portable``); None if the tasks below have none."""
        below = self.of.preparation if isinstance(self.of, Portable) else None
        fields = attrs.asdict(self.components, recurse=False)
        return None if below is None else Preparation.of(prepared, below=below, **fields)

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes ``indices`` of ``split`` with components as inputs: support [B, S, k] and query [B, n, k].

        Unlabelled and external examples are mapped to components too.
        """
        shape = self.spec.input_shape
        return map_inputs(self._tasks.sample(split, indices), lambda x: self.components(x).view(*x.shape[:2], *shape))


def prepared(raw: Any, *, below: Preparation, mean: Tensor, directions: Tensor, scales: Tensor) -> Tensor:
    """Prepare raw examples as ``below`` does, then map them to components [n, k] by the fields of a ``Whitening``."""
    return Whitening(mean, directions, scales)(below(raw))


def fitted(pool: Pool, components: int, floor: float, examples: int, where: str) -> Whitening:
    """Fit the whitening of a pool's examples.

    Args:
        pool: the examples.
        components, floor, examples: as in ``Whitened``.
        where: the source of the pool, for messages.

    Raises:
        DataError: the examples are too few or too similar for so many components.
    """
    ids, _ = pool.table()
    if len(ids) > examples:
        ids = ids[np.linspace(0, len(ids) - 1, examples).round().astype(np.int64)]
    x = pool.gather(ids).flatten(1)
    most = min(len(x) - 1, x.shape[1])
    if components > most:
        raise DataError(
            f"whitened: got components {components}, expected at most {most} for {len(x)} examples of {x.shape[1]} "
            f"numbers ({where}); lower components"
        )
    fit = whitening(x, components, floor)
    # A component without variance would be divided by a scale that is only rounding.
    least = float(fit.scales.min() / fit.scales.max().clamp_min(1e-300))
    if not least > 1e-6:
        raise DataError(
            f"whitened: got components {components}, but the examples of {where} vary in fewer directions; lower "
            "components, or give a floor above 0"
        )
    return fit
