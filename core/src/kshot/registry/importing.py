"""Import what an entry point names, and show where a plugin's import failed."""

from __future__ import annotations

import importlib
import traceback
import typing
from pathlib import Path
from typing import Any

from kshot.errors import RunError
from kshot.registry.conversion import printable
from kshot.registry.plugin import Factory

LARGEST = 20_000  # characters of a traceback

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


def text_of(exc: BaseException) -> str:
    """Return the message of a plugin's exception as a terminal may show it, even if making the message fails."""
    try:
        return printable(str(exc))
    except Exception as failure:
        return f"(its message can't be shown: {type(failure).__name__})"


def traceback_of(exc: BaseException) -> str:
    """Return the traceback as text, without the frames of this module before the plugin's own code."""
    frames = exc.__traceback__
    while frames is not None and Path(frames.tb_frame.f_code.co_filename).parent == HERE:
        frames = frames.tb_next
    # A recursion without end has a thousand frames, and a message may have any length.
    text = printable("".join(traceback.format_exception(type(exc), exc, frames, limit=-30))).rstrip()
    return text if len(text) <= LARGEST else f"{text[: LARGEST // 2]}\n...\n{text[-LARGEST // 2 :]}"
