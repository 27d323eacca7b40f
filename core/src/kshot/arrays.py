"""Turn what users pass in (arrays, tensors, lists, columns of a table) into inputs and labels, or refuse it by name.

Every place that accepts arrays from a user calls these functions, so that the same input means the same everywhere.
They accept anything that ``numpy.asarray`` reads as real numbers, whatever its byte order, strides and precision,
tensors on any device, and Pillow's images, which become uint8 [channels, height, width]. They raise ``DataError`` for
all else: text, complex numbers, ragged lists, masked values, NaN.
All results are detached from the autograd graphs of the tensors that were passed in.

Letters: n examples, N classes.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kshot.errors import DataError

RENUMBER = "number the classes first, e.g. numpy.unique(labels, return_inverse=True)[1]"
"""How to make class numbers of labels of any type."""


def as_inputs(x: ArrayLike | Tensor, who: str = "inputs", *, copy: bool = False) -> Tensor:
    """Return array-like ``x`` as finite float32 inputs of the same shape; uint8 (images) is divided by 255.

    Args:
        x: real numbers of any type and byte order; a tensor stays on its device.
        who: what the numbers are, for messages.
        copy: whether the result must be a copy. If False, a float32 array or tensor that can be written to is not
            copied, and the result changes with it.

    Raises:
        DataError: ``x`` is not an array of real numbers, or a number is NaN or infinite in float32.

    Example:
        >>> as_inputs([[0, 1], [2, 3]])
        tensor([[0., 1.],
                [2., 3.]])
        >>> as_inputs(np.array([0, 255], np.uint8))
        tensor([0., 1.])
    """
    values = _real_numbers(x, who)
    tensor = values if isinstance(values, Tensor) else _as_float_tensor(values)
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        copy = True  # writing to a tensor over read-only memory ends the process
    inputs = tensor.to(torch.float32)
    inputs = inputs / 255 if tensor.dtype == torch.uint8 else inputs
    check_finite(inputs, who)
    return inputs.clone() if copy and _shares_memory(inputs, x) else inputs


def as_table(x: ArrayLike | Tensor, who: str = "examples", *, copy: bool = True) -> Tensor:
    """Return array-like ``x`` [n, *input] as a table on the CPU that is only read: uint8, or finite float32.

    Bytes stay bytes, so a table of images takes a quarter of the memory of its inputs.

    Args:
        x: real numbers of any type and byte order.
        who: what the numbers are, for messages.
        copy: whether later changes of ``x`` must not reach the table. If True, uint8 and float32 values are copied,
            but not those of a read-only array over read-only memory, such as ``numpy.load(file, mmap_mode="r")``. If
            False, they are never copied, and ``x`` must not be changed any more. Other types are converted once and
            not copied again.

    Raises:
        DataError: ``x`` is not an array of real numbers with an axis of examples, or a number is NaN or infinite.

    Example:
        >>> image = np.zeros((1, 2, 2), np.uint8)
        >>> table = as_table(image)
        >>> image[:] = 255
        >>> table.sum()
        tensor(0)
    """
    values = _real_numbers(x, who)
    if values.ndim == 0:
        raise DataError(f"{who}: got a single number, expected examples along a first axis, [n, *input]")
    constant = isinstance(values, np.ndarray) and _is_read_only(values)
    tensor = (values if isinstance(values, Tensor) else _as_float_tensor(values)).cpu()
    if tensor.dtype != torch.uint8:
        tensor = tensor.to(torch.float32)
        check_finite(tensor, who)
    return tensor.clone() if copy and not constant and _shares_memory(tensor, x) else tensor


def as_labels(
    y: ArrayLike | Tensor, who: str = "labels", *, way: int | None = None, examples: int | None = None
) -> Tensor:
    """Return class numbers ``y`` [n] as int64 in new memory, after checking that they are exactly 0..N-1.

    Whole numbers of any type are accepted, and booleans as 0 and 1.

    Args:
        y: a class number per example.
        who: whose labels they are, for messages.
        way: N, if it is known; else the number of different labels.
        examples: n, if it is known.

    Raises:
        DataError: ``y`` has more than one axis or another length, is text or has fractions, or a class number is
            missing, negative or too large.

    Example:
        >>> as_labels([1.0, 0.0, 1.0])
        tensor([1, 0, 1])
        >>> as_labels(["cat", "dog"], "my labels")
        Traceback (most recent call last):
        kshot.errors.DataError: my labels: got labels that are text ('cat', ...), expected class numbers 0..N-1; \
