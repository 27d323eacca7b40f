"""The original zips from their original place, checked."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from kshot.errors import DataError

log = logging.getLogger("kshot_omniglot")

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
"""Checksums of the originals, those that torchvision checks too."""


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
            _fetch(f"{base}/{name}", folder / name, checksum, timeout)


def _fetch(url: str, target: Path, checksum: str, timeout: float) -> None:
    log.info("fetching %s to %s", url, target)
    by_hand = f"or fetch it by hand and give its folder as root= (from {URL})"
    temporary: str | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".tmp", dir=target.parent)
        digest, received = hashlib.md5(usedforsecurity=False), 0
        with os.fdopen(number, "wb") as file, urllib.request.urlopen(url, timeout=timeout) as answer:
            while chunk := answer.read(1 << 16):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != checksum:
            raise DataError(
                f"omniglot: {url} came with {received} bytes and MD5 {digest.hexdigest()}, expected {checksum}; it is "
                f"cut off or another file, and was thrown away: try again, {by_hand}"
            )
        os.replace(temporary, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"omniglot: can't fetch {url} to {target.parent} ({type(error).__name__}: {error}); try again, {by_hand}"
        ) from error
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
