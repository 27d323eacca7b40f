"""Import what an entry point names, and show where a plugin's import failed."""

from __future__ import annotations

import importlib
import traceback
import typing
from pathlib import Path
from typing import Any

from kshot.errors import RunError
from kshot.registry.plugin import Factory

HERE = Path(__file__).parent
"""The folder of the registry, whose own frames say nothing about a plugin."""


def import_factory(target: str) -> Factory:
    """Import a class or function from ``module:attribute``."""
    module, _, attribute = target.partition(":")
    factory: Any = importlib.import_module(module)
    for name in attribute.split("."):
        factory = getattr(factory, name)
    if not callable(factory):
        raise TypeError(f"{target} is {factory!r}, neither a class nor a function")
    return typing.cast(Factory, factory)


def import_preparation(target: str) -> Factory:
    """Import a registered function that prepares inputs; raise RunError if that fails."""
    try:
        return import_factory(target)
    except Exception as exc:
        raise RunError(
            f"inputs were prepared by {target}, which can't be imported ({type(exc).__name__}: {exc}); install the "
            "version of the plugin that the run was made with"
        ) from exc


def traceback_of(exc: BaseException) -> str:
    """Return the traceback as text, without the frames of this module before the plugin's own code."""
    frames = exc.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename).parent == HERE:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(exc), exc, frames)).rstrip()
