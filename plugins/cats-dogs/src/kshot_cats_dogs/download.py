"""The recordings from where they are public, checked by what is in them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from kshot.data.downloads import fetch
from kshot.errors import DataError
from kshot_cats_dogs.files import ARCHIVE, digest, read

URL = "https://www.kaggle.com/api/v1/datasets/download/mmoreaux/audio-cats-and-dogs"
SHA256 = "147c99ee6536d9177ac36778261dbdef8afe0c6dd19688c4afccf1766a074b7b"
"""Of the names and samples of the 42 recordings, see ``files.digest``."""

_LARGEST = 512 << 20  # bytes; the public set has more recordings than are used here

BY_HAND = f"or fetch the recordings by hand and give them as root= (from {URL})"


def download(folder: Path, *, url: str | None = None, sha256: str = SHA256, timeout: float = 30.0) -> Path:
    """Fetches a zip that has the recordings into ``folder``, where it isn't there yet. A file there is right: it was
    checked before it got its name.

    The checksum is of the 42 recordings and not of the zip: it may have others too, and may have been zipped again.

    Args:
        url: of the zip; by default ``KSHOT_CATS_DOGS_URL`` or the public set's.
        sha256: of the names and samples of the 42 recordings.
        timeout: seconds without an answer.

    Raises:
        DataError: no connection, no such file, other recordings, or a folder that can't be written. What was in the
            folder stays as it was.
    """
    target = folder / ARCHIVE
    if not target.exists():
        check, place = partial(_check, sha256=sha256), url or os.environ.get("KSHOT_CATS_DOGS_URL") or URL
        fetch(place, target, check, name="cats-dogs", otherwise=BY_HAND, largest=_LARGEST, timeout=timeout)
    return target


def _check(path: Path, came: str, sha256: str) -> None:
    try:
        found = digest(read(path))
    except DataError as error:
        raise DataError(
            f"{came} that are not the recordings ({error}); they are cut off or another file, and were thrown away: "
            f"try again, {BY_HAND}"
        ) from error
    if found != sha256:
        raise DataError(
            f"{came}, whose recordings have the SHA-256 {found}, expected {sha256}; they are others, and were thrown "
            f"away: try again, {BY_HAND}"
        )
