"""The task of Santoro et al., "One-shot learning with memory-augmented neural networks", 2016 (1605.06065, section 2).

Letters: B meta-batch, N way, T time, F input features, L characters of a string, A characters of the alphabet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot import Episode, Examples, Origin, Pool, Support, TaskDistribution, TaskSpec
from kshot.errors import DataError, OptionError
from kshot.protocols import Pooled
from kshot.randomness import U64, as_tensor, choose, episode_keys
from kshot.registry import check_values
from kshot.sampling import check_split, class_name, draw, pooled

CHARACTERS = 5
"""L, the length of a label that is a string (section 4.1)."""

ALPHABET = 5
"""A, the number of characters of which such a string is made."""


class Stream:
    """A view of classification tasks that shows examples one after another, each with the label of the previous one.

    At step t a learner sees (x_t, y_{t-1}) and predicts y_t. Each episode draws new classes, labels of the classes and
    order of the examples. So a learner cannot know a label before the stream has shown it, and afterwards it
    can know it only if it remembered the label together with the example.

    With ``labels="strings"`` the label of a class is a string of five characters of an alphabet of five, as in
    section 4.1 of the paper: the network has the same inputs and outputs for any number of classes, because 3,125
    classes have different strings. The strings of the classes of an episode are drawn without replacement.

    Args:
        of: the tasks that the examples are taken from; they must have a pool of labelled examples. Their own seed,
            way and shot have no effect.
        way: N, the number of classes in a stream.
        instances: examples of each class; a stream has T = way * instances steps.
        seed: fixes all streams.
        labels: how a label is shown and answered: ``one-hot``, one of N numbers; or ``strings``, five characters, each
            one of five numbers.

    Raises:
        OptionError: way is below 2 or exceeds the number of different strings, instances is below 1, or ``labels`` is
            unknown.
        MisfitError: ``of`` are not classification tasks, or have no pool.
        DataError: a split has too few classes, or a class has too few examples; at ``sample``: the split is unknown.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> from kshot_stream import Stream
        >>> stream = Stream(sample_tasks.classification(), way=3, instances=2)
        >>> stream.sample("test", [0]).query.x.shape  # 6 features of an example, 3 for the previous label
        torch.Size([1, 6, 9])
    """

    def __init__(
        self,
        of: TaskDistribution,
        way: int = 5,
        instances: int = 10,
        seed: int = 0,
        *,
        labels: Literal["one-hot", "strings"] = "one-hot",
    ) -> None:
        check_values(Stream, locals())
        if way < 2:
            raise OptionError(f"stream: got way {way}, expected at least 2 classes to distinguish")
        if instances < 1:
            raise OptionError(f"stream: got instances {instances}, expected at least 1 example of each class")
        if labels == "strings" and way > ALPHABET**CHARACTERS:
            raise OptionError(
                f"stream: got way {way}, expected at most {ALPHABET**CHARACTERS} classes, as many as there are "
                "strings; lower way"
            )
        self.of: Pooled = pooled(of, "stream")
        self.way, self.instances, self.seed, self.labels = way, instances, seed, labels
        self.fingerprint = str(getattr(of, "fingerprint", ""))
        self._pools = {split: self.of.pool(split) for split in of.spec.splits}
        for split, pool in self._pools.items():
            _check_enough(split, pool, way, instances)
        below = of.spec.input_range
        # The shape of a label, and how many values each of its numbers can have.
        shape, values = ((), way) if labels == "one-hot" else ((CHARACTERS,), ALPHABET)
        self.spec = TaskSpec(
            kind="sequence",
            input_shape=(math.prod(of.spec.input_shape) + math.prod(shape) * values,),
            target_shape=shape,
            # The one-hot labels are 0 and 1, so the range of the inputs must contain both.
            input_range=None if below is None else (min(below[0], 0.0), max(below[1], 1.0)),
            way=values,
            query=way * instances,
            splits=of.spec.splits,
            split_by=of.spec.split_by,
            provides={"stream", "identities"},
        )

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return streams ``indices`` of ``split``: inputs x [B, T, F + N] and labels y [B, T], with an empty support.

        x_t is the flattened example followed by the one-hot label y_{t-1}; at the first step the label is all zeros.
        With strings, x is [B, T, F + L * A] and y [B, T, L].
        """
        check_split(split, self.spec)
        if len(indices) == 0 or min(indices) < 0:
            raise DataError(f"sample: got indices {list(indices)[:5]}, expected at least one and none negative")
        pool = self._pools[split]
        keys = episode_keys(self.seed, f"{split}/stream", indices)
        # Without support examples, the query of an episode is all of its examples in random order: the stream.
        drawn = draw(pool, keys, self.way, 0, self.instances)
        y = torch.from_numpy(drawn.query_y)
        if self.labels == "strings":
            y = strings(keys, self.way)[torch.arange(len(keys))[:, None], y]
        values: int = self.spec.way  # type: ignore[assignment]  # one number, see __init__
        x = torch.cat([pool.gather(drawn.ids).flatten(2), labels_of_the_step_before(y, values)], -1)
        return Episode(
            support=Support(x[:, :0], y[:, :0], key=as_tensor(keys), way=values),
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
    """Return, for labels ``y`` [B, T], the one-hot label y_{t-1} at each step t, and zeros at the first [B, T, N].

    Strings ``y`` [B, T, L] have their characters one after another [B, T, L * N].
    """
    return F.pad(F.one_hot(y, way).flatten(2).float(), (0, 0, 1, 0))[:, :-1]


def strings(keys: U64, way: int) -> Tensor:
    """Draw a different string for each class of each episode: characters [B, N, L] from 0 to A - 1."""
    numbers = choose(keys, "strings", ALPHABET**CHARACTERS, way)
    # The characters are the digits of a number in base A.
    places = ALPHABET ** torch.arange(CHARACTERS)
    return torch.from_numpy(numbers)[..., None] // places % ALPHABET


def _check_enough(split: str, pool: Pool, way: int, instances: int) -> None:
    """Raise DataError if a split has too few classes, or a class too few examples, for such streams."""
    if way > pool.classes:
        raise DataError(f"stream: got way {way}, but split {split!r} has {pool.classes} classes; lower way")
    if instances > pool.fewest:
        name = class_name(pool, int(pool.counts.argmin()))
        raise DataError(
            f"stream: got instances {instances}, but class {name} of split {split!r} has {pool.fewest} examples; "
            "lower instances, or drop small classes"
        )
