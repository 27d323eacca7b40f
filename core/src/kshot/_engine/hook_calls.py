"""Call the hooks of an engine, store their states, and name the hook that raises."""

from __future__ import annotations

import dis
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kshot._engine.hook_checks import check_hook, named_hooks
from kshot._engine.hook_specs import manager
from kshot._engine.states import storable
from kshot.errors import HookError, KshotError, RunError
from kshot.registry import hook as build

if TYPE_CHECKING:
    from kshot.protocols import EngineView


class Hooks:
    """Call the hooks of one engine.

    Args:
        hooks: names of hook plugins, or objects; or {name: object}.
        engine: the engine, which each hook is given.

    Raises:
        OptionError: a hook would hear nothing or could not be called; the message names it, its method and argument.
    """

    def __init__(self, hooks: Sequence[Any] | Mapping[str, Any], engine: EngineView) -> None:
        self.calling = False  # whether a hook is being called now
        self._engine = engine
        self._manager = manager()
        for name, given in named_hooks(hooks):
            hook = build(given) if isinstance(given, str) else given
            check_hook(name, hook)
            self._manager.register(hook, name)

    def call(self, name: str, **arguments: Any) -> None:
        """Call every hook that implements ``name``.

        Raises:
            HookError: a hook raised, be it SystemExit; the message names it. Errors of kshot itself propagate, with a
                note that names the hook, and so does KeyboardInterrupt, unless a hook raised it.
        """
        if name == "run_start" and self._engine.folder is not None:
            self.state()  # a state that can't be saved is refused now, and not at the first checkpoint
        self._call(getattr(self._manager.hook, name), name, arguments)

    def _call(self, caller: Any, name: str, arguments: Mapping[str, Any]) -> None:
        implementations = caller.get_hookimpls()
        if not implementations:
            return
        was_calling, self.calling = self.calling, True  # calls nest: a hook may evaluate
        try:
            caller(engine=self._engine, **arguments)
        except KshotError as error:
            error.add_note(f"while hook {_raising(implementations, error)!r} was called at {name}")
            raise
        except BaseException as error:  # SystemExit too: a hook that exits must not pass for a training that succeeded
            if isinstance(error, KeyboardInterrupt) and not _raised_by(implementations, error):
                raise
            who = _raising(implementations, error)
            raise HookError(f"hook {who!r} raised in {name}: {error!r}") from error
        finally:
            self.calling = was_calling

    def progress(self, episodes: int) -> Callable[[int], None]:
        """Return a function for an evaluation of ``episodes`` episodes to call with the number that are done."""
        return lambda done: self.call("evaluation_progress", done=done, episodes=episodes)

    def end(self, iteration: int, error: BaseException | None) -> None:
        """Call ``run_end`` of every hook, also if that of another one raises, so that each releases its resources.

        If training ended with an error, an error of a hook must not hide it and is dropped.
        """
        hooks = [hook for _, hook in self._listed()]
        first: Exception | None = None
        for hook in reversed(hooks):  # the last one that was given is called first, as at all other times
            only = self._manager.subset_hook_caller("run_end", [other for other in hooks if other is not hook])
            try:
                self._call(only, "run_end", {"iteration": iteration, "error": error})
            except Exception as raised:
                first = first or raised
        if first is not None and error is None:
            raise first

    def _listed(self) -> list[tuple[str, Any]]:
        return [(name, hook) for name, hook in self._manager.list_name_plugin() if hook is not None]

    def named(self) -> dict[str, Any]:
        """Return the hooks by name."""
        return dict(self._listed())

    def state(self) -> dict[str, Any]:
        """Return the states of the hooks that have one, by name.

        Raises:
            HookError: a hook raised, or its state has a value that can't be read from a checkpoint.
        """
        states = {}
        for name, hook in self._listed():
            if hasattr(hook, "state_dict"):
                try:
                    state = hook.state_dict()
                except Exception as error:
                    raise HookError(f"hook {name!r} raised in state_dict: {error!r}") from error
                try:
                    states[name] = storable(state, f"hook {name!r}")
                except RunError as error:
                    raise HookError(str(error)) from error
        return states

    def load(self, states: Mapping[str, Any]) -> None:
        """Restore the state of each hook that has one in ``states``.

        Raises:
            HookError: a hook raised.
        """
        for name, hook in self._listed():
            if hasattr(hook, "load_state_dict") and name in states:
                try:
                    hook.load_state_dict(states[name])
                except KshotError:
                    raise
                except Exception as error:
                    raise HookError(
                        f"hook {name!r} raised in load_state_dict: {error!r}; resume with the hook that the run was "
                        "made with, or without it"
                    ) from error


# -------------------- who raised


def _frames(error: BaseException) -> list[TracebackType]:
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    return frames


def _raising(implementations: Sequence[Any], error: BaseException) -> str:
    """Return the name of the hook whose function is in the traceback."""
    candidates = []
    for trace in _frames(error):
        for implementation in implementations:
            if getattr(implementation.function, "__code__", None) is trace.tb_frame.f_code:
                # Hooks of one class share their code; the object that the method was called on tells them apart.
                first = trace.tb_frame.f_locals.get(next(iter(trace.tb_frame.f_code.co_varnames), ""))
                candidates.append((first is not getattr(implementation.function, "__self__", None), implementation))
    if not candidates:
        return str(implementations[0].plugin_name) if len(implementations) == 1 else "unknown"
    return str(min(candidates, key=lambda candidate: candidate[0])[1].plugin_name)


def _raised_by(implementations: Sequence[Any], error: BaseException) -> bool:
    """Return whether a hook's own code has a statement that raised the error, unlike Ctrl-C while a hook was called."""
    frames = _frames(error)
    codes = [getattr(implementation.function, "__code__", None) for implementation in implementations]
    files = {code.co_filename for code in codes if code is not None}
    last = frames[-1]
    instruction = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]]
    return instruction == "RAISE_VARARGS" and last.tb_frame.f_code.co_filename in files
