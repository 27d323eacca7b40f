"""The view keeps every rule for tasks: over vectors and images, with semantics, of varying way, built by name, and
under and over another view."""

from typing import Any

from kshot.testing import sample_tasks, suite
from kshot_whitened import Whitened


def vectors(seed: int = 0, **options: Any) -> Whitened:
    return Whitened(sample_tasks.classification(semantics=4, seed=seed, **{"query": 3, **options}), 3)


def images(seed: int = 0, **options: Any) -> Whitened:
    return Whitened(sample_tasks.classification(input_shape=(1, 16, 16), seed=seed, **options), 20)


def more(seed: int = 0) -> sample_tasks.WithMore:
    return sample_tasks.WithMore(vectors(seed), unlabelled=4, external=3)  # type: ignore[arg-type]


def over_more(seed: int = 0) -> Whitened:
    of = sample_tasks.WithMore(sample_tasks.classification(seed=seed), unlabelled=4, external=3)
    of.pool, of.prepare = of.of.pool, of.of.prepare
    return Whitened(of, 3)


plain = suite(tasks=vectors)
varying = suite(tasks=vectors, options={"way": (2, 4), "shot": (1, 2), "query": (1, 2), "block": 4})
pictures = suite(tasks=images)
by_name = suite(tasks="whitened", options={"of": sample_tasks.classification(), "components": 3})
under_a_view = suite(tasks=more)
over_a_view = suite(tasks=over_more)
