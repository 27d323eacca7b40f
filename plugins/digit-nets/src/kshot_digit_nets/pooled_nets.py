"""Networks to train on the images of other tasks, such as the characters of Omniglot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch

from kshot import Episode, Origin, TaskDistribution
from kshot.errors import DataError, MisfitError
from kshot.protocols import Pooled
from kshot.randomness import episode_keys
from kshot.registry import Range
from kshot.sampling import check_split, draw, pooled
from kshot_digit_nets.nets import Activation, Net, objective_spec, objectives


class PooledNets:
    """A view of classification tasks on images: train a network to tell some classes apart, as objective tasks.

    Each task has its own classes, images of them and initial parameters. The classes of a split are those of the same
    split of the tasks below.

    Args:
        of: the tasks whose images are taken; they must have a pool of labelled examples. Their own way, shot and seed
            have no effect.
        way: the number of classes of a task.
        images: images of each class.
        hidden, channels, activation, steps, score_from, seed: as for ``DigitNets``.

    Raises:
        OptionError: a number is out of its range.
        MisfitError: ``of`` are not classification tasks on images [C, H, W], or have no pool.
        DataError: a split has too few classes, or a class has too few images.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = PooledNets(sample_tasks.classification(input_shape=(1, 8, 8)), way=3, images=2, steps=5)
        >>> tasks.sample("test", [0]).support.source.data[0].shape
        torch.Size([1, 6, 1, 8, 8])
    """

    def __init__(
        self,
        of: TaskDistribution,
        way: Annotated[int, Range(2)] = 10,
        images: Annotated[int, Range(1)] = 10,
        hidden: tuple[int, ...] = (20,),
        channels: tuple[int, ...] = (),
        activation: Activation = "sigmoid",
        steps: Annotated[int, Range(1)] = 100,
        score_from: Annotated[int, Range(1)] = 1,
        *,
        seed: int = 0,
    ) -> None:
        self.of: Pooled = pooled(of, "pooled-nets")
        shape: Any = of.spec.input_shape
        if len(shape) != 3:
            raise MisfitError(f"pooled-nets: got inputs of shape {shape}, expected images (C, H, W); use other tasks")
        self.seed, self.fingerprint = seed, str(getattr(of, "fingerprint", ""))
        self._net = Net(shape, way, tuple(channels), tuple(hidden), activation)
        self.spec = objective_spec("pooled-nets", self._net, steps, score_from, of.spec.splits, of.spec.split_by)
        self._pools = {split: self.of.pool(split) for split in of.spec.splits}
        for split, pool in self._pools.items():
            if way > pool.classes or images > pool.fewest:
                raise DataError(
                    f"pooled-nets: got way {way} and images {images}, but split {split!r} has {pool.classes} classes, "
                    f"the smallest with {pool.fewest} images; lower them"
                )
        self._way, self._images, self._score_from = way, images, score_from

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return tasks ``indices`` of ``split``: initial [B, P], images [B, n, C, H, W] and labels [B, n]."""
        check_split(split, self.spec)
        if not len(indices) or min(indices) < 0:
            raise DataError(f"sample: got indices {list(indices)[:5]}, expected at least one and none negative")
        keys = episode_keys(self.seed, f"{split}/pooled-nets", indices)
        pool = self._pools[split]
        drawn = draw(pool, keys, self._way, 0, self._images)
        origin = Origin(split, tuple(indices), self.seed, query=int(str(self.spec.query)))
        x, y = pool.gather(drawn.ids), torch.from_numpy(drawn.query_y)
        return objectives(self._net, x, y, keys, self.spec, origin, self._score_from)
