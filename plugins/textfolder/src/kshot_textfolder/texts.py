"""Convert texts to inputs: the texts of a folder or a CSV file, and texts to be predicted.

Letters: n texts, L numbers of an input.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from kshot.arrays import as_inputs
from kshot.data.folders import reads
from kshot.data.texts import check_text, read_text, to_bytes
from kshot.errors import DataError
from kshot_textfolder.ngrams import ngrams

Features = Literal["ngrams", "bytes"]

VERSION = 1
"""Version of the conversion; raise it when the conversion changes."""

SUFFIX = ".txt"
"""Suffix of the files that are read."""


@frozen
class Form:
    """Store the form into which texts are converted. ``textfolder`` describes each field, as its option.

    Raises:
        DataError: an option is out of its range.

    Example:
        >>> Form("bytes", size=1024, length=6).of_text("Hé!", "a text").tolist()
        [72, 195, 169, 33, 0, 0]
    """

    features: Features
    size: int
    length: int

    def __attrs_post_init__(self) -> None:
        if self.features not in ("ngrams", "bytes"):
            raise DataError(f"textfolder: features: got {self.features!r}, expected 'ngrams' or 'bytes'")
        for name, least in (("size", 2), ("length", 4)):
            if getattr(self, name) < least:
                raise DataError(f"textfolder: {name}: got {getattr(self, name)}, expected at least {least}")

    @property
    def shape(self) -> tuple[int]:
        """Shape of an input, [L]."""
        return (self.length if self.features == "bytes" else self.size,)

    @property
    def dtype(self) -> str:
        """Type of the numbers of a table of inputs; of uint8, 255 becomes 1.0."""
        return "uint8" if self.features == "bytes" else "float32"

    @property
    def input_range(self) -> tuple[float, float]:
        """Least and greatest number of an input."""
        return (0.0, 1.0) if self.features == "bytes" else (-1.0, 1.0)

    @property
    def name(self) -> str:
        """Name for a file in the cache, which changes with any option that has an effect."""
        return f"{self.features}-{self.shape[0]}"

    def of_text(self, text: str, name: str) -> NDArray[Any]:
        """Return a text as a row [L] of a table.

        Raises:
            DataError: the text has no word, or a NUL character. The message has ``name``.
        """
        check_text(text, name)
        return to_bytes(text, self.length) if self.features == "bytes" else ngrams(text, self.size)

    def decode(self, path: Path) -> NDArray[Any]:
        """Return the text in a file as rows [1, L].

        Raises:
            DataError: the file can't be read, is not UTF-8, or has no word. The message names it.
        """
        return self.of_text(read_text(path), str(path))[None]


def prepare(raw: Any, form: Form) -> Tensor:
    """Make inputs [n, L] of texts.

    Args:
        raw: a text as a ``str``; a ``Path`` of a file with a text; or a sequence of these. Float arrays [n, L] are
            taken to be inputs already and returned unchanged.
        form: the form into which to convert them.

    Raises:
        DataError: a file is missing or is not UTF-8, a text has no word, a ``str`` is the name of a file, or an array
            has another shape. The message names it.

    Example:
        >>> prepare(["one", "two"], Form("ngrams", size=64, length=4)).shape
        torch.Size([2, 64])
    """
    if isinstance(raw, str):
        if raw.lower().endswith(SUFFIX) and "\n" not in raw and os.path.isfile(raw):
            raise DataError(f"textfolder: got {raw!r}, the name of a file, expected a text; give Path({raw!r})")
        return as_inputs(form.of_text(raw, f"text {raw[:40]!r}")[None])
    if isinstance(raw, os.PathLike):
        return as_inputs(form.decode(Path(raw)))
    if isinstance(raw, Tensor) or (isinstance(raw, np.ndarray) and raw.dtype.kind not in "OUT"):
        is_float = raw.is_floating_point() if isinstance(raw, Tensor) else raw.dtype.kind == "f"
        if is_float and tuple(raw.shape[1:]) == form.shape:
            return as_inputs(raw, "textfolder: inputs to prepare").cpu()
        raise DataError(
            f"textfolder: got {raw.dtype} of shape {list(raw.shape)} to prepare, expected inputs [n, {form.shape[0]}] "
            "as floats; or give texts"
        )
    several = isinstance(raw, Iterable) and not isinstance(raw, bytes)
    if prepared := [prepare(item, form) for item in raw] if several else []:
        return torch.cat(prepared)
    raise DataError(
        f"textfolder: got {'an empty ' * several}{type(raw).__name__} to prepare, expected a text as a str, a Path, or "
        "a sequence of these; give some"
    )


@reads(lambda: {SUFFIX}, texts=True)
def prepare_as(raw: Any, *, features: Features, size: int, length: int) -> Tensor:
    """Call ``prepare`` with a form given by its fields, plain values that a run can store."""
    return prepare(raw, Form(features, size, length))
