"""Decoding many files by threads: in order, and with all failures named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kshot.data.decoding import Decoded
from kshot.errors import DataError


@pytest.mark.parametrize("workers", [1, 3, None])
def test_files_are_decoded_in_order(workers: int | None) -> None:
    """The order does not depend on the number of threads, and files can be decoded again."""
    paths = [Path(str(i)) for i in range(40)]
    decoded = Decoded(paths, lambda path: np.array([int(path.name)]), workers)
    assert len(decoded) == 40
    assert decoded[7] == 7
    for _ in range(2):
        assert np.concatenate(list(decoded)).tolist() == list(range(40))


def test_all_files_that_fail_are_named_at_once() -> None:
    """Whoever fixes thirty files wants to know of more than one at a time."""

    def decode(path: Path) -> np.ndarray[Any, Any]:
        if int(path.name) % 5 == 4:
            raise DataError(f"{path}: is bad")
        return np.zeros(1)

    paths = [Path(str(i)) for i in range(50)]
    with pytest.raises(
        DataError,
        match=r"(?s)got 10 files that can't be used, expected none; .*:\n4: is bad.*24: is bad\n\.\.\. and 5 more$",
    ):
        list(Decoded(paths, decode, 2))
    arrays = iter(Decoded(paths[:8], decode, 2))
    assert len([next(arrays) for _ in range(4)]) == 4
    with pytest.raises(DataError, match=r"^4: is bad$"):  # and nothing that follows it
        next(arrays)


def test_whatever_a_decoder_raises_names_the_file() -> None:
    """Libraries raise errors of many types on damaged bytes, without the file's name."""

    def decode(path: Path) -> NDArray[np.int64]:
        if path.name == "odd":
            raise ZeroDivisionError("division by zero")
        return np.zeros(1, np.int64)

    with pytest.raises(DataError, match=r"odd: got a file that can't be decoded \(ZeroDivisionError: division by zero"):
        list(Decoded([Path("a"), Path("odd")], decode))
    with pytest.raises(DataError, match="odd: got a file"):
        Decoded([Path("odd")], decode)[0]
