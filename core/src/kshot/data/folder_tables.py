"""Decode the files of a folder once, into a table in kshot's cache.

Needs the extra ``kshot[tables]``, for which a plugin that uses this module asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.data import tables
from kshot.data.decoding import Decoded
from kshot.data.folders import Folder, contents, tell_copies

log = logging.getLogger("kshot.data.folder_tables")


def load_folder(
    folder: Folder,
    decode: Callable[[Path], NDArray[Any]],
    *,
    name: str,
    form: str,
    version: int,
    dtype: str,
    input_shape: tuple[int, ...],
    cache: Path | str | None = None,
    workers: int | None = None,
) -> tuple[Tensor, str]:
    """Return all examples of a folder, from the cache or decoded and put there, and their fingerprint.

    The table is named after the names, sizes and times of all files, and after ``form``: a changed folder, or another
    form, is another table. The fingerprint depends on the files' bytes, so it is the same wherever they are.

    Args:
        folder: the folder, as ``kshot.data.folders.scan`` returns it.
        decode: a function from a path to its example [1, *input]. It raises ``DataError`` if it can't.
        name: of the plugin.
        form: identifies the options that change what ``decode`` returns.
        version: of the decoding; raise it when ``decode`` changes.
        dtype: of the examples, such as ``"uint8"``.
        input_shape: shape of an example.
        cache: kshot's cache folder; by default ``KSHOT_CACHE``, or the system's.
        workers: number of threads that decode; by default one for each processor, at most 8.

    Returns:
        The examples [num, *input] in the order of ``folder.files``, and the fingerprint.

    Raises:
        DataError: files can't be read or decoded. The message names the first five.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from kshot.data.folders import scan
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for text in ("cat", "horse"):
        ...         Path(root, text).mkdir()
        ...         _ = Path(root, text, "1.txt").write_text(text)
        ...     lengths, _ = load_folder(
        ...         scan(root, {".txt"}), lambda path: np.array([len(path.read_bytes())], np.uint8)[None],
        ...         name="lengths", form="plain", version=1, dtype="uint8", input_shape=(1,), cache=root)
        >>> lengths.tolist()
        [[3], [5]]
    """

    def make() -> tables.Made:
        # The bytes are read before they are decoded: duplicates and the fingerprint are stored with the table.
        read = contents(folder, workers)
        files = folder.paths
        log.info("%s: decoding %d files of %s", name, len(files), folder.root)
        facts: dict[str, Any] = {"digest": read.digest, "copies": read.copies}
        return tables.Made(facts, dtype, (len(files), *input_shape), Decoded(files, decode, workers))

    path = tables.cache_folder(name, cache) / f"{folder.key()[:20]}-{form}.table"
    table = tables.open_or_build(path, make, name=name, version=version)
    tell_copies(f"{name}: {folder.root}", table.facts["copies"])
    fingerprint = f"{name}-{form}-{table.facts['digest'][:16]}"
    log.info("%d classes of %s; %s", len(folder.classes), folder.root, fingerprint)
    return torch.from_numpy(table.x), fingerprint
