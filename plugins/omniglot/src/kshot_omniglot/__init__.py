"""Omniglot: handwritten characters of 50 alphabets as few-shot tasks.

Importing this imports neither torch nor Pillow; ``omniglot`` is fetched on first use. The decoding workers rely on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot_omniglot.tasks import omniglot

__all__ = ["omniglot"]


def __getattr__(name: str) -> Any:
    if name == "omniglot":
        from kshot_omniglot.tasks import omniglot

        return omniglot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
