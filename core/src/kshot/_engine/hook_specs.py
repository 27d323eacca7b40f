"""The life cycle of a run, as pluggy hooks. A hook plugin implements any of these with ``@kshot.hookimpl``.

Hooks watch; they change nothing in the run. One with state of its own has ``state_dict()`` and ``load_state_dict()``,
and its state travels in the checkpoint under its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from kshot._engine.result import Result
    from kshot.protocols import EngineView

hookspec = pluggy.HookspecMarker("kshot")
hookimpl = pluggy.HookimplMarker("kshot")


class Specs:
    """Every extension point of the engine."""

    @hookspec
    def run_start(self, engine: EngineView, iteration: int, iterations: int) -> None:
        """Training begins at ``iteration`` (above 0 when resumed) and will end at ``iterations``."""

    @hookspec
    def iteration_end(self, engine: EngineView, iteration: int, metrics: Mapping[str, float]) -> None:
        """Outer step number ``iteration`` (from 0) was taken; ``metrics`` are plain numbers."""

    @hookspec
    def evaluation_end(self, engine: EngineView, iteration: int, result: Result) -> None:
        """An evaluation is done; ``iteration`` outer steps had been taken."""

    @hookspec
    def evaluation_progress(self, engine: EngineView, done: int, episodes: int) -> None:
        """``done`` of ``episodes`` are evaluated."""

    @hookspec
    def checkpoint_saved(self, engine: EngineView, iteration: int, path: Path) -> None:
        """A checkpoint is safely on disk."""

    @hookspec
    def run_end(self, engine: EngineView, iteration: int, error: BaseException | None) -> None:
        """Training ended, by ``error`` if not None. Release what was opened; called exactly once a ``run_start``."""


def manager() -> pluggy.PluginManager:
    """A plugin manager that knows the specs."""
    made = pluggy.PluginManager("kshot")
    made.add_hookspecs(Specs)
    return made


__all__ = ["Specs", "hookimpl", "hookspec", "manager"]
