"""Few-shot classification of Gaussian blobs: every class is a normal distribution around its own centre.

The classes differ in ``signal`` of the ``features`` only, and the other features are noise. A learned embedding can
therefore beat the distance of the raw inputs.
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
    """Make few-shot classification tasks of Gaussian blobs, with different classes in train, val and test.

    Args:
        way, shot, query, seed, block: options of the episodes, see ``kshot.ClassificationTasks``.
        features: length of an input.
        signal: number of features in which the classes differ. A class centre is standard normal in these features
            and 0 in the others.
        spread: standard deviation of the examples around their centre in the signal features.
        noise: standard deviation of the examples in the other features.
        classes: number of classes in each split.
        examples: number of examples of each class.
        attributes: length of a semantic vector for each class, which is a linear function of its centre; None gives
            the classes no vectors.

    Example:
        >>> from kshot_toy import blobs
        >>> tasks = blobs(way=3, shot=2, query=5, features=8)
        >>> tasks.sample("train", [0, 1]).support.x.shape
        torch.Size([2, 6, 8])
    """
    mixing = normal(episode_keys(0, "toy/attributes", [0]), "matrix", signal * (attributes or 1))

    def split_pool(split: str) -> Pool:
        """Draw the classes of a split and their examples."""
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
