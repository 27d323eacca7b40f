"""The view ``with-external``: which examples it adds, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot.errors import DataError, MisfitError
from kshot.testing import sample_tasks
from kshot_concept import WithExternal

BELOW = sample_tasks.classification(way=3, seed=4)


def table(classes: int, size: int = 6, examples: int = 4, names: Any = ()) -> kshot.ClassificationTasks:
    """Make tasks whose pool has the class number of each example as its inputs."""
    y = np.repeat(np.arange(classes), examples)
    x = np.repeat(y[:, None], size, 1).astype(np.float32)
    return kshot.ClassificationTasks({"train": kshot.Pool.of(x, y, names=names)}, way=2, shot=1, query=1)


def test_external_examples_have_the_labels_of_the_source() -> None:
    """The label is the number of the class in the source, whose names the spec has in this order."""
    tasks = WithExternal(BELOW, table(5, names=list("edcba")), examples=7)
    assert tasks.spec.external_classes == tuple("edcba")
    assert "external" in tasks.spec.provides
    for split in ("train", "test"):
        external = tasks.sample(split, range(40)).external
        assert external is not None
        assert external.x.shape == (40, 7, 6)
        assert torch.equal(external.x[..., 0].long(), external.y)
        assert set(external.y.flatten().tolist()) == set(range(5))
    assert WithExternal(BELOW, table(3), examples=2).spec.external_classes == ("class 0", "class 1", "class 2")


def test_an_example_occurs_once_in_an_episode_and_all_are_drawn_alike() -> None:
    """A draw of all examples of the source has each of them once; a draw of one has each example equally often."""
    source = table(3, examples=4)
    everything = WithExternal(BELOW, source, examples=12).sample("train", range(5)).external
    assert everything is not None
    assert (everything.y.sort(1).values == torch.arange(3).repeat_interleave(4)).all()
    one = WithExternal(BELOW, source, examples=1).sample("train", range(3000)).external
    assert one is not None
    counts = torch.bincount(one.y.flatten())
    assert (counts - 1000).abs().max() < 120  # 4.6 standard deviations


def test_episodes_are_those_of_the_tasks_below() -> None:
    """So results with and without the view, or with another external set, are of the same episodes."""
    tasks = WithExternal(BELOW, table(5))
    got, below = tasks.sample("val", [3, 8]), BELOW.sample("val", [3, 8])
    assert torch.equal(got.support.x, below.support.x)
    assert torch.equal(got.query.y, below.query.y)
    assert torch.equal(got.support.key, below.support.key)
    one = tasks.sample("val", [8]).external
    assert one is not None
    assert got.external is not None
    assert torch.equal(got.external.x[1:], one.x)
    assert tasks.pool("val") is BELOW.pool("val")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (table(5, size=4), {}, r"got external inputs of shape \(4,\) for tasks with inputs of shape \(6,\)"),
        (table(5), {"split": "val"}, "got unknown split 'val', expected one of train"),
        (table(5), {"examples": 21}, "got 21 external examples from 20 of 5 classes"),
        (table(5), {"examples": 0}, "got 0 external examples"),
        (table(1, examples=20), {}, "got 16 external examples from 20 of 1 classes"),
        (BELOW, {"split": "test"}, "got 10 external classes that are classes of split 'test' .'test 0', .*, ..."),
    ],
)
def test_a_source_that_does_not_suit_is_refused(source: Any, options: dict[str, Any], message: str) -> None:
    """The message says what was given. Classes of the test split would make the test easier than it says."""
    with pytest.raises(DataError, match=message):
        WithExternal(BELOW, source, **options)


def test_a_class_of_the_same_name_is_not_the_same_class() -> None:
    """Two data sets may number their classes alike; only if their examples are the same is the class seen."""
    names = [f"test {c}" for c in range(10)]
    assert WithExternal(BELOW, table(10, names=names)).spec.external_classes == tuple(names)


@pytest.mark.parametrize("which", ["of", "source"])
def test_tasks_without_a_pool_are_refused(which: str) -> None:
    """External examples are drawn from a pool of classes, and the tasks must be of such examples, too."""
    with pytest.raises(MisfitError, match=r"with-external.*without a pool"):
        WithExternal(**{"of": BELOW, "source": BELOW, which: sample_tasks.Lines()})  # type: ignore[arg-type]
