"""The view keeps every rule for tasks: vectors and images, of varying way with semantics, with queries left alone; by
name with other tasks' objects in it; and a view of the kit over it keeps them too."""

from typing import Any

from kshot.testing import sample_tasks, suite
from kshot_degraded import Degraded


def vectors(seed: int = 0, **options: Any) -> Degraded:
    """Ten classes of twelve vectors a split, with noise."""
    return Degraded(sample_tasks.classification(semantics=4), seed=seed, **{"query": 3, "how": "noise", **options})


def images(seed: int = 0, **options: Any) -> Degraded:
    of = sample_tasks.classification(input_shape=(1, 16, 16))
    return Degraded(of, seed=seed, **{"way": 3, "query": 3, **options})


def more(seed: int = 0) -> sample_tasks.WithMore:
    """Unlabelled examples and some from outside the tasks, of the degraded ones."""
    return sample_tasks.WithMore(vectors(seed), unlabelled=4, external=3)  # type: ignore[arg-type]


plain = suite(tasks=vectors)
varying = suite(tasks=vectors, options={"way": (2, 4), "shot": (1, 2), "query": (1, 2), "block": 4, "how": "drop"})
pictures = suite(tasks=images)
support_only = suite(tasks=images, options={"where": "support", "how": "occlude"})
by_name = suite(tasks="degraded", options={"of": sample_tasks.classification(), "how": "contrast", "query": 3})
under_a_view = suite(tasks=more)
