"""The view and the learners of this plugin follow every rule."""

from __future__ import annotations

from typing import Any

from kshot.testing import sample_tasks, suite
from kshot_cactus import Cactus


def vectors(seed: int = 0, **options: Any) -> Cactus:
    """Make the view of ten classes of twelve vectors per split, in eight clusters."""
    return Cactus(sample_tasks.classification(semantics=4), seed=seed, **{"query": 3, "clusters": 8, **options})


plain = suite(tasks=vectors)
varying = suite(
    tasks=vectors,
    options={"way": (2, 4), "shot": (1, 2), "query": (1, 2), "block": 4, "partitions": 3, "clusters": 10},
)
cut = suite(tasks=vectors, options={"how": "hyperplanes", "way": 3, "query": 1, "margin": 0.1, "partitions": 4})
hidden = suite(tasks=vectors, options={"how": "random", "clusters": 10})
images = sample_tasks.classification(input_shape=(1, 16, 16))
by_name = suite(tasks="cactus", options={"of": images, "clusters": 6, "query": 3})

contrastive = suite(learner="simclr")
contrastive_images = suite(learner="simclr", tasks=images, options={"width": 8})
autoencoder = suite(learner="autoencoder")
denoising = suite(learner="autoencoder", tasks=images, options={"width": 8, "corruption": 0.3})
