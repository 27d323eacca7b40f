"""Fetching a file for plugins of real data: whole, checked and under its name, or not at all."""

from __future__ import annotations

import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from kshot._atomic import writing
from kshot.errors import DataError

log = logging.getLogger("kshot.data.downloads")


def fetch(
    url: str,
    target: Path,
    check: Callable[[Path, str], None],
    *,
    name: str,
    otherwise: str,
    largest: int = 1 << 30,
    timeout: float = 30.0,
) -> None:
    """Fetch ``url`` to ``target``, replacing what is there; a file under that name was checked before it got it.

    Args:
        check: (the file, what came in words) -> nothing, or raises DataError; the file is then thrown away.
        name: of the plugin, for messages.
        otherwise: what a user can do instead, in words that follow "try again, ".
        largest: bytes at which it is given up.
        timeout: seconds without an answer.

    Raises:
        DataError: no connection, no such file, one that is too large or fails its check, or a folder that can't be
            written. What was in the folder stays as it was.
    """
    log.info("fetching %s to %s", url, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        received = 0
        with writing(target) as file:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                while chunk := answer.read(1 << 16):
                    received += len(chunk)
                    if received > largest:
                        raise DataError(
                            f"{name}: {url} has more than {largest} bytes, which it should not; {otherwise}"
                        )
                    file.write(chunk)
            file.flush()
            check(Path(file.name), f"{name}: {url} came with {received} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer too
        raise DataError(
            f"{name}: can't fetch {url} to {target.parent} ({type(error).__name__}: {error}); try again, {otherwise}"
        ) from error
