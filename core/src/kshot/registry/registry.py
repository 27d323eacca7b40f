"""Which plugins there are, what state each is in, and how one is built from its name and options.

Plain entry points find plugins; a static ``plugin.toml`` (see ``kshot.registry.manifest``) describes them. Listing
imports neither a plugin nor torch; a plugin is imported when it is asked for. One broken plugin never stops
another.
"""

from __future__ import annotations

import functools
import importlib
import os
import traceback
import typing
from typing import TYPE_CHECKING, Any, TypeVar, overload

from attrs import evolve

from kshot.errors import PluginError, RunError, Unavailable, UnknownPluginError
from kshot.registry import names
from kshot.registry.discovery import STALE, installed, preparations
from kshot.registry.ledger import Built, Ledger, recall
from kshot.registry.options import options_of
from kshot.registry.plugin import LEADING, MEMORY_SIZES, Factory, Key, Plugin, PluginInfo
from kshot.registry.registering import described

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kshot.preparing import Preparation
    from kshot.protocols import Backend, Learner, TaskDistribution
    from kshot.registry.building import BoundMemory, Builder
    from kshot.spec import TaskSpec


F = TypeVar("F", bound=Factory)


class Registry:
    """The plugins of one process.

    Entry points are read once, when first needed; ``refresh`` reads them again.
    """

    def __init__(self) -> None:
        self._installed: list[Plugin] | None = None  # as found, before any was imported
        self._registered: dict[str, Plugin] = {}
        self._tried: dict[Key, Plugin] = {}  # as importing left them
        self._loaded: dict[Key, Factory] = {}
        self._causes: dict[Key, BaseException] = {}  # why a plugin can't be had, where an exception said so
        self._built: Ledger = {}
        self._preparations: dict[str, Factory] = {}  # registered in this process

    # -------------------- listing

    def plugins(self) -> tuple[Plugin, ...]:
        """All plugins by group and name, each in its present state.

        Imports none of them, and never raises.
        """
        if self._installed is None:
            found = list(installed())
            self._installed = [plugin for plugin, _ in found]
            self._causes = {plugin.key: cause for plugin, cause in found if cause is not None}
        disabled = {name.strip() for name in os.environ.get("KSHOT_DISABLE", "").split(",")} - {""}
        listed = [
            evolve(plugin, state="disabled", reason="KSHOT_DISABLE names it")
            if disabled & {*plugin.names, plugin.distribution}
            else self._tried.get(plugin.key, plugin)
            for plugin in (*self._installed, *self._registered.values())
        ]
        claims = names.claims(plugin for plugin in listed if plugin.state != "disabled")
        judged = (self._judged(plugin, claims) for plugin in listed)
        return tuple(sorted(judged, key=lambda plugin: (plugin.group, plugin.name, plugin.distribution)))

    def _judged(self, plugin: Plugin, claims: Mapping[str, list[Plugin]]) -> Plugin:
        dispute = "" if plugin.state == "disabled" else names.dispute(plugin, claims)
        return evolve(plugin, state="duplicate", reason=dispute) if dispute else plugin

    def refresh(self) -> None:
        """Read the entry points again and forget what failed: after a pip install in a running process."""
        importlib.invalidate_caches()
        self._installed = None
        for key in self._tried:
            self._loaded.pop(key, None)
        self._tried.clear()

    def find(self, name: str, group: str | None = None) -> Plugin:
        """The plugin of this name or alias, in whatever state it is.

        Raises:
            UnknownPluginError: nothing (of this group) has this name.
        """
        listed = self.plugins()
        named = [p for p in listed if p.name == name] or [p for p in listed if name in p.aliases]
        fitting = [p for p in named if group in (None, p.group)]
        if not fitting:
            raise UnknownPluginError(names.unknown(name, group, named[0] if named else None, listed))
        # Among claims of one name, the built-in stays, and a disabled one tells nothing.
        return min(fitting, key=lambda p: (not p.builtin, p.state == "disabled"))

    def info(self, name: str) -> PluginInfo:
        """A plugin's options and documentation; imports it. Raises PluginError where it can't be had."""
        plugin, factory = self._get(name)
        options = options_of(factory, skip_positional=LEADING.get(plugin.group, 0))
        if plugin.group == "memories":
            doc = "the learner's choice where left out"
            options = tuple(
                evolve(o, required=False, default=None, doc=o.doc or doc) if o.name in MEMORY_SIZES else o
                for o in options
            )
        return PluginInfo(plugin, options, (getattr(factory, "__doc__", None) or "").strip())

    # -------------------- importing

    def load(self, name: str, group: str | None = None) -> Factory:
        """The factory of a plugin, imported now if it was not.

        Raises:
            UnknownPluginError: nothing has this name.
            Unavailable: something it needs is not here.
            PluginError: any other state than ok; the original cause is chained.
        """
        return self._get(name, group)[1]

    def _get(self, name: str, group: str | None = None) -> tuple[Plugin, Factory]:
        plugin = self.find(name, group)
        # Of a stale entry point the import's own error is the cause to show.
        may_import = plugin.state == "ok" or plugin.reason.startswith(STALE)
        if may_import and plugin.key not in self._loaded and plugin.key not in self._tried:
            plugin = self._tried[plugin.key] = self._imported(plugin)
        if plugin.state != "ok":
            error = Unavailable if plugin.state == "unavailable" else PluginError
            raise error(plugin.refusal) from self._causes.get(plugin.key)
        return plugin, self._loaded[plugin.key]

    def _imported(self, plugin: Plugin) -> Plugin:
        try:
            self._loaded[plugin.key] = _import(plugin.target)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # SystemExit too: no plugin may end the process by being imported
            self._causes[plugin.key] = exc
            if isinstance(exc, Unavailable):
                return evolve(plugin, state="unavailable", reason=str(exc))
            if plugin.state != "ok":
                return plugin
            first = f"importing {plugin.target} raised {type(exc).__name__}: {exc}".splitlines()[0]
            return evolve(plugin, state="broken", reason=f"{first}\n{_traceback(exc)}")
        return evolve(plugin, state="ok", reason="")

    # -------------------- registering

    @overload
    def register(self, factory: F, /, *, name: str | None = ..., group: str | None = ...) -> F: ...

    @overload
    def register(
        self, factory: None = ..., /, *, name: str | None = ..., group: str | None = ...
    ) -> Callable[[F], F]: ...

    def register(self, factory: Any = None, /, *, name: str | None = None, group: str | None = None) -> Any:
        """Make a class or function of this process a plugin: as a call, or as a decorator with or without
        options.

        Args:
            factory: what builds the component.
            name: what it is asked for by; the class's name in kebab case where left out (MyLearner:
                my-learner).
            group: learners, tasks, memories, backends or hooks; told from the class's members where left out.

        Registering again what has the same qualified name and module (a notebook cell that is run again)
        replaces it.

        Raises:
            OptionError: the group can't be told, or name or group are not possible ones.
            PluginError: another plugin has the name.
        """
        if factory is None:
            return lambda decorated: self.register(decorated, name=name, group=group)
        made = described(factory, name, group)
        for plugin in self.plugins():
            again = not plugin.distribution and plugin.target == made.target
            if made.name in plugin.names and not again:
                own = made.target.rpartition(".")[2].rpartition(":")[2]
                raise PluginError(
                    f"register: {made.name!r} is taken by {plugin.who}; register {own} with another name="
                )
        self._registered[made.name] = made
        self._loaded[made.key] = factory
        return factory

    # -------------------- functions that prepare inputs

    def register_preparation(self, function: F) -> F:
        """Register a function of this process as preparing inputs; returns it, so that it serves as a decorator.

        A distribution registers its functions by entry points of the group ``kshot.preparations`` instead:
        ``NAME = "module:function"``.
        """
        self._preparations[f"{function.__module__}:{function.__qualname__}"] = function
        return function

    def preparation(self, values: Mapping[str, Any]) -> Preparation:
        """Read a stored ``kshot.preparing.Preparation``. Nothing is imported unless all it names is registered.

        Raises:
            RunError: a function is not registered or can't be imported, or an option has the wrong type.
        """
        from kshot.preparing import Preparation
        from kshot.registry.building import checked_preparation

        installed = preparations()
        return Preparation.from_dict(
            values,
            known=lambda name: name in self._preparations or name in installed,
            build=lambda name, options: checked_preparation(
                name, self._preparations.get(name) or _import_registered(name), options
            ),
        )

    # -------------------- building

    def learner(self, name: str, spec: TaskSpec, /, *, seed: int | None = None, **options: Any) -> Learner:
        """A learner for tasks of this spec.

        Args:
            name: of the plugin.
            spec: of the tasks: ``tasks.spec``.
            seed: of the initialisation; 0 where left out. The process's own random state is left as it was.
            options: of the plugin; a learner, tasks or memory among them by name, or as ``{"name": ...,
                ...}``.

        Raises:
            PluginError: the plugin can't be had.
            OptionError: options are unknown, missing or ill-typed.
            MisfitError: the learner's class needs what tasks of this spec do not provide.
        """
        from kshot.randomness import as_seed  # imports torch, which a listing of plugins does without

        seed = as_seed(0 if seed is None else seed, name)
        made = self._builder.build("learners", name, options, spec=spec, seed=seed)
        return typing.cast("Learner", made)

    def tasks(self, name: str, /, **options: Any) -> TaskDistribution:
        """A task distribution. Raises PluginError, OptionError, and DataError where its data are bad."""
        return typing.cast("TaskDistribution", self._builder.build("tasks", name, options))

    @functools.cached_property
    def _builder(self) -> Builder:
        from kshot.registry.building import Builder  # here, since listing builds nothing

        return Builder(lambda group, name: self._get(name, group), self._built)

    def memory(self, name: str, /, **options: Any) -> BoundMemory:
        """A memory factory with these options, for a learner to call with sizes.

        Raises PluginError, OptionError.
        """
        return typing.cast("BoundMemory", self._builder.build("memories", name, options))

    def backend(self, name: str = "cpu", /, **options: Any) -> Backend:
        """A backend. Raises PluginError (Unavailable without the device), OptionError."""
        return typing.cast("Backend", self._builder.build("backends", name, options))

    def hook(self, name: str, /, **options: Any) -> Any:
        """A hook plugin's object for the engine. Raises PluginError, OptionError."""
        return self._builder.build("hooks", name, options)

    def built(self, component: object) -> Built | None:
        """How a component was built, or None where it was not built by name here."""
        return recall(self._built, component)

    def rebuild(self, component: object, spec: TaskSpec | None = None, /, **changed: Any) -> Any:
        """A new component like this one, with some options changed; a learner with the same seed.

        Nested components that were built by name are built anew; modules among the options are copied, so
        that the two share no parameters. Parameters are not carried over: ``load_state_dict`` does that.

        Raises:
            OptionError: the component was not built by name, or options are wrong.
        """
        return self._builder.rebuild(component, spec, changed)


def _import(target: str) -> Factory:
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{target} is {found!r}, neither a class nor a function")
    return typing.cast(Factory, found)


def _import_registered(target: str) -> Factory:
    try:
        return _import(target)
    except Exception as exc:
        raise RunError(
            f"inputs were prepared by {target}, which can't be imported ({type(exc).__name__}: {exc}); install the "
            "version of the plugin that the run was made with"
        ) from exc


def _traceback(exc: BaseException) -> str:
    """The traceback from where the plugin's own code begins."""
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(exc), exc, frames)).rstrip()
