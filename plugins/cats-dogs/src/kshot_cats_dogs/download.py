"""The recordings from where they are public, checked by what is in them."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from kshot.errors import DataError
from kshot_cats_dogs.files import ARCHIVE, digest, read

log = logging.getLogger("kshot_cats_dogs")

URL = "https://www.kaggle.com/api/v1/datasets/download/mmoreaux/audio-cats-and-dogs"
SHA256 = "147c99ee6536d9177ac36778261dbdef8afe0c6dd19688c4afccf1766a074b7b"
"""Of the names and samples of the 42 recordings, see ``files.digest``."""

_LARGEST = 512 << 20  # bytes; the public set has more recordings than are used here


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
        _fetch(url or os.environ.get("KSHOT_CATS_DOGS_URL") or URL, target, sha256, timeout)
    return target


def _fetch(url: str, target: Path, sha256: str, timeout: float) -> None:
    log.info("fetching %s to %s", url, target)
    by_hand = f"or fetch the recordings by hand and give them as root= (from {URL})"
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".tmp", dir=target.parent)
        received = 0
        with os.fdopen(number, "wb") as file, urllib.request.urlopen(url, timeout=timeout) as answer:
            while chunk := answer.read(1 << 16):
                file.write(chunk)
                received += len(chunk)
                if received > _LARGEST:
                    raise DataError(f"cats-dogs: {url} has more than {_LARGEST} bytes; {by_hand}")
            file.flush()
            os.fsync(file.fileno())
        _check(Path(temporary), sha256, f"cats-dogs: {url} came with {received} bytes", by_hand)
        os.replace(temporary, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer too
        raise DataError(
            f"cats-dogs: can't fetch {url} to {target.parent} ({type(error).__name__}: {error}); try again, {by_hand}"
        ) from error
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _check(path: Path, sha256: str, came: str, by_hand: str) -> None:
    try:
        found = digest(read(path))
    except DataError as error:
        raise DataError(
            f"{came} that are not the recordings ({error}); they are cut off or another file, and were thrown away: "
            f"try again, {by_hand}"
        ) from error
    if found != sha256:
        raise DataError(
            f"{came}, whose recordings have the SHA-256 {found}, expected {sha256}; they are others, and were thrown "
            f"away: try again, {by_hand}"
        )
