"""The task of Santoro et al., "One-shot learning with memory-augmented neural networks", 2016 (1605.06065, section 2).

Letters: B meta-batch, N way, T time, F input features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot import Episode, Examples, Origin, Pool, Support, TaskDistribution, TaskSpec
from kshot.errors import DataError, OptionError
from kshot.protocols import Pooled
from kshot.randomness import as_tensor, episode_keys
from kshot.sampling import draw


class Stream:
    """A view of classification tasks: the examples of a few classes one after another, their labels one step late.

    At step t a learner is shown (x_t, y_{t-1}) and is to say y_t. Classes, their numbers and the order of the examples
    are drawn anew in each episode, so that a label can't be known before it was shown, and afterwards only by
    remembering it together with the example it was about.

    Args:
        of: the tasks whose examples these are; they must have a pool of labelled examples.
        way: N, classes in a stream.
        instances: examples of each class; a stream has T = way * instances steps.
        seed: fixes all streams. Seed, way and shot of ``of`` have no say.

    Raises:
        OptionError: fewer than two classes, or no instances.
        DataError: ``of`` has no pool or is no classification; a split has too few classes, a class too few examples.
    """

    def __init__(self, of: TaskDistribution, way: int = 5, instances: int = 10, seed: int = 0) -> None:
        if way < 2:
            raise OptionError(f"stream: way is {way}, expected at least 2 classes to be told apart")
        if instances < 1:
            raise OptionError(f"stream: instances is {instances}, expected at least 1 example of each class")
        if not isinstance(of, Pooled) or of.spec.kind != "classification":
            raise DataError(
                f"stream: {type(of).__name__} are {of.spec.kind} tasks with{'' if isinstance(of, Pooled) else 'out'} a "
                "pool of examples; expected classification tasks that have one, such as kshot.ClassificationTasks"
            )
        self.of, self.way, self.instances, self.seed = of, way, instances, seed
        self.fingerprint = str(getattr(of, "fingerprint", ""))
        self._pools = {split: _checked(of.pool(split), split, way, instances) for split in of.spec.splits}
        shown = of.spec.input_range
        self.spec = TaskSpec(
            kind="sequence",
            input_shape=(math.prod(of.spec.input_shape) + way,),
            input_range=None if shown is None else (min(shown[0], 0.0), max(shown[1], 1.0)),
            way=way,
            query=way * instances,
            splits=of.spec.splits,
            split_by=of.spec.split_by,
            provides={"stream", "identities"},
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Streams ``indices`` of ``split``: x [B, T, F + N], y [B, T]; the support is empty.

        x_t is the flattened example and then y_{t-1}, one-hot; before the first step it is all zeros.
        """
        if split not in self._pools:
            raise DataError(f"unknown split {split!r}; these tasks have {', '.join(self._pools)}")
        if len(indices) == 0 or min(indices) < 0:
            raise DataError(f"sample: indices are {list(indices)[:5]}, expected at least one and none negative")
        pool = self._pools[split]
        keys = episode_keys(self.seed, f"{split}/stream", indices)
        drawn = draw(pool, keys, self.way, 0, self.instances)
        y = torch.from_numpy(drawn.query_y)
        x = torch.cat([pool.gather(drawn.ids).flatten(2), labels_of_the_step_before(y, self.way)], -1)
        return Episode(
            support=Support(x[:, :0], y[:, :0], key=as_tensor(keys), way=self.way),
            query=Examples(x, y),
            origin=Origin(
                split=split,
                indices=tuple(indices),
                seed=self.seed,
                way=self.way,
                query=y.shape[1],
                classes=drawn.classes,
                names=pool.names,
                support_ids=drawn.ids[:, :0],
                query_ids=drawn.ids,
            ),
        )


def labels_of_the_step_before(y: Tensor, way: int) -> Tensor:
    """Labels ``y`` [B, T] -> one-hot y_{t-1} at step t, and zeros at the first [B, T, N]."""
    return F.pad(F.one_hot(y, way).float(), (0, 0, 1, 0))[:, :-1]


def _checked(pool: Pool, split: str, way: int, instances: int) -> Pool:
    if way > pool.classes:
        raise DataError(f"stream: split {split!r} has {pool.classes} classes, but way is {way}; lower way")
    if instances > pool.fewest:
        c = int(pool.counts.argmin())
        name = repr(pool.names[c]) if pool.names else f"number {c}"
        raise DataError(
            f"stream: split {split!r}: class {name} has {pool.fewest} examples, but instances is {instances}; lower "
            "instances, or drop small classes"
        )
    return pool
