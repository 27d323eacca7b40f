"""The zip from the AT&T archive, checked by what is in it."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import tempfile
import urllib.request
from pathlib import Path

from kshot.errors import DataError
from kshot_orl_faces.files import ARCHIVE, read
from kshot_orl_faces.pictures import decode, digest

log = logging.getLogger("kshot_orl_faces")

URL = "https://www.cl.cam.ac.uk/research/dtg/attarchive/pub/data/att_faces.zip"
SHA256 = "1be75398f6bc8b7cd74ecfa920b2cd0e985e9509b6e7cc9d3ac359eeefc5c6d8"
"""Of the names and pixels of all 400 pictures, see ``pictures.digest``."""

_LARGEST = 64 << 20  # bytes; the zip has 4 MB


def download(folder: Path, *, url: str | None = None, sha256: str = SHA256, timeout: float = 30.0) -> Path:
    """Fetches the zip into ``folder`` where it isn't there yet. A file there is right: it was checked before it got
    its name.

    The checksum is of the pictures and not of the zip, because mirrors have zipped them again.

    Args:
        url: of the zip; by default ``KSHOT_ORL_FACES_URL`` or the AT&T archive's.
        sha256: of the names and pixels of all pictures.
        timeout: seconds without an answer.

    Raises:
        DataError: no connection, no such file, other pictures, or a folder that can't be written. What was in the
            folder stays as it was.
    """
    target = folder / ARCHIVE
    if not target.exists():
        _fetch(url or os.environ.get("KSHOT_ORL_FACES_URL") or URL, target, sha256, timeout)
    return target


def _fetch(url: str, target: Path, sha256: str, timeout: float) -> None:
    log.info("fetching %s to %s", url, target)
    by_hand = f"or fetch {ARCHIVE} by hand and give it as root= (from {URL})"
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
                    raise DataError(f"orl-faces: {url} has more than {_LARGEST} bytes, expected 4 MB; {by_hand}")
            file.flush()
            os.fsync(file.fileno())
        _check(Path(temporary), sha256, f"orl-faces: {url} came with {received} bytes", by_hand)
        os.replace(temporary, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"orl-faces: can't fetch {url} to {target.parent} ({type(error).__name__}: {error}); try again, {by_hand}"
        ) from error
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _check(path: Path, sha256: str, came: str, by_hand: str) -> None:
    try:
        people = read(path)
        found = digest(people, decode(people, path))
    except DataError as error:
        raise DataError(
            f"{came} that are not the faces ({error}); they are cut off or another file, and were thrown away: try "
            f"again, {by_hand}"
        ) from error
    if found != sha256:
        raise DataError(
            f"{came}, whose pictures have the SHA-256 {found}, expected {sha256}; they are others, and were thrown "
            f"away: try again, {by_hand}"
        )
