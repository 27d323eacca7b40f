"""List the names of the kinds of tasks. Listing plugins needs them, and this module is quick to import."""

from __future__ import annotations

from typing import Literal, get_args

KindName = Literal["classification", "regression", "sequence", "control", "objective"]
"""The names of the kinds of tasks: the one list, from which all others are derived. ``kshot.kinds`` has the scorers."""

KIND_NAMES: tuple[KindName, ...] = get_args(KindName)
