"""The view keeps every rule for tasks: vectors and images, varying way with semantics, undegraded queries, built by
name; and another view over it keeps the rules too."""

from typing import Any

from kshot.testing import sample_tasks, suite
from kshot_degraded import Degraded


def vectors(seed: int = 0, **options: Any) -> Degraded:
    """Make the view of ten classes of twelve vectors per split, with noise."""
    return Degraded(sample_tasks.classification(semantics=4), seed=seed, **{"query": 3, "how": "noise", **options})


def images(seed: int = 0, **options: Any) -> Degraded:
    of = sample_tasks.classification(input_shape=(1, 16, 16))
    return Degraded(of, seed=seed, **{"way": 3, "query": 3, **options})


def more(seed: int = 0) -> sample_tasks.WithMore:
    """Make a view over the view that adds unlabelled and external examples."""
    return sample_tasks.WithMore(vectors(seed), unlabelled=4, external=3)  # type: ignore[arg-type]


plain = suite(tasks=vectors)
varying = suite(tasks=vectors, options={"way": (2, 4), "shot": (1, 2), "query": (1, 2), "block": 4, "how": "drop"})
pictures = suite(tasks=images)
support_only = suite(tasks=images, options={"where": "support", "how": "occlude"})
by_name = suite(tasks="degraded", options={"of": sample_tasks.classification(), "how": "contrast", "query": 3})
under_a_view = suite(tasks=more)
