"""Define the hooks, which are called during a run. A hook plugin implements any of them with ``@kshot.hookimpl``.

Hooks observe a run and change nothing in it. A hook with a state has the methods ``state_dict()`` and
``load_state_dict()``; its state is stored in checkpoints under its name, and consists of tensors, numbers, strings, and
lists, tuples and dicts of them. An engine refuses a hook that would hear nothing: one without a decorated method, or
with a method or an argument that is not listed below.

Example of ``kshot.hookimpl``:
    >>> import kshot
    >>> from kshot.testing import sample_learner, sample_tasks
    >>> class Printer:
    ...     @kshot.hookimpl
    ...     def iteration_end(self, engine, iteration, metrics):
    ...         print(iteration, sorted(metrics))
    >>> tasks = sample_tasks.classification()
    >>> engine = kshot.Engine(sample_learner.NearestMean(tasks.spec), tasks, hooks=[Printer()])
    >>> _ = engine.train(iterations=2)
    1 ['loss']
    2 ['loss']
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from kshot._engine.result import Result
    from kshot.protocols import EngineView

hookspec = pluggy.HookspecMarker("kshot")
hookimpl = pluggy.HookimplMarker("kshot")
"""Decorator that marks a method of a hook plugin as implementing the hook of that name; see the module's example."""


class Specs:
    """Declare every hook of the engine. A method may leave out arguments that it does not use."""

    @hookspec
    def run_start(self, engine: EngineView, iteration: int, iterations: int) -> None:
        """Called before training starts at ``iteration`` (more than 0 if resumed), to end at ``iterations``."""

    @hookspec
    def iteration_end(self, engine: EngineView, iteration: int, metrics: Mapping[str, float]) -> None:
        """Called after each outer step; ``iteration`` have been taken in all, and ``metrics`` are plain numbers."""

    @hookspec
    def evaluation_end(self, engine: EngineView, iteration: int, result: Result) -> None:
        """Called after an evaluation; ``iteration`` outer steps had been taken before it."""

    @hookspec
    def evaluation_progress(self, engine: EngineView, done: int, episodes: int) -> None:
        """Called during an evaluation; ``done`` of ``episodes`` episodes have been evaluated."""

    @hookspec
    def checkpoint_saved(self, engine: EngineView, iteration: int, path: Path) -> None:
        """Called after a checkpoint was written to ``path`` and flushed to the disk."""

    @hookspec
    def run_end(self, engine: EngineView, iteration: int, error: BaseException | None) -> None:
        """Called once after each ``run_start`` when training ends, to release resources.

        Args:
            error: the exception that ended training, or None.
        """


def is_property(hook: Any, attribute: str) -> bool:
    """Return whether an attribute computes its value, such that looking at it may raise or take time."""
    static = inspect.getattr_static(hook, attribute, None)
    return hasattr(type(static), "__get__") and not callable(static) and not isinstance(static, classmethod)


class _Manager(pluggy.PluginManager):
    """Register hooks without evaluating their properties, which may raise before a run has begun."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> pluggy.HookimplOpts | None:
        """Return how a method implements a hook, or None if it does not."""
        return None if is_property(plugin, name) else super().parse_hookimpl_opts(plugin, name)


def manager() -> pluggy.PluginManager:
    """Return a new pluggy plugin manager that knows these hooks."""
    plugins = _Manager("kshot")
    plugins.add_hookspecs(Specs)
    return plugins


__all__ = ["Specs", "hookimpl", "hookspec", "manager"]
