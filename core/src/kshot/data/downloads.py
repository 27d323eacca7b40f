"""Fetch a file for a plugin of real data: it appears complete, checked and under its name, or not at all."""

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
    """Fetch ``url`` to ``target``, replacing what is there. The file is checked before it gets that name.

    Args:
        url: where the file is.
        target: where to put it; the folder is made if it doesn't exist.
        check: a function of the fetched file and of the beginning of a message, such as "omniglot: got 12 bytes from
            https://...". It returns nothing, or raises ``DataError``; the file is then removed.
        name: of the plugin, for messages.
        otherwise: what a user can do instead, in words that follow "try again, ".
        largest: the greatest number of bytes that are accepted.
        timeout: seconds to wait for an answer.

    Raises:
        DataError: there is no connection or no such file, the file is too large or fails its check, or the folder
            can't be written. The folder then has what it had before.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fetch("data:,hello", Path(folder, "a.txt"), lambda path, given: None, name="demo", otherwise="or not")
        ...     Path(folder, "a.txt").read_text()
        'hello'
    """
    log.info("fetching %s to %s", url, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        received = 0
        with writing(target) as file:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                while chunk := answer.read(1 << 16):
                    received += len(chunk)
                    # Counted here and not taken from the header, which a server may leave out or get wrong.
                    if received > largest:
                        raise DataError(
                            f"{name}: got more than {largest} bytes from {url}, expected at most that; it is another "
                            f"file: try again, {otherwise}"
                        )
                    file.write(chunk)
            file.flush()
            check(Path(file.name), f"{name}: got {received} bytes from {url}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # an HTTPError is also the server's answer, and holds its connection
        raise DataError(
            f"{name}: got no file from {url} ({type(error).__name__}: {error}), expected one to put in "
            f"{target.parent}; try again, {otherwise}"
        ) from error
