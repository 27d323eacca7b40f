"""Show what runs log; apart from the console, as listing plugins does not need Python's logging."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator


class _Lines(logging.Handler):
    """Print log records as lines.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        self.say(record.getMessage())


@contextlib.contextmanager
def shown_messages(say: Callable[[str], None]) -> Iterator[None]:
    """Print the log messages of ``kshot.runs`` by ``say``, inside the block."""
    log, handler = logging.getLogger("kshot.runs"), _Lines(say)
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
