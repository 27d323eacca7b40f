"""Fetch the zip from the AT&T archive, and check it by its contents."""

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
"""SHA-256 of the names and pixels of all 400 pictures, see ``pictures.digest``."""

_LARGEST = 64 << 20  # bytes; the zip has 4 MB

BY_HAND = f"or fetch {ARCHIVE} by hand and give it as root= (from {URL})"


def download(folder: Path, *, url: str | None = None, sha256: str = SHA256, timeout: float = 30.0) -> Path:
    """Fetch the zip into ``folder``, unless it is there.

    A file that is there was checked before it got its name. The checksum is of the pictures and not of the zip, because
    mirrors have zipped them again.

    Args:
        folder: where to put the zip.
        url: of the zip; by default ``KSHOT_ORL_FACES_URL`` or the AT&T archive's.
        sha256: of the names and pixels of all pictures.
        timeout: seconds to wait for an answer.

    Returns:
        The zip.

    Raises:
        DataError: there is no connection or no such file, the zip has other pictures, or the folder can't be written.
            The folder then has what it had before.
    """
    target = folder / ARCHIVE
    if not target.exists():
        check, place = partial(_check, sha256=sha256), url or os.environ.get("KSHOT_ORL_FACES_URL") or URL
        fetch(place, target, check, name="orl-faces", otherwise=BY_HAND, largest=_LARGEST, timeout=timeout)
    return target


def _check(path: Path, given: str, sha256: str) -> None:
    """Refuse a zip whose pictures don't have this checksum. ``given`` begins the message."""
    try:
        people = read(path)
        actual = digest(people, decode(people, path))
    except DataError as error:
        raise DataError(
            f"{given} ({error}), expected a zip of the faces; it is cut off or another file, and was removed: try "
            f"again, {BY_HAND}"
        ) from error
    if actual != sha256:
        raise DataError(
            f"{given}, whose pictures have the SHA-256 {actual}, expected {sha256}; they are others, and were removed: "
            f"try again, {BY_HAND}"
        )
