"""Import what an entry point names, and show where a plugin's import failed."""

from __future__ import annotations

import contextlib
import importlib
import traceback
import typing
import warnings
from pathlib import Path
from typing import Any

from attrs import evolve

from kshot.errors import RunError, Unavailable
from kshot.registry.conversion import printable
from kshot.registry.manifest import shortened
from kshot.registry.plugin import Factory, Key, Plugin
from kshot.registry.surroundings import kept

LARGEST = 20_000  # characters of a traceback

HERE = Path(__file__).parent
"""The folder of the registry, whose own frames say nothing about a plugin."""


def imported(plugin: Plugin, loaded: dict[Key, Factory], causes: dict[Key, BaseException]) -> Plugin:
    """Import a plugin and return it in the state that results; warn if the import changed the process.

    Args:
        plugin: the plugin.
        loaded: receives its factory, by its key, if it can be imported.
        causes: receives the exception, by its key, if it can't.
    """
    changed: list[str] = []
    try:
        with contextlib.nullcontext() if plugin.builtin else kept(changed.extend):
            loaded[plugin.key] = import_factory(plugin.target)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # SystemExit too: no plugin may end the process by being imported
        causes[plugin.key] = exc
        if isinstance(exc, Unavailable):
            return evolve(plugin, state="unavailable", reason=text_of(exc))
        if plugin.state != "ok":
            return plugin
        first = shortened(f"importing {plugin.target} raised {type(exc).__name__}: {text_of(exc)}".splitlines()[0])
        return evolve(plugin, state="broken", reason=f"{first}\n{traceback_of(exc)}")
    finally:
        if changed:
            warnings.warn(
                f"{plugin.who}: importing it changed {', '.join(changed)}, expected no side effects; it was "
                "restored; tell the authors of the plugin",
                stacklevel=4,
            )
    return evolve(plugin, state="ok", reason="")


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
