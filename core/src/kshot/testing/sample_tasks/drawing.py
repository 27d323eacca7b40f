"""Random numbers and origins that all sample tasks share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kshot.episode import Origin
from kshot.errors import DataError
from kshot.randomness import U64, normal
from kshot.spec import TaskSpec


def normals(keys: U64, purpose: str, *shape: int) -> Tensor:
    """Draw standard normal float32 numbers of shape [B, *shape], one row for each of the ``keys`` [B]."""
    return torch.from_numpy(normal(keys, purpose, int(np.prod(shape)))).float().view(len(keys), *shape)


def origin_of(spec: TaskSpec, seed: int, split: str, indices: Sequence[int]) -> Origin:
    """Return the origin of episodes that have neither classes nor example identities.

    Raises:
        DataError: the split is unknown, or there are no indices.
    """
    if split not in spec.splits:
        raise DataError(f"sample: got the split {split!r}, expected one of {', '.join(spec.splits)}")
    if not len(indices):
        raise DataError("sample: got no indices, expected the number of at least one episode")
    return Origin(split, tuple(indices), seed)
