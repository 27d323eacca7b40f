"""Decode the files of a folder once, into a table in kshot's cache.

Needs the extra ``kshot[tables]``, for which a plugin that uses this module asks.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.data import tables
from kshot.data.decoding import Decoded
from kshot.data.folders import Contents, Folder, contents, tell_copies
from kshot.errors import DataError

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

    The table is named after the classes, names and bytes of all files, and after ``form``: a changed folder, or another
    form, is another table. So is the fingerprint, which is the same wherever the files are. The bytes are read again
    whenever ``Folder.key`` differs from when they were last read, and if they were not ``Folder.settled`` then.

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

    place = tables.cache_folder(name, cache)
    key, read = _contents(folder, place, workers)

    def make() -> tables.Made:
        files = folder.paths
        log.info("%s: decoding %d files of %s", name, len(files), folder.root)
        facts: dict[str, Any] = {"digest": read.digest, "copies": read.copies}
        return tables.Made(facts, dtype, (len(files), *input_shape), _Unchanged(folder, key, decode, workers))

    path = place / f"{read.digest[:20]}-{form}.table"
    table = tables.open_or_build(path, make, name=name, version=version)
    tell_copies(f"{name}: {folder.root}", read.copies)
    fingerprint = f"{name}-{form}-{read.digest[:16]}"
    log.info("%d classes of %s; %s", len(folder.classes), folder.root, fingerprint)
    return torch.from_numpy(table.x), fingerprint


def _contents(folder: Folder, place: Path, workers: int | None) -> tuple[str, Contents]:
    """Return a folder's key and what is in its files.

    What was read is kept in a small file in the cache, named after the key, so that it need not be read again.
    """
    key, settled = folder.key(), folder.settled()
    known = place / f"contents-{key}.json"
    if settled:
        try:
            values = json.loads(known.read_bytes())
            return key, Contents(str(values["digest"]), tuple(tuple(group) for group in values["copies"]))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s can't be used (%s: %s); the files are read again", known, type(error).__name__, error)
    read = contents(folder, workers)
    if settled and folder.key() == key:
        with contextlib.suppress(OSError):  # in a read-only cache, the next load reads the files again
            place.mkdir(parents=True, exist_ok=True)
            tables.write_whole(known, [json.dumps({"digest": read.digest, "copies": read.copies}).encode()])
    return key, read


class _Unchanged(Decoded):
    """Represent a folder's files as ``Decoded`` does, and refuse to end if one changed since the key was made."""

    def __init__(self, folder: Folder, key: str, decode: Callable[[Path], NDArray[Any]], workers: int | None) -> None:
        super().__init__(folder.paths, decode, workers)
        self._folder, self._key = folder, key

    def __iter__(self) -> Iterator[NDArray[Any]]:
        yield from super().__iter__()
        if self._folder.key() != self._key:
            raise DataError(
                f"{self._folder.root}: got files that changed while they were decoded, expected them to stay; try again"
            )
