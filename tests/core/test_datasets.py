"""Data sets in the style of torch become pools; what is no such data set is refused before it is read."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kshot import ClassificationTasks, Pool, datasets
from kshot.datasets import read_pairs
from kshot.errors import DataError


class Pictures:
    """Represent a data set of ten pictures of two classes, which never raises IndexError, as torchvision's don't."""

    classes = ("ant", "bee", "cat")

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return np.full((3, 2, 2), i, np.uint8), 2 * (i % 2)


def test_a_data_set_becomes_a_pool() -> None:
    """Bytes stay bytes; classes are numbered in the order of their labels, and named by the data set."""
    pool = Pool.of_dataset(Pictures())
    assert pool.names == ("ant", "cat")
    assert pool.rows.tolist() == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert pool.x.dtype == torch.uint8
    assert pool.x[:, 0, 0, 0].tolist() == list(range(10))
    assert pool.input_range == (0.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "y", "names"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        ([5, np.int64(3), torch.tensor(5)], [1, 0, 1], ("3", "5")),
        ([0, 1, torch.tensor([0])], [0, 1, 0], ()),
        ([True, False, 1.0], [1, 0, 1], ()),
    ],
)
def test_labels_are_numbers_or_text(labels: list[Any], y: list[int], names: tuple[str, ...]) -> None:
    """They need not be 0..C-1."""
    pairs = read_pairs([(torch.zeros(1), label) for label in labels])
    assert (pairs.y.tolist(), pairs.names) == (y, names)


def test_images_of_pillow_have_their_channels_first() -> None:
    """Without a transform, torchvision's data sets return them."""
    image = pytest.importorskip("PIL.Image")
    for mode, shape in (("L", (1, 3, 2)), ("1", (1, 3, 2)), ("RGB", (3, 3, 2)), ("P", (3, 3, 2))):
        pairs = read_pairs([(image.new(mode, (2, 3)), 0)])
        assert (pairs.x.shape[1:], pairs.x.dtype) == (shape, torch.uint8)


def test_images_of_pillow_of_any_mode_keep_their_values() -> None:
    """Pillow's own conversion clips 16 bits at 255 and floats to 0, and shows what lies under transparent pixels."""
    image = pytest.importorskip("PIL.Image")
    values = {
        ("I;16", 128 * 257): 128,
        ("F", 0.2): 51,
        ("LA", (9, 0)): 255,
        ("RGBA", (9, 9, 9, 0)): 255,
    }
    for (mode, colour), expected in values.items():
        pairs = read_pairs([(image.new(mode, (2, 3), colour), 0)])
        assert pairs.x.unique().tolist() == [expected], mode
    with pytest.raises(DataError, match=r"^read_pairs: example 0: picture 0: got values from 9 to 9, expected floats"):
        read_pairs([(image.new("F", (2, 3), 9.0), 0)])


def test_rows_that_are_mappings_are_said_how_to_convert() -> None:
    """Data sets of some libraries return a mapping for each example."""
    rows = [{"image": torch.zeros(2), "label": 0}]
    with pytest.raises(DataError, match=r"got dict, .*; make pairs .* \[\(row\['image'\], row\['label'\]\) for row in"):
        read_pairs(rows)


def test_the_largest_table_is_a_number_of_bytes() -> None:
    """It is compared with one."""
    with pytest.raises(DataError, match=r"^read_pairs: got largest='8GB', expected a number of bytes"):
        read_pairs([(torch.zeros(2), 0)], largest="8GB")  # type: ignore[arg-type]


def broken(error: Exception) -> Any:
    """Return a data set whose second example raises."""

    class Broken(Pictures):
        def __getitem__(self, i: int) -> tuple[Any, Any]:
            if i:
                raise error
            return super().__getitem__(i)

    return Broken()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (itertools.count(), r"got count, expected a data set with len\(dataset\)"),
        ((pair for pair in [(0, 0)]), "got generator, expected a data set"),
        ({0: (0, 0)}, "got dict, expected a data set"),
        ([], "got a data set without examples"),
        ([torch.zeros(2)], "example 0: got Tensor, expected a pair"),
        ([(torch.zeros(2), np.eye(3)[0])], r"got a label of shape \(3,\).*one-hot"),
        ([(torch.zeros(2), 0.5)], "got the label 0.5, expected a class number or name"),
        ([(torch.zeros(2), "a"), (torch.zeros(2), 1)], "labels that are numbers and labels that are text"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], r"example 1: got torch.float32 of shape \(3,\), expected"),
        ([(torch.full((2,), torch.nan), 0)], "example 0: got 2 of 2 values that are NaN"),
        (broken(OSError("cut off")), "example 1: got OSError: cut off"),
    ],
)
def test_other_data_sets_are_refused_by_name(dataset: Any, message: str) -> None:
    """The message names the example."""
    with pytest.raises(DataError, match=message):
        read_pairs(dataset)


def test_a_data_set_that_needs_too_much_memory_is_refused_after_one_example() -> None:
    """Else the process would end in the middle of the reading."""
    read: list[int] = []

    class Large(Pictures):
        def __getitem__(self, i: int) -> tuple[Any, Any]:
            read.append(i)
            return super().__getitem__(i)

    with pytest.raises(DataError, match="which need 120 bytes, expected at most 100"):
        Pool.of_dataset(Large(), largest=100)
    assert read == [0]


def test_a_long_reading_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error may also be gone."""
    monkeypatch.setattr(datasets, "_SECONDS", -1.0)
    read_pairs(Pictures(), "me")
    assert "me: read 10 of 10 examples" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", None)
    read_pairs(Pictures())


class Endless:
    """Represent a data set that returns pairs for ever."""

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return torch.zeros(1000), 0


class Iterable:
    """Represent what has a length and can be iterated, such as a loader."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        yield from ()


@pytest.mark.parametrize("given", [Pictures(), Endless(), Iterable(), itertools.count(), iter([1, 2])])
def test_what_is_no_array_is_refused_without_being_read(given: Any) -> None:
    """numpy would ask it for its items until the memory is gone."""
    with pytest.raises(DataError, match=r"Pool\.of: x: got \w+, which is no array or list.*Pool\.of_dataset"):
        Pool.of(given, [0, 1])
    with pytest.raises(DataError, match="which is no array or list"):
        Pool.of(np.zeros((2, 1)), given)


def test_tasks_need_pools() -> None:
    """The message says how to make one."""
    with pytest.raises(DataError, match=r"got Pictures for split 'train', expected a pool.*of_dataset"):
        ClassificationTasks({"train": Pictures()})


@pytest.mark.parametrize("other", [np.zeros((3, 2, 2), np.float32), np.zeros((3, 2, 3), np.uint8)])
def test_examples_of_another_type_or_shape_are_refused(other: Any) -> None:
    """In one table of bytes, fractions would become 0."""
    pairs = [(np.zeros((3, 2, 2), np.uint8), 0), (other, 1)]
    for mixed, first, second in ((pairs, pairs[0][0], other), (pairs[::-1], other, pairs[0][0])):
        with pytest.raises(DataError, match="example 1: got torch") as caught:
            read_pairs(mixed)
        assert f"{second.dtype} of shape {second.shape}" in str(caught.value)
        assert f"expected torch.{first.dtype} of shape {first.shape}" in str(caught.value)
