"""The view keeps every rule for tasks: with and without a support, of varying way, from a dict and from drawings."""

from typing import Any

from kshot.testing import sample_tasks, suite
from kshot_semantics import Semantics

TABLE = {f"{split} {c}": [float(c), c % 3, c * c] for split in ("train", "val", "test") for c in range(10)}


def given(seed: int = 0, **options: Any) -> Semantics:
    """Make the view of ten classes of twelve vectors per split, described by three numbers each."""
    return Semantics(sample_tasks.classification(), TABLE, seed=seed, **{"way": 3, "query": 3, **options})


def drawn(seed: int = 0, **options: Any) -> Semantics:
    """Make the view of images in which half of each class describes the class."""
    of = sample_tasks.classification(input_shape=(1, 16, 16))
    return Semantics(of, "drawings", seed=seed, **{"way": 3, "query": 3, "described": 6, **options})


zero_shot = suite(tasks=given)
with_support = suite(tasks=given, options={"shot": 2})
varying = suite(tasks=given, options={"way": (2, 4), "shot": (0, 2), "query": (1, 2), "block": 4})
drawings = suite(tasks=drawn)
drawings_with_support = suite(tasks=drawn, options={"shot": 1})
by_name = suite(tasks="semantics", options={"of": sample_tasks.classification(), "table": TABLE, "query": 3})
