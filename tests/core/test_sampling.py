"""Episodes from labelled pools are addressable and fair; episodes that can't be made are refused with a reason."""

import json

import numpy as np
import pytest
import torch

from kshot import ClassificationTasks, Pool
from kshot.errors import DataError, MisfitError
from kshot.sampling import AHEAD, pooled, shape_of_block
from kshot.testing import sample_tasks


def numbered_pool(classes: int = 12, examples: int = 9) -> Pool:
    """Make a pool whose examples are (class, number), so that an episode's inputs show which were drawn."""
    y = np.repeat(np.arange(classes), examples)
    x = np.stack([y, np.tile(np.arange(examples), classes)], 1).astype(np.float32)
    return Pool.of(x, y, names=[f"c{c}" for c in range(classes)])


def make(**options: object) -> ClassificationTasks:
    """Make 3-way 2-shot tasks with 4 queries per class, unless ``options`` say otherwise."""
    pools = {"train": numbered_pool(), "val": numbered_pool(7), "test": numbered_pool(8)}
    return ClassificationTasks(pools, **{"way": 3, "shot": 2, "query": 4, **options})  # type: ignore[arg-type]


def test_an_episode_has_the_shape_of_its_spec():
    """Inputs are [B, N K, *input] and [B, N Q, *input], and labels are int64."""
    e = make().sample("train", [0, 5])
    assert e.support.x.shape == (2, 6, 2)
    assert e.query.x.shape == (2, 12, 2)
    assert e.support.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert e.query.y.dtype == torch.int64
    assert e.support.way == 3
    assert e.origin is not None
    assert e.origin.indices == (0, 5)


def test_labels_stand_for_one_class_in_support_and_query():
    """All examples of a label are of one class, and other labels of other classes; the inputs show the class."""
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
    """Nor is an example twice in either of them."""
    e = make().sample("train", range(50))
    for b in range(50):
        rows = [tuple(r) for r in torch.cat([e.support.x[b], e.query.x[b]]).tolist()]
        assert len(set(rows)) == len(rows) == 18


@pytest.mark.parametrize("requests", [[[i] for i in range(AHEAD + 9)], [range(i, i + 2) for i in range(0, 140, 2)]])
def test_an_episode_does_not_depend_on_earlier_requests(requests):
    """Drawing ahead has no effect: episodes sampled in order, backwards and alone are the same."""
    in_order = make()
    seen = {i: in_order.sample("train", i) for i in map(tuple, requests)}
    for indices, episode in reversed(seen.items()):
        alone = make().sample("train", list(indices))
        assert torch.equal(alone.query.x, episode.query.x)
        assert torch.equal(alone.query.y, episode.query.y)
        assert torch.equal(alone.support.key, episode.support.key)


def test_seed_and_split_and_index_all_matter():
    """Another seed, another split and another index each give another episode."""
    base = make().sample("train", [0]).query.x
    for other in (make(seed=1).sample("train", [0]), make().sample("test", [0]), make().sample("train", [1])):
        assert not torch.equal(base, other.query.x)


def test_numbers_of_numpy_are_taken_as_ints():
    """Seeds of ``np.arange(5)`` and indices of an array; an origin is written to JSON."""
    plain, other = make(seed=3).sample("train", [0, 5]), make(seed=np.int64(3)).sample("train", np.array([0, 5]))
    assert torch.equal(plain.query.x, other.query.x)
    assert json.dumps([other.origin.seed, other.origin.indices]) == "[3, [0, 5]]"


def test_changing_an_episode_changes_no_later_one():
    """An episode is a copy of rows of the pool."""
    tasks = make()
    before = tasks.sample("train", [3]).query.x.clone()
    tasks.sample("train", [3]).query.x.zero_()
    assert torch.equal(tasks.sample("train", [3]).query.x, before)


def test_unequal_classes_are_drawn_within_their_own_examples():
    """Padding of a small class is never drawn, and every example of a large one is drawn in time."""
    y = np.repeat([0, 1, 2], [5, 9, 40])
    x = np.arange(len(y), dtype=np.float32)[:, None]
    tasks = ClassificationTasks({"train": Pool.of(x, y)}, way=3, shot=2, query=3)
    e = tasks.sample("train", range(300))
    seen = torch.cat([e.support.x, e.query.x], 1).flatten().int()
    assert set(seen.tolist()) == set(range(54))
    alone = tasks.sample("train", [299])
    assert torch.equal(alone.support.x[0], e.support.x[299])


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
    """A block has one shape, and the shapes of many blocks cover the range."""
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


