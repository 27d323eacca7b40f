"""Read a data set in the style of torch, with ``len(dataset)`` and ``dataset[i] -> (example, label)``, into arrays.

Letters: n examples, C classes.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot.arrays import as_table, is_picture
from kshot.errors import DataError

_SECONDS = 5.0  # between two lines that say how many examples were read


@frozen(eq=False)
class Pairs:
    """Store what a data set consists of.

    Attributes:
        x: the examples [n, *input], uint8 or float32.
        y: their class numbers 0..C-1 [n], in the order of the labels.
        names: a name for each class, or () if the labels are 0..C-1 and the data set doesn't name them.
    """

    x: Tensor
    y: NDArray[np.int64]
    names: tuple[str, ...]


def read_pairs(dataset: Any, who: str = "read_pairs", *, largest: int = 8 << 30) -> Pairs:
    """Read all examples of a data set once, in order, into one table.

    Pillow images become uint8 [channels, height, width], with one channel for grey ones and three for others. Classes
    are numbered in the order of their labels, which may be numbers or text. Reading for more than five seconds is
    reported on standard error.

    Args:
        dataset: has ``len(dataset)`` and ``dataset[i]``, a pair of an example and a label.
        who: who asks, for messages.
        largest: the greatest number of bytes of the table. It is compared after the first example was read.

    Raises:
        DataError: the data set has no length, or an example can't be read, is no pair, has another shape or type than
            the first, or has a label that is neither a whole number nor text; or all would need more bytes.

    Example:
        >>> pairs = read_pairs([(torch.zeros(2), "dog"), (torch.ones(2), "cat")])
        >>> pairs.x.shape, pairs.y.tolist(), pairs.names
        (torch.Size([2, 2]), [1, 0], ('cat', 'dog'))
    """
    if not isinstance(largest, int | np.integer) or isinstance(largest, bool):
        raise DataError(f"{who}: got largest={largest!r:.40}, expected a number of bytes, such as 8 * 2**30")
    n = _length(dataset, who)
    first, _ = _pair(dataset, 0, who)
    needed = n * first.numel() * first.element_size()
    if needed > largest:
        raise DataError(
            f"{who}: got {n} examples of shape {tuple(first.shape)}, which need {needed} bytes, expected at most "
            f"{largest}; make the examples smaller in the data set's transform, use fewer, or allow "
            "more by largest="
        )
    x = torch.empty((n, *first.shape), dtype=first.dtype)
    labels: list[int | str] = []
    shown = time.monotonic()
    for i in range(n):
        example, label = _pair(dataset, i, who)
        if example.shape != first.shape or example.dtype != first.dtype:
            raise DataError(
                f"{who}: example {i}: got {example.dtype} of shape {tuple(example.shape)}, expected {first.dtype} of "
                f"shape {tuple(first.shape)}, as of example 0; resize or crop the examples in the data set's transform"
            )
        x[i] = example
        labels.append(label)
        if time.monotonic() - shown > _SECONDS:
            shown = time.monotonic()
            with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error may be closed
                print(f"{who}: read {i + 1} of {n} examples", file=sys.stderr, flush=True)
    return Pairs(x, *_numbered(labels, getattr(dataset, "classes", None), who))


def _length(dataset: Any, who: str) -> int:
    """Return the number of examples of a data set, after checking that it is one."""
    try:
        n = len(dataset)
    except (TypeError, NotImplementedError):
        n = None
    if n is None or not hasattr(dataset, "__getitem__") or isinstance(dataset, Mapping | str | bytes):
        raise DataError(
            f"{who}: got {type(dataset).__name__}, expected a data set with len(dataset) and dataset[i]; give a "
            "loader's .dataset; collect what an iterator yields in a list"
        )
    if n == 0:
        raise DataError(f"{who}: got a data set without examples, expected at least one; give another")
    return n


def _pair(dataset: Any, i: int, who: str) -> tuple[Tensor, int | str]:
    """Return example ``i`` as a tensor of uint8 or float32, and its label."""
    try:
        pair = dataset[i]
    except Exception as error:  # the data set is the user's, and may raise anything
        raise DataError(
            f"{who}: example {i}: got {type(error).__name__}: {error}, expected a pair (example, label); fix or leave "
            "out this example"
        ) from error
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        advice = "write a data set that returns pairs"
        if isinstance(pair, Mapping) and len(pair) > 1:
            first, *_, last = map(repr, pair)
            advice = f"make pairs of its entries, such as [(row[{first}], row[{last}]) for row in dataset]"
        raise DataError(f"{who}: example {i}: got {type(pair).__name__}, expected a pair (example, label); {advice}")
    example, label = pair
    one = [example] if is_picture(example) else (example if isinstance(example, Tensor) else np.asarray(example))[None]
    return as_table(one, f"{who}: example {i}", copy=False)[0], _plain(label, f"{who}: example {i}")


def _plain(label: Any, who: str) -> int | str:
    """Return a label as an int or as text."""
    if isinstance(label, Tensor | np.ndarray | np.generic):
        if np.prod(label.shape) != 1:
            raise DataError(
                f"{who}: got a label of shape {tuple(label.shape)}, expected one class number or name; of a one-hot "
                "label, label.argmax() is the number"
            )
        label = label.item()
    if isinstance(label, str):
        return label
    if not isinstance(label, int | float) or label != label or int(label) != label:
        raise DataError(
            f"{who}: got the label {label!r:.40}, expected a class number or name; change it in the data set"
        )
    return int(label)


def _numbered(labels: Sequence[int | str], classes: Any, who: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return class numbers 0..C-1 of labels, and the names of the classes.

    Args:
        labels: of the examples.
        classes: the names that the data set has for the labels 0, 1, ..., as torchvision's have, or None.
        who: who asks, for messages.
    """
    if len({type(label) for label in labels}) > 1:
        raise DataError(f"{who}: got labels that are numbers and labels that are text, expected either; use one kind")
    present = sorted(set(labels))
    number = {label: c for c, label in enumerate(present)}
    names = tuple(map(str, present))
    if isinstance(present[0], int):
        named = isinstance(classes, Sequence) and not isinstance(classes, str) and present[0] >= 0
        if named and int(present[-1]) < len(classes):
            names = tuple(str(classes[int(label)]) for label in present)
        elif present == list(range(len(present))):
            names = ()
    return np.array([number[label] for label in labels], np.int64), names
