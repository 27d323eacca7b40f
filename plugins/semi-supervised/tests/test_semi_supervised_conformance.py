"""The view keeps every rule for tasks: plain, with distractors, with varying way and semantics, without unlabelled
examples, over images, and built by name."""

from typing import Any

import kshot
from kshot.testing import sample_tasks, suite
from kshot_semi_supervised import SemiSupervised


def view(seed: int = 0, **options: Any) -> SemiSupervised:
    """Make the view of ten classes of twelve vectors per split, of which four are labelled."""
    return SemiSupervised(sample_tasks.classification(semantics=4), seed=seed, **{"labelled": 4, **options})


def images(seed: int = 0) -> SemiSupervised:
    return SemiSupervised(sample_tasks.classification(input_shape=(1, 16, 16)), way=3, seed=seed, labelled=0.25)


plain = suite(tasks=view, options={"way": 3, "query": 2})
distractors = suite(tasks=view, options={"way": 3, "distractors": 4, "unlabelled": 8})
varying = suite(tasks=view, options={"way": (2, 4), "shot": (1, 2), "query": (1, 2), "block": 4, "distractors": 2})
supervised = suite(tasks=view, options={"unlabelled": 0})
pictures = suite(tasks=images)
by_name = suite(tasks="semi-supervised", options={"of": sample_tasks.classification(), "labelled": 3})


def test_a_view_of_a_view_is_of_its_labelled_part() -> None:
    """``pool`` has the labelled examples only, so no view above can see the other labels."""
    inner = view(labelled=4)
    outer = kshot.tasks("semi-supervised", of=inner, labelled=2, unlabelled=2, query=1)
    arrays = outer.sample("train", range(100)).origin.arrays()
    shown = {int(i) for name in ("support_ids", "query_ids", "unlabelled_ids") for i in arrays[name].flat}
    assert shown == set(inner.pool("train").table()[0].tolist())
    assert len(shown) == 40
