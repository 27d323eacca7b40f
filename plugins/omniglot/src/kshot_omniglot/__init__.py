"""Make few-shot tasks of Omniglot, handwritten characters of 50 alphabets.

Importing this package imports neither torch nor Pillow, because the workers that decode must start quickly:
``omniglot`` is imported when it is first used.
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
