"""Arrays of users mean the same everywhere: they are taken as the numbers they are, or refused by name."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kshot import ClassificationTasks, Pool, Support
from kshot.arrays import as_inputs, as_labels, as_table
from kshot.errors import DataError

X = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
Y = np.array([0, 0, 1, 1, 2, 2])


class Column:
    """Represent a column of a table, such as a pandas Series: numpy can read it, and that is all that is known."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.values.astype(dtype or self.values.dtype, copy=bool(copy))

    def __len__(self) -> int:
        return len(self.values)


def frozen(x: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view of a copy."""
    view = x.copy()
    view.flags.writeable = False
    return view


INPUTS = {
    "float32": X,
    "flipped": X[:, ::-1].copy()[:, ::-1],
    "big-endian": X.astype(">f4"),
    "float64": X.astype(np.float64),
    "big-endian float64": X.astype(">f8"),
    "long double": X.astype(np.longdouble),
    "Fortran order": np.asfortranarray(X),
    "read-only": frozen(X),
    "nested lists": X.tolist(),
    "list of arrays": list(X),
    "array of Python objects": X.astype(object),
    "column of a table": Column(X),
    "masked, with nothing masked": np.ma.masked_array(X),
    "tensor": torch.from_numpy(X),
    "tensor with a graph": torch.from_numpy(X).requires_grad_() * 1,
    "parameter": torch.nn.Parameter(torch.from_numpy(X)),
    "sparse tensor": torch.from_numpy(X).to_sparse(),
    "list of tensors": list(torch.from_numpy(X).requires_grad_()),
}


@pytest.mark.parametrize("form", INPUTS)
@pytest.mark.parametrize(
    "convert",
    [
        as_inputs,
        as_table,
        lambda x: Pool.of(x, Y).x,
        lambda x: Support.of(x, Y).x[0],
        lambda x: ClassificationTasks({"train": Pool.of(X, Y)}, way=2).prepare(x),
    ],
    ids=["as_inputs", "as_table", "Pool.of", "Support.of", "prepare"],
)
def test_inputs_are_taken_in_every_form(convert: Any, form: str) -> None:
    """The result is float32 with the same numbers and without a graph, at every door."""
    inputs = convert(INPUTS[form])
    assert inputs.dtype == torch.float32
    assert not inputs.requires_grad
    assert np.array_equal(inputs.numpy(), X)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.uint32, np.int64, np.uint64, np.float16])
def test_numbers_of_every_type_keep_their_values(dtype: Any) -> None:
    """Only uint8 has another meaning: it is a picture, whose 255 is 1.0."""
    assert as_inputs(np.array([0, 1], dtype)).tolist() == [0, 1]
    assert as_inputs(np.array([0, 255], np.uint8)).tolist() == [0, 1]
    assert as_table(np.array([0, 255], np.uint8)).dtype == torch.uint8


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X + 1j * X, "complex numbers"),
        (torch.from_numpy(X) * 1j, "complex numbers"),
        (["a", "b"], r"text \('a', ...\)"),
        ([["1.5"], ["2.5"]], "text"),
        ([b"a"], "text"),
        ([[1.0], [1.0, 2.0]], "list, which is no array"),
        ([torch.zeros(2), torch.zeros(3)], r"tensors of shapes \(2,\), \(3,\)"),
        ([1.0, None], "object"),
        (object(), "object"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.ma.masked_equal([1.0, 2.0], 2.0), "1 masked values"),
        ([1.0, np.nan], "1 of 2 values that are NaN or infinite"),
        ([1.0, 1e300], "1 of 2 values that are NaN or infinite"),
        ([Decimal("1e300")], "object"),
    ],
)
@pytest.mark.parametrize("convert", [as_inputs, as_table])
def test_other_inputs_are_refused_by_name(convert: Any, x: Any, message: str) -> None:
    """A complex array would lose its imaginary part; the rest would fail with errors of torch or numpy."""
    with pytest.raises(DataError, match=rf"mine: got .*{message}.*, expected"):
        convert(x, "mine")


@pytest.mark.parametrize("copy", [False, True])
def test_inputs_share_memory_only_on_request(copy: bool) -> None:
    """By default nothing is copied that has the right form already."""
    x = X.copy()
    assert np.shares_memory(as_inputs(x, copy=copy).numpy(), x) is not copy
    assert (as_inputs(torch.from_numpy(x), copy=copy).data_ptr() == x.ctypes.data) is not copy


def test_inputs_are_never_over_read_only_memory() -> None:
    """Writing to them would end the process where the memory is a mapped file."""
    x = frozen(X)
    as_inputs(x)[:] = 7
    assert np.array_equal(x, X)


def test_a_table_is_copied_unless_its_memory_is_read_only(tmp_path: Any) -> None:
    """A read-only view of memory that can be written to is copied, as that memory may change."""
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    x = X.copy()
    view = x[:]
    view.flags.writeable = False
    for values, shared in ((x, False), (view, False), (Column(x), False), (mapped, True), (mapped[1:], True)):
        assert np.shares_memory(as_table(values).numpy(), np.asarray(values)) is shared
    assert as_table(torch.from_numpy(x)).data_ptr() != x.ctypes.data
    assert as_table(x, copy=False).data_ptr() == x.ctypes.data
    assert not np.shares_memory(as_table(x[::-1]).numpy(), x)


LABELS = {
    "int64": Y,
    "big-endian": Y.astype(">i4"),
    "uint8": Y.astype(np.uint8),
    "uint64": Y.astype(np.uint64),
    "floats": Y * 1.0,
    "long double": Y.astype(np.longdouble),
    "flipped": Y[::-1].copy()[::-1],
    "read-only": frozen(Y),
    "list": Y.tolist(),
    "Python objects": Y.astype(object),
    "column of a table": Column(Y),
    "tensor": torch.from_numpy(Y),
    "tensor of floats": torch.from_numpy(Y * 1.0),
    "list of tensors": list(torch.from_numpy(Y)),
}


@pytest.mark.parametrize("form", LABELS)
def test_labels_are_taken_in_every_form(form: str) -> None:
    """Whole numbers are class numbers, whatever their type."""
    labels = as_labels(LABELS[form])
    assert labels.dtype == torch.int64
    assert labels.tolist() == Support.of(X, LABELS[form]).y[0].tolist() == Y.tolist()
    assert Pool.of(X, LABELS[form]).table()[1].tolist() == Y.tolist()


def test_booleans_are_classes_0_and_1() -> None:
    """They are a common form of two classes, and never a mask."""
    assert as_labels(Y > 0).tolist() == [0, 0, 1, 1, 1, 1]
    assert Pool.of(X, Y > 0).counts.tolist() == [2, 4]


def test_labels_have_memory_of_their_own() -> None:
    """Later changes of the user's array do not reach them."""
    y, t = Y.copy(), torch.from_numpy(Y.copy())
    labels = as_labels(y), as_labels(t)
    y[:], t[:] = 0, 0
    assert [values.tolist() for values in labels] == [Y.tolist()] * 2


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (list("aabbcc"), r"labels that are text \('a', ...\), expected class numbers 0..N-1; number the classes"),
        (Y[:, None], r"labels of shape \(6, 1\), expected one axis, \[n\]; flatten a column"),
        (np.eye(3)[Y], r"labels of shape \(6, 3\), expected one axis"),
        (Y + 0.5, r"not whole numbers \(0.5, ...\), expected class numbers"),
        (np.where(Y > 0, np.inf, 0.0), "not whole numbers"),
        (Y + 1j, "complex"),
        (Y + 1, r"labels \{1, 2, 3\}, expected exactly 0..2"),
        (Y - 1, r"labels \{-1, 0, 1\}, expected exactly 0..2"),
        (2 * Y, r"labels \{0, 2, 4\}, expected exactly 0..2"),
        (Y[:4], r"6 examples and labels of shape \(4,\), expected one label per example"),
    ],
)
@pytest.mark.parametrize("take", [Pool.of, Support.of])
def test_other_labels_are_refused_by_name(take: Any, y: Any, message: str) -> None:
    """Nothing that is not a list of class numbers is taken for something else."""
    with pytest.raises(DataError, match=rf"{take.__qualname__}: got .*{message}"):
        take(X, y)


