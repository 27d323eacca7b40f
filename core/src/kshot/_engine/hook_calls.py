"""How the engine calls its hooks: by name, with their state, and naming the one that raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kshot._engine.hook_specs import manager
from kshot.errors import HookError, KshotError
from kshot.registry import hook as build

if TYPE_CHECKING:
    from kshot.protocols import EngineView


class Hooks:
    """The hooks of one engine.

    Args:
        hooks: names to look up in the registry, or objects; or {name: object}.
        engine: what each hook is told.
    """

    def __init__(self, hooks: Sequence[Any] | Mapping[str, Any], engine: EngineView) -> None:
        self.calling = False  # whether one of them is being called
        self._engine = engine
        self._manager = manager()
        named = hooks.items() if isinstance(hooks, Mapping) else ((h if isinstance(h, str) else None, h) for h in hooks)
        for name, hook in named:
            self._manager.register(build(hook) if isinstance(hook, str) else hook, name or type(hook).__name__)

    def call(self, name: str, **arguments: Any) -> None:
        """Tell every hook that implements ``name``.

        Raises:
            HookError: one of them raised; names it. Errors of kshot's own pass through.
        """
        caller = getattr(self._manager.hook, name)
        implementations = caller.get_hookimpls()
        if not implementations:
            return
        within, self.calling = self.calling, True
        try:
            caller(engine=self._engine, **arguments)
        except KshotError:
            raise
        except Exception as error:
            who = _guilty(implementations, error)
            raise HookError(f"hook {who!r} raised in {name}: {error!r}") from error
        finally:
            self.calling = within

    def progress(self, episodes: int) -> Callable[[int], None]:
        """Return what an evaluation of ``episodes`` calls with the number that is done."""
        return lambda done: self.call("evaluation_progress", done=done, episodes=episodes)

    def end(self, iteration: int, error: BaseException | None) -> None:
        """``run_end``; after an error of the run, an error of a hook does not hide it."""
        try:
            self.call("run_end", iteration=iteration, error=error)
        except Exception:
            if error is None:
                raise

    def named(self) -> dict[str, Any]:
        """Return the hooks by name."""
        return {name: hook for name, hook in self._manager.list_name_plugin() if hook is not None}

    def state(self) -> dict[str, Any]:
        """The states of the hooks that have one, by name."""
        named = self._manager.list_name_plugin()
        return {name: hook.state_dict() for name, hook in named if hook is not None and hasattr(hook, "state_dict")}

    def load(self, states: Mapping[str, Any]) -> None:
        """Give each hook back its state."""
        for name, hook in self._manager.list_name_plugin():
            if hook is not None and hasattr(hook, "load_state_dict") and name in states:
                hook.load_state_dict(states[name])


def _guilty(implementations: Sequence[Any], error: BaseException) -> str:
    """The plugin whose function is in the traceback."""
    frames = set()
    trace = error.__traceback__
    while trace is not None:
        frames.add(trace.tb_frame.f_code)
        trace = trace.tb_next
    named = [i.plugin_name for i in implementations if getattr(i.function, "__code__", None) in frames]
    return str(named[0]) if named else "unknown"
