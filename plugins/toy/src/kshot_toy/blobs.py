"""Gaussian blobs: every class is a normal distribution around its own centre, in a signal and many noise directions.

Only ``signal`` of the ``features`` tell classes apart, so that a learned embedding beats the raw distance.
"""

from __future__ import annotations

import numpy as np
import torch

from kshot import ClassificationTasks, Pool
from kshot.randomness import episode_keys, normal


def blobs(
    way: int | tuple[int, int] = 5,
    shot: int | tuple[int, int] = 1,
    query: int | tuple[int, int] = 15,
    seed: int = 0,
    *,
    features: int = 20,
    signal: int = 4,
    spread: float = 0.35,
    noise: float = 1.5,
    classes: int = 60,
    examples: int = 40,
    attributes: int | None = None,
    block: int = 1,
) -> ClassificationTasks:
    """Few-shot classification of Gaussian blobs; train, val and test have classes of their own.

    Args:
        way, shot, query, seed, block: of the episodes, see ``kshot.ClassificationTasks``.
        features: length of an input.
        signal: how many of them tell classes apart: centres are standard normal there and 0 elsewhere.
        spread: standard deviation around the centre in the signal directions.
        noise: standard deviation in the others.
        classes: of each split.
        examples: of each class.
        attributes: give classes semantic vectors of this length, a linear view of their centre; None gives none.
    """
    mixing = normal(episode_keys(0, "toy/attributes", [0]), "matrix", signal * (attributes or 1))

    def split_pool(split: str) -> Pool:
        keys = episode_keys(0, f"toy/{split}", range(classes))
        centres = np.zeros((classes, features))
        centres[:, :signal] = normal(keys, "centre", signal)
        deviation = np.where(np.arange(features) < signal, spread, noise)
        deviates = normal(keys, "examples", examples * features).reshape(classes, examples, features)
        x = (centres[:, None] + deviation * deviates).reshape(-1, features)
        semantics = None if attributes is None else centres[:, :signal] @ mixing.reshape(signal, attributes)
        return Pool.of(
            torch.from_numpy(x).float(),
            np.repeat(np.arange(classes), examples),
            names=[f"{split} blob {c}" for c in range(classes)],
            semantics=None if semantics is None else torch.from_numpy(semantics).float(),
        )

    pools = {split: split_pool(split) for split in ("train", "val", "test")}
    return ClassificationTasks(pools, way=way, shot=shot, query=query, block=block, seed=seed)
