"""Networks to train on real digits of 8 x 8 pixels, after Andrychowicz et al. 2016 (1606.04474), section 3.2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from kshot import Episode, Origin
from kshot.errors import DataError, OptionError
from kshot.randomness import choose, episode_keys
from kshot.registry import Range
from kshot.sampling import check_split
from kshot_digit_nets.nets import Activation, Net, objective_spec, objectives

SPLITS = {"train": (0, 1000), "val": (1000, 1300), "test": (1300, 1797)}
"""For each split its range of the 1797 images, which are ordered by writer."""


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """Load the digits of the UCI repository from scikit-learn: images [1797, 1, 8, 8] in [0, 1] and labels [1797]."""
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x / 16).float().view(-1, 1, 8, 8), torch.from_numpy(y.astype(np.int64))


class DigitNets:
    """Tasks to train a small network on digits, with other initial parameters and images in each task.

    The paper trains on MNIST and draws a minibatch at each step. Here every step uses all images of the task, so that a
    task is a single function. Splits have different images.

    Args:
        hidden: units of each dense layer; one layer of 20 in the paper.
        channels: of each convolution before them, see ``kshot_digit_nets.Net``; none in the paper.
        activation: sigmoid, relu or tanh; sigmoid in the paper.
        images: the number of images of a task.
        steps: T, the number of updates that an optimizer makes.
        score_from: the first step that counts; the score is the mean loss from this step to the last.
        seed: fixes all episodes.

    Raises:
        OptionError: a number is out of its range.

    Example:
        >>> from kshot_digit_nets import DigitNets
        >>> objective = DigitNets(channels=(4,), images=20, steps=5).sample("train", [0, 1]).query.source
        >>> objective.loss(objective.initial).shape
        torch.Size([2])
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (20,),
        channels: tuple[int, ...] = (),
        activation: Activation = "sigmoid",
        images: Annotated[int, Range(1)] = 128,
        steps: Annotated[int, Range(1)] = 100,
        score_from: Annotated[int, Range(1)] = 1,
        *,
        seed: int = 0,
    ) -> None:
        most = min(last - first for first, last in SPLITS.values())
        if not 1 <= images <= most:
            raise OptionError(
                f"digit-nets: got images {images}, expected 1 to {most}, the size of the smallest split; change it"
            )
        self.seed = seed
        self._net = Net((1, 8, 8), 10, tuple(channels), tuple(hidden), activation)
        self.spec = objective_spec("digit-nets", self._net, steps, score_from, tuple(SPLITS), "index")
        self._images, self._score_from = images, score_from

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return tasks ``indices`` of ``split``: initial [B, P], images [B, n, 1, 8, 8] and labels [B, n]."""
        check_split(split, self.spec)
        if not len(indices):
            raise DataError("sample: got no indices, expected at least one")
        keys = episode_keys(self.seed, split, indices)
        first, last = SPLITS[split]
        rows = first + choose(keys, "images", last - first, self._images)
        x, y = digits()
        origin = Origin(split, tuple(indices), self.seed, query=int(str(self.spec.query)))
        return objectives(self._net, x[rows], y[rows], keys, self.spec, origin, self._score_from)
