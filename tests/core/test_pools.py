"""Pools store labelled examples once, and do not change with the arrays they were made from."""

import numpy as np
import pytest
import torch

from kshot import Pool
from kshot.errors import DataError


def test_images_become_fractions():
    """A byte is divided by 255 exactly, so 255 becomes 1.0."""
    x = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1).repeat(4, axis=2)
    pool = Pool.of(x, np.arange(256) % 2)
    assert pool.input_range == (0.0, 1.0)
    inputs = pool.gather(np.arange(256))
    assert torch.equal(inputs[:, 0, 0, 0], torch.arange(256) / 255)


def test_rows_list_the_examples_of_each_class_in_order():
    """By hand, for classes of two, three and one examples; missing rows are -1."""
    pool = Pool.of(np.zeros((6, 1)), [1, 0, 1, 2, 0, 1])
    assert pool.rows.tolist() == [[1, 4, -1], [0, 2, 5], [3, -1, -1]]
    assert pool.counts.tolist() == [2, 3, 1]
    assert [part.tolist() for part in pool.table()] == [[1, 4, 0, 2, 5, 3], [0, 0, 1, 1, 1, 2]]


def test_malformed_pools_are_refused():
    """Other lengths, gaps in the class numbers, NaN."""
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(DataError, match="got 4 examples and labels of shape"):
        Pool.of(x, np.zeros(3, int))
    with pytest.raises(DataError, match=r"expected exactly 0..1"):
        Pool.of(x, np.array([0, 0, 2, 2]))
    x[2, 1] = np.nan
    with pytest.raises(DataError, match=r"got 1 of 8 values that are NaN or infinite, the first at \(2, 1\)"):
        Pool.of(x, np.array([0, 0, 1, 1]))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float64])
def test_a_pool_does_not_change_with_the_array_it_was_made_from(dtype):
    """An episode is a pure function of seed, split and number, also after the user has used the buffer again."""
    x, semantics = np.ones((4, 2), dtype), np.ones((2, 3), np.float32)
    pool = Pool.of(x, [0, 0, 1, 1], semantics=semantics)
    x[:], semantics[:] = 7, 7
    assert float(pool.x.max()) == float(pool.semantics.max()) == 1


def test_a_pool_keeps_no_graph():
    """Embeddings that were made with gradients would fail at the second backward pass through their graph."""
    embeddings = torch.nn.Linear(2, 3)(torch.ones(4, 2))
    pool = Pool.of(embeddings, [0, 0, 1, 1], semantics=torch.nn.Parameter(torch.ones(2, 1)))
    assert not pool.x.requires_grad
    assert not pool.semantics.requires_grad


def test_large_tables_can_be_used_without_a_copy(tmp_path):
    """A read-only memory map is shared, and with ``copy=False`` anything that needs no conversion is."""
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(Pool.of(mapped, [0, 0, 1, 1]).x.numpy(), mapped)
    x = torch.zeros(4, 2)
    assert Pool.of(x, [0, 0, 1, 1], copy=False).x.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_with_their_channels_last_are_warned_of(channels):
    """A network would take their rows as channels, and stay at chance."""
    x = np.zeros((4, 8, 8, channels), np.uint8)
    with pytest.warns(
        UserWarning, match=r"looks like pictures \[num, height, width, channels\].*transpose\(0, 3, 1, 2\)"
    ):
        Pool.of(x, [0, 0, 1, 1])
    Pool.of(x.transpose(0, 3, 1, 2), [0, 0, 1, 1])
    Pool.of(np.zeros((4, 3, 8, 3)), [0, 0, 1, 1])


def test_one_hot_labels_are_refused_with_the_way_out():
    """labels.argmax(1) are the class numbers."""
    with pytest.raises(DataError, match=r"got labels of shape \(4, 2\).*one-hot, of which labels\.argmax\(1\)"):
        Pool.of(np.zeros((4, 1)), np.eye(2)[[0, 1, 0, 1]])


def test_names_and_vectors_are_one_for_each_class():
    """A class of a list of names may have no example; the names would be those of other classes."""
    with pytest.raises(DataError, match="names: got 3, expected one for each of the 2 classes"):
        Pool.of(np.zeros((4, 1)), [0, 0, 1, 1], names=["a", "b", "c"])
    with pytest.raises(DataError, match="semantics: got 1, expected one for each of the 2 classes"):
        Pool.of(np.zeros((4, 1)), [0, 0, 1, 1], semantics=np.zeros((1, 3)))


