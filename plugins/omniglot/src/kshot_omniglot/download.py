"""Fetch the original zips from their original place, and check them."""

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
"""MD5 of the original zips, which torchvision checks too."""

BY_HAND = f"or fetch it by hand and give its folder as root= (from {URL})"


def download(folder: Path, *, url: str | None = None, md5: Mapping[str, str] = MD5, timeout: float = 30.0) -> None:
    """Fetch the zips that ``folder`` doesn't have. A file that is there was checked before it got its name.

    Args:
        folder: where to put the zips.
        url: of the folder that has the zips; by default ``KSHOT_OMNIGLOT_URL`` or the original place.
        md5: checksum of each zip.
        timeout: seconds to wait for an answer.

    Raises:
        DataError: there is no connection or no such file, the checksum is wrong, or the folder can't be written. The
            folder then has what it had before.
    """
    base = (url or os.environ.get("KSHOT_OMNIGLOT_URL") or URL).rstrip("/")
    for name, checksum in md5.items():
        if not (folder / name).exists():
            check = partial(_check, checksum=checksum)
            fetch(f"{base}/{name}", folder / name, check, name="omniglot", otherwise=BY_HAND, timeout=timeout)


def _check(path: Path, given: str, checksum: str) -> None:
    """Refuse a file that doesn't have this checksum. ``given`` begins the message."""
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if actual != checksum:
        raise DataError(
            f"{given} with the MD5 {actual}, expected {checksum}; it is cut off or another file, and was removed: try "
            f"again, {BY_HAND}"
        )
