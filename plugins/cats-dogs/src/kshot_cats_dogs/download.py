"""Fetch the recordings from where they are published, and check them by their contents."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from kshot.data.downloads import fetch
from kshot.errors import DataError
from kshot_cats_dogs.files import ARCHIVE, digest, read

URL = "https://www.kaggle.com/api/v1/datasets/download/mmoreaux/audio-cats-and-dogs"
SHA256 = "147c99ee6536d9177ac36778261dbdef8afe0c6dd19688c4afccf1766a074b7b"
"""SHA-256 of the names and samples of the 42 recordings, see ``files.digest``."""

_LARGEST = 512 << 20  # bytes; the public set has more recordings than are used here

BY_HAND = f"or fetch the recordings by hand and give them as root= (from {URL})"


def download(folder: Path, *, url: str | None = None, sha256: str = SHA256, timeout: float = 30.0) -> Path:
    """Fetch a zip that has the recordings into ``folder``, unless it is there.

    A file that is there was checked before it got its name. The checksum is of the 42 recordings and not of the zip,
    which may have other recordings too and may have been zipped again.

    Args:
        folder: where to put the zip.
        url: of the zip; by default ``KSHOT_CATS_DOGS_URL`` or the public set's.
        sha256: of the names and samples of the 42 recordings.
        timeout: seconds to wait for an answer.

    Returns:
        The zip.

    Raises:
        DataError: there is no connection or no such file, the zip has other recordings, or the folder can't be written.
            The folder then has what it had before.
    """
    target = folder / ARCHIVE
    if not target.exists():
        check, place = partial(_check, sha256=sha256), url or os.environ.get("KSHOT_CATS_DOGS_URL") or URL
        fetch(place, target, check, name="cats-dogs", otherwise=BY_HAND, largest=_LARGEST, timeout=timeout)
    return target


def _check(path: Path, given: str, sha256: str) -> None:
    """Refuse a zip whose recordings don't have this checksum. ``given`` begins the message."""
    try:
        actual = digest(read(path))
    except DataError as error:
        raise DataError(
            f"{given} ({error}), expected a zip of the recordings; it is cut off or another file, and was removed: try "
            f"again, {BY_HAND}"
        ) from error
    if actual != sha256:
        raise DataError(
            f"{given}, whose recordings have the SHA-256 {actual}, expected {sha256}; they are others, and were "
            f"removed: try again, {BY_HAND}"
        )