def test_each_split_has_its_own_shapes():
    """Training and validation must not vary alike."""
    tasks = make(way=(2, 5), shot=(1, 3))
    ways = {s: [tasks.sample(s, [i]).support.way for i in range(20)] for s in ("train", "val", "test")}
    assert len(set(map(tuple, ways.values()))) == 3


def test_episodes_are_the_same_in_meta_batches_of_any_size_and_order():
    """Whatever was drawn ahead: B = 1, 3 and 7 in order, across the end of what was drawn, and backwards."""
    expected = [make().sample("train", [i]).query.x[0] for i in range(2 * AHEAD + 10)]
    for size in (1, 3, 7):
        tasks, at = make(), 0
        while at + size <= len(expected):
            batch = tasks.sample("train", range(at, at + size)).query.x
            assert batch.shape[0] == size
            assert all(torch.equal(x, y) for x, y in zip(batch, expected[at:], strict=False))
            at += size
    for i in reversed(range(20)):
        assert torch.equal(tasks.sample("train", [i]).query.x[0], expected[i])


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        ({"way": 8}, "val", "split 'val': got way 8, expected at most 7"),
        ({"shot": 5, "query": 5}, "train", r"got shot \+ query = 5 \+ 5 = 10, expected at most 9, .* class 'c0\'"),
        ({}, "nowhere", "got unknown split 'nowhere', expected one of train, val, test"),
    ],
)
def test_episodes_that_can_not_be_made_are_refused(options, split, message):
    """The message says what was given and what is possible."""
    with pytest.raises(DataError, match=message):
        make(**options).sample(split, [0])


def test_a_view_takes_classification_tasks_with_a_pool_and_names_other_tasks() -> None:
    """The message begins with the view's name and describes the tasks that were given."""
    tasks = sample_tasks.classification()
    assert pooled(tasks, "mine") is tasks
    with pytest.raises(
        MisfitError, match=r"mine: got .*\(Lines are regression tasks without a pool of examples\), expected"
    ):
        pooled(sample_tasks.Lines(), "mine")
    with pytest.raises(MisfitError, match=r"mine: got .*\(WithMore are classification tasks without a pool"):
        pooled(sample_tasks.WithMore(tasks, unlabelled=1, external=0), "mine")


def test_the_data_of_arrays_are_identified_by_their_contents() -> None:
    """Other data under the same options are other tasks: a run must not be resumed on them, nor results paired."""
    x, y = np.arange(24.0).reshape(12, 2), np.repeat([0, 1, 2], 4)

    def fingerprint(x: np.ndarray, y: np.ndarray, split: str = "train", **options: object) -> str:
        return ClassificationTasks({split: Pool.of(x, y, **options)}, way=2, query=1).fingerprint

    first = fingerprint(x, y)
    assert first.startswith("arrays-")
    assert fingerprint(x.copy(), y.copy()) == first
    changed = x.copy()
    changed[7, 1] += 1
    others = [fingerprint(changed, y), fingerprint(x, y[::-1].copy()), fingerprint(x, y, "test")]
    others += [fingerprint(x, y, names=["a", "b", "c"]), fingerprint(x, y, semantics=np.eye(3))]
    assert len({first, *others}) == 6
    a, b = Pool.of(x, y), Pool.of(changed, y)
    pools = [{"train": a, "test": b}, {"train": b, "test": a}]
    assert len({ClassificationTasks(pair, way=2, query=1).fingerprint for pair in pools}) == 2
    named = ClassificationTasks({"train": Pool.of(x, y)}, way=2, query=1, fingerprint="mine")
    assert named.fingerprint == "mine"


def test_writing_into_an_episode_changes_nothing_that_is_sampled_later():
    """Neither its labels, nor its record of classes and examples, nor what was drawn ahead."""
    tasks, fresh = make(), make()
    tasks.sample("train", [0])
    e = tasks.sample("train", [1])  # follows the one before, so the next ones are drawn now
    for tensor in (e.support.x, e.support.y, e.query.x, e.query.y, e.support.key):
        tensor.fill_(7)
    for array in e.origin.arrays().values():
        array.fill(7)
    for i in (1, 2):
        found, expected = tasks.sample("train", [i]), fresh.sample("train", [i])
        for part in ("support", "query"):
            for name in ("x", "y"):
                assert torch.equal(getattr(getattr(found, part), name), getattr(getattr(expected, part), name))
        assert found.support.y.tolist() == [[0, 0, 1, 1, 2, 2]]  # which all tasks of this shape have in common
        assert torch.equal(found.support.key, expected.support.key)
        for name, array in expected.origin.arrays().items():
            assert np.array_equal(array, found.origin.arrays()[name])
