"""Which software took part: recorded in every result."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch


def versions(*components: Any) -> dict[str, str]:
    """Versions of kshot, torch, Python and of the distributions that the components were built from."""
    from kshot.registry import built

    found = {"kshot": version("kshot"), "torch": str(torch.__version__), "python": platform.python_version()}
    for component in components:
        made = built(component)
        if made is not None and made.distribution and made.distribution != "kshot":
            found[made.distribution] = made.version
    return found


def version(distribution: str) -> str:
    """The installed version of a distribution, or ``unknown``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
