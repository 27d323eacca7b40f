"""Small networks on real digits, after section 3.2 of Andrychowicz et al. 2016 (1606.04474), with 8 x 8 images."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot import Episode, Objective
from kshot.errors import OptionError, Unavailable
from kshot.randomness import choose, episode_keys, normal
from kshot_quadratics.steps import check_split, check_steps, objective_episode, objective_spec

PIXELS, CLASSES = 64, 10
SPLITS = {"train": (0, 1000), "val": (1000, 1300), "test": (1300, 1797)}
"""Which of the 1797 images, in their order (by writer), a split draws from."""


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """The digits of the UCI repository that scikit-learn brings along: images [1797, 64] in [0, 1] and labels [1797].

    Raises:
        Unavailable: scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise Unavailable("digits-mlp needs scikit-learn: pip install 'kshot-quadratics[digits]'") from error
    x, y = datasets.load_digits(return_X_y=True)
    return torch.from_numpy(x / 16).float(), torch.from_numpy(y.astype(np.int64))


def mlp_loss(point: Tensor, data: tuple[Tensor, Tensor], hidden: int) -> Tensor:
    """Mean cross-entropy, in nats, of a network with one hidden layer of sigmoid units and parameters ``point`` [P].

    ``data`` are images [n, 64] and labels [n]; -> [].
    """
    x, y = data
    W1, b1, W2, b2 = torch.split(point, [PIXELS * hidden, hidden, hidden * CLASSES, CLASSES])
    h = torch.sigmoid(x @ W1.view(PIXELS, hidden) + b1)
    return F.cross_entropy(h @ W2.view(hidden, CLASSES) + b2, y)


class DigitsMlp:
    """Networks to be trained on digits: each task has its own initial parameters and its own images.

    The paper draws a minibatch at each step; here all of a task's images are used at each, so that a task is one
    function. Splits have different images.

    Args:
        hidden: hidden units, 20 in the paper.
        images: of a task.
        steps: T, updates that an optimizer makes.
        score_from: the first step that counts; the score is the mean loss from there to the last.
        seed: fixes all episodes.

    Raises:
        OptionError: a number out of its range.
        Unavailable: scikit-learn is not installed.
    """

    def __init__(
        self, hidden: int = 20, images: int = 128, steps: int = 100, score_from: int = 1, *, seed: int = 0
    ) -> None:
        check_steps("digits-mlp", steps, score_from)
        most = min(last - first for first, last in SPLITS.values())
        if hidden < 1 or not 1 <= images <= most:
            raise OptionError(
                f"digits-mlp: hidden is {hidden} and images {images}, expected hidden >= 1 and 1 <= images <= {most}, "
                "the images of the smallest split"
            )
        self._x, self._y = digits()
        self.seed = seed
        self.spec = objective_spec((PIXELS + 1) * hidden + (hidden + 1) * CLASSES, steps)
        self._hidden, self._images, self._score_from = hidden, images, score_from

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        """Tasks ``indices`` of ``split``: initial [B, P], data images [B, n, 64] and labels [B, n].

        Weights are initially normal with variance 1 / fan-in, biases 0.
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