@pytest.mark.parametrize("semantics", [3.0, [1.0, 2.0], [[[1.0]], [[2.0]]]])
def test_semantics_are_a_vector_for_each_class(semantics):
    """Two numbers are no two vectors."""
    with pytest.raises(
        DataError, match=r"^Pool\.of: semantics: got shape .*, expected a vector for each of the 2 classes"
    ):
        Pool.of([[0.0], [1.0]], [0, 1], semantics=semantics)


def test_a_digest_sees_everything_that_is_in_a_pool():
    """Examples, their classes, names, vectors and range; the same contents have the same digest."""
    x, y = np.arange(8.0, dtype=np.float32).reshape(4, 2), np.array([0, 0, 1, 1])
    changed = x.copy()
    changed[3, 1] += 1
    pools = [
        Pool.of(x, y),
        Pool.of(changed, y),
        Pool.of(x, [0, 1, 0, 1]),  # classes of the same sizes, with other examples
        Pool.of(x, [0, 1, 1, 1]),
        Pool.of(x, y, names=["a", "b"]),
        Pool.of(x, y, names=["b", "a"]),
        Pool.of(x, y, semantics=np.eye(2)),
        Pool.of(x, y, input_range=(0, 10)),
    ]
    assert len({pool.digest() for pool in pools}) == len(pools)
    assert Pool.of(x.copy(), y.copy()).digest() == pools[0].digest()


def test_names_are_text_in_the_order_of_the_classes():
    """Other sequences are taken as lists of text; what has no such order is refused."""
    for names in (np.array(["a", "b"]), ["a", "b"]):
        pool = Pool.of([[0.0], [1.0]], [0, 1], names=names)
        assert pool.names == ("a", "b")
        assert all(type(name) is str for name in pool.names)
    assert Pool.of([[0.0], [1.0]], [0, 1], names=None).names == ()
    assert Pool.of([[0.0], [1.0]], [0, 1], names=[10, 20]).names == ("10", "20")
    for wrong in ("ab", {0: "a", 1: "b"}, 2, iter(["a", "b"])):
        with pytest.raises(DataError, match=r"^Pool\.of: names: got \w+, expected a name for each class"):
            Pool.of([[0.0], [1.0]], [0, 1], names=wrong)


@pytest.mark.parametrize("wrong", [(1, 0), "01", 1, (float("nan"), 1), (0, 1, 2), ("a", "b")])
def test_a_range_is_two_numbers(wrong):
    """Inputs are compared with it for years to come."""
    with pytest.raises(DataError, match=r"^Pool\.of: got input_range .*, expected the least and the greatest value"):
        Pool.of([[0.0], [1.0]], [0, 1], input_range=wrong)


def test_examples_lie_in_their_range():
    """Pictures of 0 to 255 that are said to be in [0, 1] would be refused only when a learner uses them."""
    assert Pool.of([[0.0], [1.0]], [0, 1], input_range=np.array([0, 1])).input_range == (0.0, 1.0)
    with pytest.raises(
        DataError, match=r"^Pool\.of: got inputs in \[0, 255\], expected them in input_range \[0.0, 1.0"
    ):
        Pool.of([[0.0], [255.0]], [0, 1], input_range=(0, 1))
    bytes_ = np.array([[0], [255]], np.uint8)
    with pytest.raises(DataError, match=r"got input_range \[0.0, 255.0\] of examples as uint8, expected it within"):
        Pool.of(bytes_, [0, 1], input_range=(0, 255))
    with pytest.raises(DataError, match=r"^Pool\.of: got inputs in \[0, 1\], expected them in input_range \[0.0, 0.5"):
        Pool.of(bytes_, [0, 1], input_range=(0, 0.5))
    assert Pool.of(bytes_ // 2, [0, 1], input_range=(0, 0.5)).input_range == (0.0, 0.5)


def test_an_example_has_a_number():
    """Without any, a learner is at chance, and nothing says why."""
    with pytest.raises(DataError, match=r"^Pool\.of: x: got shape \(2, 0\), expected at least one number"):
        Pool.of(np.zeros((2, 0)), [0, 1])
