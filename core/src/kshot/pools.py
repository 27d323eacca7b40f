"""The labelled examples of one split, as a table and the rows of each class.

Letters: n examples, C classes, A attributes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kshot.arrays import as_inputs, as_labels, as_table
from kshot.datasets import read_pairs
from kshot.errors import DataError


@frozen(eq=False, repr=False)
class Pool:
    """Store the labelled examples of one split.

    Attributes:
        x: all examples [num, *input], uint8 (of which 255 becomes 1.0) or float32, used as it is: splits may share one
            tensor, which must not be changed any more.
        rows: for each class its rows of ``x``, padded with -1: [C, most].
        counts: the number of examples of each class [C].
        names: a name for each class, or ().
        semantics: a vector for each class [C, A], or None.
        input_range: least and greatest value of the inputs as float32, or None if they are unbounded.

    Example:
        >>> pool = Pool.of(np.arange(8.0).reshape(4, 2), [0, 1, 1, 0], names=["cat", "dog"])
        >>> pool.classes, pool.rows.tolist()
        (2, [[0, 3], [1, 2]])
        >>> pool.gather(np.array([3]))
        tensor([[6., 7.]])
    """

    x: Tensor
    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    names: Sequence[str] = ()
    semantics: Tensor | None = None
    input_range: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor,
        *,
        names: Sequence[str] = (),
        semantics: ArrayLike | Tensor | None = None,
        input_range: tuple[float, float] | None = None,
        copy: bool = True,
    ) -> Pool:
        """Make a pool from examples and their class numbers; a tensor's graph and device are dropped.

        Args:
            x: examples [num, *input]: uint8, or numbers that are taken as float32.
            y: class numbers 0..C-1 [num].
            names: a name for each class.
            semantics: a vector for each class [C, A].
            input_range: least and greatest value of an input; (0, 1) by default if ``x`` is uint8.
            copy: whether later changes of ``x`` must not reach the pool. If True, uint8 and float32 values are copied,
                except those of a read-only array over read-only memory, such as ``numpy.load(file, mmap_mode="r")``.
                Pass False for a large table that will not change any more. Other types are converted once either way.

        Raises:
            DataError: lengths differ, labels are not exactly 0..C-1, there is not one name or one vector for each
                class, a value is not a finite real number, an example has no numbers, or examples lie outside of
                ``input_range``.

        Warns if the examples look like pictures [num, height, width, channels]: networks take the axis after the
        first as channels.
        """
        table = as_table(x, "Pool.of: x", copy=copy)
        _warn_of_channels_last(table)
        labels = as_labels(y, "Pool.of", examples=len(table)).cpu().numpy()
        if table.dtype == torch.uint8 and input_range is None:
            input_range = (0.0, 1.0)
        input_range = _checked_range(table, input_range)
        names = _names(names)
        vectors = None if semantics is None else as_inputs(semantics, "Pool.of: semantics", copy=True).cpu()
        # rows[c] has the positions of class c in increasing order: sort all positions by class, then write each into
        # the column that is its rank within its class.
        sizes = np.bincount(labels)
        _check_per_class(len(sizes), names, vectors)
        rows = np.full((len(sizes), int(sizes.max())), -1, np.int64)
        order = np.argsort(labels, kind="stable")
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        rows[labels[order], np.arange(len(labels)) - np.repeat(starts, sizes)] = order
        return cls(table, rows, sizes, names=names, semantics=vectors, input_range=input_range)

    @classmethod
    def of_dataset(
        cls,
        dataset: Any,
        *,
        names: Sequence[str] = (),
        semantics: ArrayLike | Tensor | None = None,
        input_range: tuple[float, float] | None = None,
        largest: int = 8 << 30,
    ) -> Pool:
        """Make a pool from a data set in the style of torch: ``len(dataset)`` and ``dataset[i] -> (example, label)``.

        All examples are read once, in order, into one table in memory. Give the data set a transform that returns
        examples of one size. Classes are numbered in the order of their labels; labels need not be 0..C-1.

        Args:
            dataset: such as one of torchvision's.
            names: a name for each class; by default those of ``dataset.classes``, or the labels if they are text.
            semantics: a vector for each class [C, A].
            input_range: least and greatest value of an input; (0, 1) by default if the examples are uint8 or images.
            largest: the greatest number of bytes of the table.

        Raises:
            DataError: see ``kshot.datasets.read_pairs`` and ``of``.

        Example:
            >>> pool = Pool.of_dataset([(torch.zeros(2), "dog"), (torch.ones(2), "cat")])
            >>> pool.names, pool.rows.tolist()
            (('cat', 'dog'), [[1], [0]])
        """
        pairs = read_pairs(dataset, "Pool.of_dataset", largest=largest)
        return cls.of(
            pairs.x,
            pairs.y,
            names=_names(names) or pairs.names,
            semantics=semantics,
            input_range=input_range,
            copy=False,
        )

    def __repr__(self) -> str:
        of = f"{list(self.x.shape[1:])} of {str(self.x.dtype).removeprefix('torch.')}"
        return f"<Pool: {self.classes:,} classes, {int(self.counts.sum()):,} examples {of}>"

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return len(self.rows)

    @cached_property
    def fewest(self) -> int:
        """The number of examples of the smallest class."""
        return int(self.counts.min())

    def digest(self) -> bytes:
        """Return a digest of everything in the pool: the same for the same examples, classes and names."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.x.dtype} {tuple(self.x.shape)} {list(self.names)} {self.input_range}\0".encode())
        semantics = [] if self.semantics is None else [self.semantics.detach().cpu().numpy()]
        # A table is hashed in pieces, so that a memory-mapped one is never in memory as a whole.
        pieces = (piece.numpy() for piece in self.x.split(4096))
        for array in (*pieces, self.rows, self.counts, *semantics):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def gather(self, ids: NDArray[np.int64]) -> Tensor:
        """Return rows ``ids`` [.., n] of the table as float32 inputs [.., n, *input]."""
        flat = self.x.index_select(0, torch.from_numpy(ids.reshape(-1)))
        inputs = flat.to(torch.float32)
        if flat.dtype == torch.uint8:
            inputs.div_(255)  # after the conversion: dividing uint8 itself is not vectorised
        return inputs.view(*ids.shape, *self.x.shape[1:])

    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and class numbers of every example, class by class: ids [n], y [n]."""
        present = self.rows >= 0
        return self.rows[present], np.repeat(np.arange(self.classes), self.counts)


_CHANNELS = (1, 3, 4)  # of pictures: grey, colour, colour with transparency


def _warn_of_channels_last(x: Tensor) -> None:
    """Warn if examples [num, *input] look like pictures whose channels are the last axis."""
    if x.ndim == 4 and x.shape[3] in _CHANNELS and x.shape[1] not in _CHANNELS:
        warnings.warn(
            f"Pool.of: x: got shape {tuple(x.shape)}, which looks like pictures [num, height, width, channels], "
            "expected [num, channels, height, width], as networks take the axis after the first as channels; convert "
            "an array by x.transpose(0, 3, 1, 2), a tensor by x.permute(0, 3, 1, 2)",
            UserWarning,
            stacklevel=3,
        )


def _names(names: Any) -> tuple[str, ...]:
    """Return names of classes as text; () if there are none."""
    if names is None:
        return ()
    if isinstance(names, str | bytes | Mapping) or not hasattr(names, "__len__"):
        raise DataError(
            f"Pool.of: names: got {type(names).__name__}, expected a name for each class in the order of their "
            "numbers; give a list of them"
        )
    return tuple(map(str, names))


def _checked_range(x: Tensor, input_range: Any) -> tuple[float, float] | None:
    """Return the least and the greatest value of an input as floats, after comparing them with the examples."""
    if not x[:1].numel() and len(x):
        raise DataError(f"Pool.of: x: got shape {tuple(x.shape)}, expected at least one number in each example")
    if input_range is None:
        return None
    try:
        low, high = map(float, input_range)
    except (TypeError, ValueError):
        low, high = float("nan"), float("nan")
    if isinstance(input_range, str) or not low <= high:
        raise DataError(
            f"Pool.of: got input_range {input_range!r:.40}, expected the least and the greatest value, such as (0, 1)"
        )
    if x.dtype == torch.uint8 and (low < 0 or high > 1):
        raise DataError(
            f"Pool.of: got input_range {[low, high]} of examples as uint8, expected it within [0, 1], because 255 "
            "becomes 1; leave input_range out"
        )
    if x.numel() and not (x.dtype == torch.uint8 and (low, high) == (0, 1)):
        scale = 255 if x.dtype == torch.uint8 else 1
        least, greatest = (float(value) / scale for value in x.aminmax())
        if least < low - 1e-6 or greatest > high + 1e-6:
            raise DataError(
                f"Pool.of: got inputs in [{least:.4g}, {greatest:.4g}], expected them in input_range {[low, high]}; "
                "scale the examples, or correct input_range"
            )
    return low, high


def _check_per_class(classes: int, names: Sequence[str], semantics: Tensor | None) -> None:
    """Raise DataError unless there is a name and a vector for each class, if there are any."""
    if semantics is not None and semantics.ndim != 2:
        raise DataError(
            f"Pool.of: semantics: got shape {tuple(semantics.shape)}, expected a vector for each of the {classes} "
            "classes, [C, A]; reshape them"
        )
    for what, given in (("names", names if len(names) else None), ("semantics", semantics)):
        if given is not None and len(given) != classes:
            raise DataError(
                f"Pool.of: {what}: got {len(given)}, expected one for each of the {classes} classes that have "
                "examples; leave out those of empty classes"
            )
