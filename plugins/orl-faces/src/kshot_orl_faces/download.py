"""The zip from the AT&T archive, checked by what is in it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from kshot.data.downloads import fetch
from kshot.errors import DataError
from kshot_orl_faces.files import ARCHIVE, read
from kshot_orl_faces.pictures import decode, digest

URL = "https://www.cl.cam.ac.uk/research/dtg/attarchive/pub/data/att_faces.zip"
SHA256 = "1be75398f6bc8b7cd74ecfa920b2cd0e985e9509b6e7cc9d3ac359eeefc5c6d8"
"""Of the names and pixels of all 400 pictures, see ``pictures.digest``."""

_LARGEST = 64 << 20  # bytes; the zip has 4 MB

BY_HAND = f"or fetch {ARCHIVE} by hand and give it as root= (from {URL})"


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
        check, place = partial(_check, sha256=sha256), url or os.environ.get("KSHOT_ORL_FACES_URL") or URL
        fetch(place, target, check, name="orl-faces", otherwise=BY_HAND, largest=_LARGEST, timeout=timeout)
    return target


def _check(path: Path, came: str, sha256: str) -> None:
    try:
        people = read(path)
        found = digest(people, decode(people, path))
    except DataError as error:
        raise DataError(
            f"{came} that are not the faces ({error}); they are cut off or another file, and were thrown away: try "
            f"again, {BY_HAND}"
        ) from error
    if found != sha256:
        raise DataError(
            f"{came}, whose pictures have the SHA-256 {found}, expected {sha256}; they are others, and were thrown "
            f"away: try again, {BY_HAND}"
        )
