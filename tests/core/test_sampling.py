"""Episodes from labelled pools: addressable, fair, and refused with a reason where they can't be made."""

import numpy as np
import pytest
import torch

from kshot import ClassificationTasks, Pool
from kshot.errors import DataError, MisfitError
from kshot.sampling import AHEAD, check_episode, pooled, shape_of_block
from kshot.testing import sample_tasks


def numbered_pool(classes: int = 12, examples: int = 9) -> Pool:
    """Every example is (class, number): an episode's inputs say what was drawn."""
    y = np.repeat(np.arange(classes), examples)
    x = np.stack([y, np.tile(np.arange(examples), classes)], 1).astype(np.float32)
    return Pool.of(x, y, names=[f"c{c}" for c in range(classes)])


def make(**options: object) -> ClassificationTasks:
    pools = {"train": numbered_pool(), "val": numbered_pool(7), "test": numbered_pool(8)}
    return ClassificationTasks(pools, **{"way": 3, "shot": 2, "query": 4, **options})  # type: ignore[arg-type]


def test_an_episode_has_the_shape_of_its_spec():
    """B, N K and N Q, and labels of the right types."""
    e = make().sample("train", [0, 5])
    assert e.support.x.shape == (2, 6, 2)
    assert e.query.x.shape == (2, 12, 2)
    assert e.support.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert e.query.y.dtype == torch.int64
    assert e.support.way == 3
    assert e.origin is not None
    assert e.origin.indices == (0, 5)


def test_labels_stand_for_one_class_in_support_and_query():
    """The class written in the inputs is the same for all examples of a label, and another for other labels."""
    e = make().sample("train", range(20))
    for b in range(20):
        of_label = {}
        for x, y in ((e.support.x[b], e.support.y[b]), (e.query.x[b], e.query.y[b])):
            for row, label in zip(x.tolist(), y.tolist(), strict=True):
                of_label.setdefault(label, set()).add(row[0])
        assert all(len(classes) == 1 for classes in of_label.values())
        assert len(set.union(*of_label.values())) == 3
        assert e.origin is not None
        assert e.origin.class_names[b] == tuple(f"c{int(next(iter(of_label[n])))}" for n in range(3))


def test_support_and_query_share_no_example():
    """Nor does either hold an example twice."""
    e = make().sample("train", range(50))
    for b in range(50):
        rows = [tuple(r) for r in torch.cat([e.support.x[b], e.query.x[b]]).tolist()]
        assert len(set(rows)) == len(rows) == 18


@pytest.mark.parametrize("asked", [[[i] for i in range(AHEAD + 9)], [range(i, i + 2) for i in range(0, 140, 2)]])
def test_an_episode_does_not_depend_on_what_was_asked_before(asked):
    """Drawing ahead is invisible: in order, backwards and alone are the same episodes."""
    in_order = make()
    seen = {i: in_order.sample("train", i) for i in map(tuple, asked)}
    for indices, episode in reversed(seen.items()):
        alone = make().sample("train", list(indices))
        assert torch.equal(alone.query.x, episode.query.x)
        assert torch.equal(alone.query.y, episode.query.y)
        assert torch.equal(alone.support.key, episode.support.key)


def test_seed_and_split_and_index_all_matter():
    """Three ways to other episodes."""
    base = make().sample("train", [0]).query.x
    for other in (make(seed=1).sample("train", [0]), make().sample("test", [0]), make().sample("train", [1])):
        assert not torch.equal(base, other.query.x)


def test_changing_an_episode_changes_no_later_one():
    """The pool is not handed out."""
    tasks = make()
    before = tasks.sample("train", [3]).query.x.clone()
    tasks.sample("train", [3]).query.x.zero_()
    assert torch.equal(tasks.sample("train", [3]).query.x, before)


def test_unequal_classes_are_drawn_within_their_own_examples():
    """A small class lends no padding, a large one lends all its examples in time."""
    y = np.repeat([0, 1, 2], [5, 9, 40])
    x = np.arange(len(y), dtype=np.float32)[:, None]
    tasks = ClassificationTasks({"train": Pool.of(x, y)}, way=3, shot=2, query=3)
    e = tasks.sample("train", range(300))
    seen = torch.cat([e.support.x, e.query.x], 1).flatten().int()
    assert set(seen.tolist()) == set(range(54))
    alone = tasks.sample("train", [299])
    assert torch.equal(alone.support.x[0], e.support.x[299])


