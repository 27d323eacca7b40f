"""The original zips from their original place, checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from kshot.data.downloads import fetch
from kshot.errors import DataError

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
"""Checksums of the originals, those that torchvision checks too."""

BY_HAND = f"or fetch it by hand and give its folder as root= (from {URL})"


def download(folder: Path, *, url: str | None = None, md5: Mapping[str, str] = MD5, timeout: float = 30.0) -> None:
    """Fetches the zips that ``folder`` lacks. A file there is whole: it was checked before it got its name.

    Args:
        url: of the folder that has the zips; by default ``KSHOT_OMNIGLOT_URL`` or the original place.
        md5: checksum of each zip.
        timeout: seconds without an answer.

    Raises:
        DataError: no connection, no such file, a wrong checksum, or a folder that can't be written. What was in the
            folder stays as it was.
    """
    base = (url or os.environ.get("KSHOT_OMNIGLOT_URL") or URL).rstrip("/")
    for name, checksum in md5.items():
        if not (folder / name).exists():
            check = partial(_check, checksum=checksum)
            fetch(f"{base}/{name}", folder / name, check, name="omniglot", otherwise=BY_HAND, timeout=timeout)


def _check(path: Path, came: str, checksum: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if found != checksum:
        raise DataError(
            f"{came} and MD5 {found}, expected {checksum}; it is cut off or another file, and was thrown away: try "
            f"again, {BY_HAND}"
        )