def test_labels_of_a_known_number_of_classes_must_have_each_of_them() -> None:
    """A class without examples has no mean."""
    with pytest.raises(DataError, match=r"got labels \{0, 1, 2\}, expected exactly 0..3"):
        as_labels(Y, way=4)
    with pytest.raises(DataError, match=r"expected exactly 0..3"):
        Support.of(X, Y, way=4)


@pytest.mark.parametrize(
    "form",
    [
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to(torch.float8_e5m2),
        lambda t: torch.quantize_per_tensor(t, 0.5, 1, torch.qint32),
        lambda t: t.to_mkldnn(),
    ],
)
@pytest.mark.filterwarnings("ignore")  # torch warns of these tensors
def test_tensors_that_torch_does_not_compute_with_are_converted(form: Any) -> None:
    """Torch can add up neither floats of 8 bits nor quantised numbers."""
    values = torch.tensor([0.0, 1.0, 1.0])
    assert as_inputs(form(values)).tolist() == values.tolist()
    assert as_table(form(values)).tolist() == values.tolist()
    assert as_labels(form(values)).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "a nested tensor"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged), "a nested tensor"),
        (lambda: torch.zeros(2, device="meta"), "a tensor on the device 'meta', which has no values"),
        (lambda: range(10**14), "range, which is no array"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_values_of_one_shape_are_refused(make: Any, given: str) -> None:
    """They have no numbers to convert, or more than the memory can have."""
    for convert in (as_inputs, as_table, as_labels):
        with pytest.raises(DataError, match=given):
            convert(make())


def test_pictures_of_pillow_have_their_channels_first():
    """NumPy reads them with channels last, and those with a palette as numbers of colours."""
    image = pytest.importorskip("PIL.Image")
    palette = image.new("RGB", (2, 3), (255, 0, 0)).quantize(2)
    inputs = as_inputs([palette, image.new("RGB", (2, 3), (255, 0, 0))])
    assert inputs.shape == (2, 3, 3, 2)
    assert torch.equal(inputs[0], inputs[1])
    assert inputs[0, :, 0, 0].tolist() == [1, 0, 0]
    assert as_table(image.new("L", (2, 3), 7)).tolist() == [[[7, 7]] * 3]
    with pytest.raises(DataError, match=r"^x: got pictures of shapes \(1, 3, 2\), \(3, 3, 2\) .*, expected one shape"):
        as_inputs([image.new("L", (2, 3)), image.new("RGB", (2, 3))], "x")
