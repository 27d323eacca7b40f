"""Check what a run stores about how its inputs are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kshot.errors import OptionError, RunError
from kshot.registry.options import options_of, validate
from kshot.registry.plugin import Factory


def checked_preparation(name: str, function: Factory, options: Mapping[str, Any]) -> tuple[Factory, dict[str, Any]]:
    """Check the options that a run stores for a function that prepares inputs, each by its type annotation.

    Raises:
        RunError: an option is unknown, missing or has the wrong type.
    """
    from kshot.preparing import Preparation

    untyped = [option.name for option in options_of(function, skip_positional=1) if option.annotation is Any]
    if untyped:
        raise RunError(
            f"{name}: got a function whose option {', '.join(untyped)} has no type to check, expected annotations"
        )
    import torch

    foreign = [key for key, value in options.items() if not _harmless(value, (torch.Tensor, Preparation))]
    try:
        if foreign:
            raise OptionError(
                f"got other values for {', '.join(foreign)}, expected plain values, tensors and preparations"
            )
        return function, validate(function, options, who=name, skip_positional=1)
    except OptionError as exc:
        raise RunError(f"inputs were prepared by {name} with options that it does not take: {exc}") from exc


def _harmless(value: Any, more: tuple[type, ...]) -> bool:
    """Return whether a value consists of plain values and instances of ``more``."""
    if isinstance(value, list | tuple):
        return all(_harmless(item, more) for item in value)
    return value is None or isinstance(value, (bool, int, float, str, *more))
