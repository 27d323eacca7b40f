"""Names of files and classes, as they are compared and as messages show them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def nfc(name: str) -> str:
    """Return a name in Unicode's form NFC: file systems write the same letter as one character or as two."""
    return unicodedata.normalize("NFC", name)


def shortened(names: Sequence[str]) -> str:
    """Return at most five of the names, for a message, with their number if there are more."""
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