def test_images_become_fractions():
    """uint8 255 is 1.0, exactly divided."""
    x = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1).repeat(4, axis=2)
    pool = Pool.of(x, np.arange(256) % 2)
    assert pool.input_range == (0.0, 1.0)
    got = pool.gather(np.arange(256))
    assert torch.equal(got[:, 0, 0, 0], torch.arange(256) / 255)


def test_semantics_travel_with_their_class():
    """Row c of an episode's semantics describes the class of label c."""
    pool = numbered_pool()
    vectors = np.stack([np.arange(12), np.arange(12) ** 2], 1).astype(np.float32)
    pool = Pool.of(pool.x, np.repeat(np.arange(12), 9), semantics=vectors)
    tasks = ClassificationTasks({"train": pool}, way=4, shot=1, query=1)
    e = tasks.sample("train", range(10))
    assert tasks.spec.semantics_shape == (2,)
    assert torch.equal(e.support.semantics[..., 0], e.support.x[..., 0])


def test_varying_shapes_are_a_function_of_the_block():
    """Within a block one shape, between blocks all of the range."""
    tasks = make(way=(2, 5), shot=(1, 3), block=4)
    shapes = set()
    for block in range(60):
        e = tasks.sample("train", range(4 * block, 4 * block + 4))
        alone = tasks.sample("train", [4 * block + 2])
        assert alone.support.way == e.support.way
        assert torch.equal(alone.query.x[0], e.query.x[2])
        shapes.add((e.support.way, e.support.x.shape[1] // e.support.way))
    assert {way for way, _ in shapes} == {2, 3, 4, 5}
    assert {shot for _, shot in shapes} == {1, 2, 3}
    with pytest.raises(DataError, match="2 blocks of 4 episodes"):
        shape_of_block(tasks.spec, 0, "train", [3, 4])


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        ({"way": 8}, "val", "split 'val' has 7 classes, but way is 8"),
        ({"shot": 5, "query": 5}, "train", r"class 'c0' has 9 examples, but shot \+ query is 5 \+ 5 = 10"),
        ({}, "nowhere", "unknown split 'nowhere'; these tasks have train, val, test"),
    ],
)
def test_episodes_that_can_not_be_made_are_refused(options, split, message):
    """Each says what came and what there is."""
    with pytest.raises(DataError, match=message):
        make(**options).sample(split, [0])


def test_malformed_pools_are_refused():
    """Lengths, gaps in the numbers, NaN."""
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(DataError, match="4 examples and labels of shape"):
        Pool.of(x, np.zeros(3, int))
    with pytest.raises(DataError, match=r"expected exactly 0..C-1"):
        Pool.of(x, np.array([0, 0, 2, 2]))
    x[2, 1] = np.nan
    with pytest.raises(DataError, match=r"1 of 8 values are NaN or infinite, the first at \(2, 1\)"):
        Pool.of(x, np.array([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: e.query.x.__setitem__((0, 1, 0), torch.inf), "query.x: 1 of 24 values are NaN or infinite"),
        (lambda e: e.query.y.__setitem__((0, 0), 7), r"query.y has labels \d..7, expected 0..2"),
        (lambda e: e.support.y.copy_(torch.zeros(6)), "support of task 0 has no example of label 1"),
    ],
)
def test_the_door_refuses_malformed_episodes(spoil, message):
    """Before any compute, with the place."""
    tasks = make()
    e = tasks.sample("train", [0])
    object.__setattr__(e.support, "y", e.support.y.clone())
    spoil(e)
    with pytest.raises(DataError, match=message):
        check_episode(e, tasks.spec, "these tasks")


def test_a_view_takes_classification_tasks_with_a_pool_and_says_what_else_came() -> None:
    """Under the view's own name."""
    tasks = sample_tasks.classification()
    assert pooled(tasks, "mine") is tasks
    with pytest.raises(MisfitError, match="mine: Lines are regression tasks without a pool of examples; exp"):
        pooled(sample_tasks.Lines(), "mine")
    with pytest.raises(MisfitError, match="mine: WithMore are classification tasks without a pool"):
        pooled(sample_tasks.WithMore(tasks, unlabelled=1, external=0), "mine")
