"""Call the hooks of an engine, store their states, and name the hook that raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kshot._engine.hook_specs import manager
from kshot.errors import HookError, KshotError
from kshot.registry import hook as build

if TYPE_CHECKING:
    from kshot.protocols import EngineView


class Hooks:
    """Call the hooks of one engine.

    Args:
        hooks: names of hook plugins, or objects; or {name: object}.
        engine: the engine, which each hook is given.
    """

    def __init__(self, hooks: Sequence[Any] | Mapping[str, Any], engine: EngineView) -> None:
        self.calling = False  # whether a hook is being called now
        self._engine = engine
        self._manager = manager()
        named = hooks.items() if isinstance(hooks, Mapping) else ((h if isinstance(h, str) else None, h) for h in hooks)
        for name, hook in named:
            self._manager.register(build(hook) if isinstance(hook, str) else hook, name or type(hook).__name__)

    def call(self, name: str, **arguments: Any) -> None:
        """Call every hook that implements ``name``.

        Raises:
            HookError: a hook raised; the message names it. Errors of kshot itself propagate unchanged.
        """
        caller = getattr(self._manager.hook, name)
        implementations = caller.get_hookimpls()
        if not implementations:
            return
        was_calling, self.calling = self.calling, True  # calls nest: a hook may evaluate
        try:
            caller(engine=self._engine, **arguments)
        except KshotError:
            raise
        except Exception as error:
            who = _raising(implementations, error)
            raise HookError(f"hook {who!r} raised in {name}: {error!r}") from error
        finally:
            self.calling = was_calling

    def progress(self, episodes: int) -> Callable[[int], None]:
        """Return a function for an evaluation of ``episodes`` episodes to call with the number that are done."""
        return lambda done: self.call("evaluation_progress", done=done, episodes=episodes)

    def end(self, iteration: int, error: BaseException | None) -> None:
        """Call ``run_end``. If training ended with an error, an error of a hook must not hide it and is dropped."""
        try:
            self.call("run_end", iteration=iteration, error=error)
        except Exception:
            if error is None:
                raise

    def named(self) -> dict[str, Any]:
        """Return the hooks by name."""
        return {name: hook for name, hook in self._manager.list_name_plugin() if hook is not None}

    def state(self) -> dict[str, Any]:
        """Return the states of the hooks that have one, by name."""
        named = self._manager.list_name_plugin()
        return {name: hook.state_dict() for name, hook in named if hook is not None and hasattr(hook, "state_dict")}

    def load(self, states: Mapping[str, Any]) -> None:
        """Restore the state of each hook that has one in ``states``."""
        for name, hook in self._manager.list_name_plugin():
            if hook is not None and hasattr(hook, "load_state_dict") and name in states:
                hook.load_state_dict(states[name])


def _raising(implementations: Sequence[Any], error: BaseException) -> str:
    """Return the name of the hook whose function is in the traceback."""
    codes = set()
    trace = error.__traceback__
    while trace is not None:
        codes.add(trace.tb_frame.f_code)
        trace = trace.tb_next
    named = [i.plugin_name for i in implementations if getattr(i.function, "__code__", None) in codes]
    return str(named[0]) if named else "unknown"
