"""Represent what a trained learner predicts.

Letters: n examples, N classes.
"""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot.errors import DataError


@frozen(eq=False)
class Prediction:
    """Store the predicted classes of new examples.

    Attributes:
        names: names of the N classes.
        probabilities: float64 array [n, N], the probability of each class for each example; rows sum to 1.

    Example:
        >>> prediction = Prediction(("cat", "dog"), np.array([[0.9, 0.1], [0.2, 0.8]]))
        >>> prediction.labels
        ['cat', 'dog']
    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float64]

    @property
    def labels(self) -> list[str]:
        """The name of the most probable class of each of the n examples."""
        return [self.names[i] for i in self.probabilities.argmax(1)]


def probabilities_of(logits: Tensor) -> NDArray[np.float64]:
    """Return the probabilities [n, N] of logits [n, N].

    Raises:
        DataError: some are NaN.
    """
    probabilities: NDArray[np.float64] = torch.softmax(logits.double(), -1).numpy()
    if bad := int(np.isnan(probabilities).any(1).sum()):
        raise DataError(
            f"predict: got predictions that are NaN for {bad} of {len(probabilities)} examples, expected numbers; the "
            "inputs are too large, or the parameters are not finite"
        )
    return probabilities