number the classes first, e.g. numpy.unique(labels, return_inverse=True)[1]
    """
    values = _real_numbers(y, who, of="labels", expected=f"class numbers 0..N-1; {RENUMBER}")
    shape = tuple(values.shape)
    if values.ndim != 1:
        advice = "flatten a column, e.g. numpy.ravel(labels)" if shape[1:] == (1,) else "use one class number each"
        if len(shape) == 2 and shape[1] > 1 and _is_one_hot(values):
            advice = "these are one-hot, of which labels.argmax(1) are the class numbers"
        raise DataError(f"{who}: got labels of shape {shape}, expected one axis, [n]; {advice}")
    if examples is not None and shape != (examples,):
        raise DataError(f"{who}: got {examples} examples and labels of shape {shape}, expected one label per example")
    if isinstance(values, np.ndarray):
        # torch has no type for some of numpy's (float128, uint64); these two hold every class number exactly
        values = torch.from_numpy(values.astype(np.float64 if values.dtype.kind == "f" else np.int64))
    if values.is_floating_point():
        fractions = values[~(values.isfinite() & (values == values.floor()))]
        if len(fractions):
            raise DataError(
                f"{who}: got labels that are not whole numbers ({fractions[0].item():.4g}, ...), expected class "
                f"numbers 0..N-1; {RENUMBER}"
            )
    labels = values.to(torch.int64, copy=True)
    check_labels(labels, who, way)
    return labels


def check_finite(x: Tensor, who: str) -> None:
    """Raise DataError if an element of ``x`` is NaN or infinite; say how many are, and where the first is.

    Example:
        >>> check_finite(torch.tensor([1.0, 2.0]), "my inputs")
    """
    # A sum is one pass without a mask of the size of x; it may also overflow, so only then look at each element.
    if x.is_floating_point() and not bool(torch.isfinite(x.sum())):
        bad = (~torch.isfinite(x)).nonzero()
        if len(bad):
            place = tuple(bad[0].tolist())
            raise DataError(
                f"{who}: got {len(bad)} of {x.numel()} values that are NaN or infinite, the first at {place} of shape "
                f"{tuple(x.shape)}, expected finite numbers; fix or drop these examples"
            )


def check_labels(y: Tensor, who: str, way: int | None = None) -> int:
    """Return N, the number of classes, of labels ``y`` that are exactly 0..N-1, each present.

    Raises:
        DataError: a label is missing, negative or too large.

    Example:
        >>> check_labels(torch.tensor([0, 2, 1, 1]), "my labels")
        3
    """
    present = torch.unique(y).tolist()
    expected = list(range(way if way is not None else len(present)))
    if present != expected or not expected:
        shown = ", ".join(map(str, present[:12])) + (", ..." if len(present) > 12 else "")
        raise DataError(
            f"{who}: got labels {{{shown}}}, expected exactly 0..{max(len(expected) - 1, 0)}, each at least once; "
            f"{RENUMBER}"
        )
    return len(expected)


def _is_one_hot(values: Tensor | NDArray[Any]) -> bool:
    """Return whether each row has a single 1 and is 0 elsewhere."""
    rows = values.cpu().numpy() if isinstance(values, Tensor) else values
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all())


def _real_numbers(
    x: Any, who: str, *, of: str = "values", expected: str = "real numbers of one shape"
) -> Tensor | NDArray[Any]:
    """Return ``x`` as a strided tensor without a graph, or as an array of booleans, integers or floats."""
    if isinstance(x, list | tuple) and x and all(isinstance(t, Tensor) for t in x):
        if len({t.shape for t in x}) > 1:
            shapes = ", ".join(str(tuple(t.shape)) for t in x[:3])
            raise DataError(f"{who}: got tensors of shapes {shapes}, ..., expected {expected}")
        x = torch.stack([t.detach() for t in x])  # numpy can't read tensors that have a graph
    if isinstance(x, Tensor):
        return _strided(x, who, expected)
    if is_picture(x) or (isinstance(x, list | tuple) and x and all(map(is_picture, x))):
        return _pixels_of(x, who)
    if not _is_array_like(x):
        raise DataError(
            f"{who}: got {type(x).__name__}, which is no array or list, expected {expected}; collect what an "
            "iterator yields in a list; make a pool of a data set of pairs (example, label) by kshot.Pool.of_dataset"
        )
    if np.ma.is_masked(x):
        raise DataError(f"{who}: got {int(np.ma.getmaskarray(x).sum())} masked {of}, expected {expected}")
    try:
        array = np.asarray(x)
        if array.dtype.kind == "O":  # numbers, or arrays of one shape, that were stored as Python objects
            array = np.asarray(array.tolist())
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:  # the last for a range of too many numbers
        reason = str(error) or type(error).__name__
        raise DataError(f"{who}: got {type(x).__name__}, which is no array ({reason}), expected {expected}") from error
    if array.dtype.kind not in "biuf":
        sort = {"c": "complex numbers", "U": "text", "S": "text", "T": "text"}.get(array.dtype.kind, str(array.dtype))
        first = f" ({array.flat[0]!s:.40}, ...)" if sort != "text" and array.size else ""
        first = f" ({str(array.flat[0])!r:.40}, ...)" if sort == "text" and array.size else first
        raise DataError(f"{who}: got {of} that are {sort}{first}, expected {expected}")
    if isinstance(array, np.ma.MaskedArray):  # nothing is masked
        array = array.data
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def is_picture(x: Any) -> bool:
    """Return whether ``x`` is an image of Pillow, which need not be installed.

    Example:
        >>> is_picture(np.zeros((2, 2)))
        False
    """
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(x).__mro__)


def _pixels_of(x: Any, who: str) -> NDArray[np.uint8]:
    """Return the pixels of one image of Pillow [channels, height, width], or of several of one size [n, ...]."""
    from kshot._pixels import channels_first

    if is_picture(x):
        return channels_first(x, who)
    pictures = [channels_first(picture, f"{who}: picture {i}") for i, picture in enumerate(x)]
    if len(shapes := {picture.shape for picture in pictures}) > 1:
        shown = ", ".join(str(shape) for shape in sorted(shapes)[:3])
        raise DataError(
            f"{who}: got pictures of shapes {shown} [channels, height, width], expected one shape; resize or crop "
            "them, and convert all to one mode"
        )
    return np.stack(pictures)


def _strided(x: Tensor, who: str, expected: str) -> Tensor:
    """Return a tensor of real numbers in any layout as a strided one without a graph.

    Raises:
        DataError: it has complex numbers or no values, is nested, or torch can't convert it.
    """
    if x.is_complex():
        raise DataError(f"{who}: got complex numbers, expected {expected}")
    if x.is_nested or x.is_meta:
        sort = "a nested tensor" if x.is_nested else "a tensor on the device 'meta', which has no values"
        raise DataError(f"{who}: got {sort}, expected {expected}")
    x = x.detach()
    try:
        # torch computes with neither quantised numbers nor floats of 8 bits; both are exact in float32.
        if x.is_quantized:
            return x.dequantize()
        dense = x.to_dense().resolve_neg()
        return dense.float() if dense.is_floating_point() and dense.element_size() == 1 else dense
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{who}: got a tensor of {x.dtype} and {x.layout}, expected {expected} ({reason})") from error


def _is_array_like(x: Any) -> bool:
    """Return whether numpy may be asked to read ``x``: it would ask any other object with ``[]`` for its items.

    Data sets of torch return pairs for ever or by decoding files, so reading one would end when the memory does.
    """
    if isinstance(x, list | tuple | range | str | bytes | numbers.Number | np.generic | np.ndarray):
        return True
    if any(hasattr(x, name) for name in ("__array__", "__array_interface__", "__array_struct__")):
        return True
    try:
        memoryview(x)
    except TypeError:
        # A sequence with a length, such as a deque; a data set is not registered as one.
        return isinstance(x, Sequence)
    return True


def _as_float_tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a uint8 or float32 tensor, over the array's own memory if its form allows it."""
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused later
            array = array.astype(np.float32, copy=False)
    if any(stride < 0 for stride in array.strides):  # flipped: torch has no negative strides
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # the callers copy or only read it
        return torch.from_numpy(array)


def _shares_memory(tensor: Tensor, x: Any) -> bool:
    """Return whether a change of ``x`` may reach ``tensor``, a dense tensor that was made of it."""
    if isinstance(x, Tensor):
        return x.layout == torch.strided and tensor.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    if isinstance(x, list | tuple):
        return False
    # A table, such as one of pandas: reading it again gives the table's memory, or a copy in other memory.
    return tensor.device.type == "cpu" and np.may_share_memory(tensor.numpy(), np.asarray(x))


def _is_read_only(array: NDArray[Any]) -> bool:
    """Return whether an array can't be changed: it, and every array or buffer of which it is a view, is read-only."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    if base is None:
        return True
    try:
        return memoryview(base).readonly
    except TypeError:
        return False
