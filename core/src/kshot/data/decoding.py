"""Decode many files by several threads, in order, without keeping all results in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kshot.data.files import named
from kshot.errors import DataError


class Decoded(Sequence[NDArray[Any]]):
    """Represent files as a sequence of arrays, decoded by threads, a few files ahead of the iteration.

    It can be given as ``kshot.data.tables.Made.parts``, so that a table is written while its files are decoded.

    Args:
        paths: the files.
        decode: a function of a path that returns its array. It should raise ``DataError`` if it can't; any other
            exception becomes one that names the file.
        workers: number of threads; by default one for each processor, at most 8.

    Raises:
        DataError: at the end of an iteration, if some files could not be decoded. It names the first five. Nothing is
            yielded after the first failure.

    Example:
        >>> import numpy as np
        >>> lengths = Decoded([Path("a"), Path("bcd")], lambda path: np.array([len(path.name)]))
        >>> [array.tolist() for array in lengths]
        [[1], [3]]
    """

    def __init__(
        self, paths: Sequence[Path], decode: Callable[[Path], NDArray[Any]], workers: int | None = None
    ) -> None:
        self._paths, self._decode = paths, decode
        self._workers = min(8, os.cpu_count() or 1) if workers is None else workers

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return self._decode_one(self._paths[index])

    def _decode_one(self, path: Path) -> NDArray[Any]:
        """Return the array of a file. Whatever ``decode`` raises becomes a DataError that names the file."""
        with named(path):
            return self._decode(path)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        failures: list[DataError] = []
        pending: deque[Future[NDArray[Any]]] = deque()
        ahead = 4 * self._workers  # bounds the memory: at most this many results wait for their turn
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="kshot-decode")
        try:
            # After the last path, one None for each result that may still be pending.
            for path in (*self._paths, *([None] * ahead)):
                if path is not None:
                    pending.append(pool.submit(self._decode_one, path))
                if pending and (path is None or len(pending) > ahead):
                    try:
                        array = pending.popleft().result()
                    except DataError as error:
                        failures.append(error)  # go on: a user wants to know of all bad files at once
                    else:
                        if not failures:
                            yield array
        finally:
            pool.shutdown(cancel_futures=True)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            more = f"\n... and {len(failures) - 5} more" if len(failures) > 5 else ""
            raise DataError(
                f"got {len(failures)} files that can't be used, expected none; fix or remove them:\n"
                + "\n".join(map(str, failures[:5]))
                + more
            )
