"""Small networks to train on real digits of 8 x 8 pixels, after Andrychowicz et al. 2016 (1606.04474), section 3.2."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot import Episode, Objective
from kshot.errors import OptionError, Unavailable
from kshot.randomness import choose, episode_keys, normal
from kshot.registry import Range
from kshot_quadratics.steps import check_split, check_steps, objective_episode, objective_spec

PIXELS, CLASSES = 64, 10
SPLITS = {"train": (0, 1000), "val": (1000, 1300), "test": (1300, 1797)}
"""For each split its range of the 1797 images, which are ordered by writer."""


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """Load the digits of the UCI repository from scikit-learn: images [1797, 64] in [0, 1] and labels [1797].

    Raises:
        Unavailable: scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise Unavailable(
            "digits-mlp: got no module sklearn, expected scikit-learn to be installed; "
            "pip install 'kshot-quadratics[digits]'"
        ) from error
    x, y = datasets.load_digits(return_X_y=True)
    return torch.from_numpy(x / 16).float(), torch.from_numpy(y.astype(np.int64))


def mlp_loss(point: Tensor, data: tuple[Tensor, Tensor], hidden: int) -> Tensor:
    """Compute the mean cross-entropy [], in nats, of a network with one hidden layer of sigmoid units.

    Args:
        point: the parameters of the network [P]: weights and biases of the hidden layer, then of the output layer.
        data: images [n, 64] and labels [n].
        hidden: number of hidden units.
    """
    x, y = data
    W1, b1, W2, b2 = torch.split(point, [PIXELS * hidden, hidden, hidden * CLASSES, CLASSES])
    h = torch.sigmoid(x @ W1.view(PIXELS, hidden) + b1)
    return F.cross_entropy(h @ W2.view(hidden, CLASSES) + b2, y)


class DigitsMlp:
    """Tasks to train a small network on digits, with different initial parameters and images in each task.

    The paper draws a minibatch at each step. Here every step uses all images of the task, so that a task is a single
    function. Splits have different images.

    Args:
        hidden: number of hidden units, 20 in the paper.
        images: number of images in a task.
        steps: T, the number of updates that an optimizer makes.
        score_from: the first step that counts; the score is the mean loss from this step to the last.
        seed: fixes all episodes.

    Raises:
        OptionError: a number is out of its range.
        Unavailable: scikit-learn is not installed.

    Example:
        >>> from kshot_quadratics import DigitsMlp
        >>> objective = DigitsMlp(hidden=4, images=20, steps=5).sample("train", [0, 1]).query.source
        >>> objective.loss(objective.initial).shape
        torch.Size([2])
    """

    def __init__(
        self,
        hidden: Annotated[int, Range(1, 65536)] = 20,
        images: int = 128,
        steps: int = 100,
        score_from: int = 1,
        *,
        seed: int = 0,
    ) -> None:
        check_steps("digits-mlp", steps, score_from)
        most = min(last - first for first, last in SPLITS.values())
        if hidden < 1 or not 1 <= images <= most:
            raise OptionError(
                f"digits-mlp: got hidden {hidden} and images {images}, expected hidden >= 1 and 1 <= images <= {most}, "
                "the number of images in the smallest split"
            )
        self._x, self._y = digits()
        self.seed = seed
        self.spec = objective_spec((PIXELS + 1) * hidden + (hidden + 1) * CLASSES, steps)
        self._hidden, self._images, self._score_from = hidden, images, score_from

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Return tasks ``indices`` of ``split``: initial [B, P], data images [B, n, 64] and labels [B, n].

        Initial weights are normal with variance 1 / fan-in, and initial biases are 0.
        """
        check_split(self.spec, split, indices)
        keys, H = episode_keys(self.seed, split, indices), self._hidden
        deviation = np.repeat([PIXELS**-0.5, 0.0, H**-0.5, 0.0], [PIXELS * H, H, H * CLASSES, CLASSES])
        initial = torch.from_numpy(normal(keys, "initial", len(deviation)) * deviation).float()
        first, last = SPLITS[split]
        rows = first + choose(keys, "images", last - first, self._images)
        hidden = self._hidden
        objective = Objective(
            initial, (self._x[rows], self._y[rows]), lambda point, data: mlp_loss(point, data, hidden)
        )
        return objective_episode(objective, self.spec, self.seed, split, indices, self._score_from)
