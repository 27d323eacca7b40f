"""List plugins with their states, and build a component from the name and options of its plugin.

Plugins are found by their entry points and described by a static ``plugin.toml`` (see ``kshot.registry.manifest``).
Listing imports neither a plugin nor torch; a plugin is imported when it is first used. A broken plugin never affects
another one.
"""

from __future__ import annotations

import functools
import importlib
import os
import typing
from typing import TYPE_CHECKING, Any, TypeVar, overload

from attrs import evolve

from kshot.errors import PluginError, Unavailable, UnknownPluginError
from kshot.registry import names
from kshot.registry.discovery import STALE, devices, installed, preparations
from kshot.registry.ledger import Built, Ledger, recall
from kshot.registry.options import doc_of, options_of
from kshot.registry.plugin import LEADING, MEMORY_SIZES, Factory, Key, Plugin, PluginInfo, Plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch.nn import Module

    from kshot.preparing import Preparation
    from kshot.protocols import Backend, Learner, TaskDistribution
    from kshot.registry.building import BoundMemory, Builder
    from kshot.spec import TaskSpec


F = TypeVar("F", bound=Factory)


class Registry:
    """Store the plugins of one process.

    Entry points are read once, when they are first needed; ``refresh`` reads them again.
    """

    def __init__(self) -> None:
        self._installed: list[Plugin] | None = None  # as listed by entry points, before any was imported
        self._registered: dict[str, Plugin] = {}
        self._tried: dict[Key, Plugin] = {}  # after an attempt to import them
        self._loaded: dict[Key, Factory] = {}
        self._causes: dict[Key, BaseException] = {}  # the exceptions that made plugins unusable
        self._built: Ledger = {}
        self._preparations: dict[str, Factory] = {}  # functions registered in this process

    def __repr__(self) -> str:
        return f"<Registry: {self.plugins()!r}>"

    # -------------------- listing

    def plugins(self) -> tuple[Plugin, ...]:
        """Return all plugins, sorted by group and name, each in its present state.

        This imports none of them and never raises.

        Example:
            >>> import kshot
            >>> [(plugin.name, plugin.state) for plugin in kshot.plugins() if plugin.group == "backends"]
            [...('cpu', 'ok')...]
        """
        if self._installed is None:
            discovered = list(installed())
            self._installed = [plugin for plugin, _ in discovered]
            self._causes = {plugin.key: cause for plugin, cause in discovered if cause is not None}
        disabled = {name.strip() for name in os.environ.get("KSHOT_DISABLE", "").split(",")} - {""}
        listed = [
            evolve(plugin, state="disabled", reason="KSHOT_DISABLE names it")
            if disabled & {*plugin.names, plugin.distribution}
            else self._tried.get(plugin.key, plugin)
            for plugin in (*self._installed, *self._registered.values())
        ]
        # Plugins that claim the same name are refused, except a built-in one. A name beats an alias.
        claims = names.claims(plugin for plugin in listed if plugin.state != "disabled")
        judged = (self._judged(names.without_taken_aliases(plugin, claims), claims) for plugin in listed)
        return Plugins(sorted(judged, key=lambda plugin: (plugin.group, plugin.name, plugin.distribution)))

    def _judged(self, plugin: Plugin, claims: Mapping[str, list[Plugin]]) -> Plugin:
        """Return the plugin, in state ``duplicate`` if another plugin claims one of its names."""
        dispute = "" if plugin.state == "disabled" else names.dispute(plugin, claims)
        return evolve(plugin, state="duplicate", reason=dispute) if dispute else plugin

    def refresh(self) -> None:
        """Read the entry points again and forget failures, for example after a pip install in a running process."""
        importlib.invalidate_caches()
        self._installed = None
        for key in self._tried:
            self._loaded.pop(key, None)
        self._tried.clear()

    def find(self, name: str, group: str | None = None) -> Plugin:
        """Return the plugin with this name or alias, in whatever state it is.

        Raises:
            UnknownPluginError: no plugin (of this group) has this name.
            PluginError: it is an alias of several plugins.
        """
        if not isinstance(name, str):
            raise UnknownPluginError(f"got {type(name).__name__}, expected the name of a plugin; see kshot list")
        listed = self.plugins()
        named = [p for p in listed if p.name == name] or [p for p in listed if name in p.aliases]
        fitting = [p for p in named if group in (None, p.group)]
        if dispute := names.alias_dispute(name, fitting):
            raise PluginError(dispute)
        if not fitting:
            raise UnknownPluginError(names.unknown(name, group, named[0] if named else None, listed))
        # If several plugins claim the name, prefer a built-in one, and then one that is not disabled.
        return min(fitting, key=lambda p: (not p.builtin, p.state == "disabled"))

    def info(self, name: str) -> PluginInfo:
        """Return the options and the documentation of a plugin, which is imported for that.

        Raises:
            UnknownPluginError: no plugin has this name.
            PluginError: the plugin can't be used.

        Example:
            >>> import kshot
            >>> [option.name for option in kshot.info("cpu").options]
            ['precision', 'memory_format', 'threads', 'keep_freed_memory']
        """
        plugin, factory = self._get(name)
        options = options_of(factory, skip_positional=LEADING.get(plugin.group, 0))
        if plugin.group == "memories":
            # The learner that uses a memory chooses the sizes that the user leaves out.
            doc = "chosen by the learner if left out"
            options = tuple(
                evolve(o, required=False, default=None, doc=o.doc or doc) if o.name in MEMORY_SIZES else o
                for o in options
            )
        return PluginInfo(plugin, options, doc_of(factory).strip())

    # -------------------- importing

    def load(self, name: str, group: str | None = None) -> Factory:
        """Return the factory of a plugin, importing the plugin if needed.

        Raises:
            UnknownPluginError: no plugin has this name.
            Unavailable: something that the plugin needs, such as a device, is missing.
            PluginError: the plugin is in another state than ok; the original exception is chained.
        """
        return self._get(name, group)[1]

    def _get(self, name: str, group: str | None = None) -> tuple[Plugin, Factory]:
        plugin = self.find(name, group)
        # A stale entry point is imported too, since the error of the import is the best explanation.
        may_import = plugin.state == "ok" or plugin.reason.startswith(STALE)
        if may_import and plugin.key not in self._loaded and plugin.key not in self._tried:
            from kshot.registry.importing import imported  # here, as listing imports none

            plugin = self._tried[plugin.key] = imported(plugin, self._loaded, self._causes)
        if plugin.state != "ok":
            error = Unavailable if plugin.state == "unavailable" else PluginError
            raise error(plugin.refusal) from self._causes.get(plugin.key)
        return plugin, self._loaded[plugin.key]

    # -------------------- registering

    @overload
    def register(self, factory: F, /, *, name: str | None = ..., group: str | None = ...) -> F: ...

    @overload
    def register(
        self, factory: None = ..., /, *, name: str | None = ..., group: str | None = ...
    ) -> Callable[[F], F]: ...

    def register(self, factory: Any = None, /, *, name: str | None = None, group: str | None = None) -> Any:
        """Register a class or function of this process as a plugin, by a call or as a decorator.

        Registering a class or function with the same module and qualified name again, such as by running a notebook
        cell twice, replaces the earlier one.

        Args:
            factory: the class or function that builds the component.
            name: name of the plugin; by default the name of the class in kebab case (``MyLearner``: ``my-learner``).
            group: learners, tasks, memories, backends, hooks or encoders; by default recognised by the members of the
                class.

        Returns:
            ``factory``, or a decorator if it was not given.

        Raises:
            OptionError: the group can't be recognised, or name or group are not valid.
            PluginError: another plugin has the name.

        Example:
            >>> import kshot
            >>> from kshot.testing.sample_learner import NearestMean
            >>> _ = kshot.register(NearestMean, name="sample-learner")
            >>> kshot.info("sample-learner").plugin.group
            'learners'
        """
        if factory is None:
            return lambda decorated: self.register(decorated, name=name, group=group)
        from kshot.registry.registering import described  # here, as listing registers nothing

        new = described(factory, name, group)
        for plugin in self.plugins():
            again = not plugin.distribution and plugin.target == new.target
            if new.name == plugin.name and not again:
                own = new.target.rpartition(".")[2].rpartition(":")[2]
                raise PluginError(
                    f"register: the name {new.name!r} is taken by {plugin.who}; register {own} with another name="
                )
        self._registered[new.name] = new
        self._loaded[new.key] = factory
        return factory

    # -------------------- functions that prepare inputs

    def register_preparation(self, function: F) -> F:
        """Register a function of this process as one that prepares inputs; return it, so that this is a decorator.

        A distribution registers its functions by entry points of the group ``kshot.preparations`` instead:
        ``NAME = "module:function"``.
        """
        self._preparations[f"{function.__module__}:{function.__qualname__}"] = function
        return function

    def preparation(self, values: Mapping[str, Any]) -> Preparation:
        """Return a stored ``kshot.preparing.Preparation``; nothing is imported unless all its functions are registered.

        Raises:
            RunError: a function is not registered or can't be imported, or an option has the wrong type.
        """
        from kshot.preparing import Preparation
        from kshot.registry.importing import import_preparation
        from kshot.registry.prepared import checked_preparation

        installed = preparations()
        return Preparation.from_dict(
            values,
            known=lambda name: name in self._preparations or name in installed,
            build=lambda name, options: checked_preparation(
                name, self._preparations.get(name) or import_preparation(name), options
            ),
        )

    # -------------------- building

    def learner(self, name: str, spec: TaskSpec, /, *, seed: int | None = None, **options: Any) -> Learner:
        """Build a learner for tasks of this spec; it is returned in evaluation mode.

        Args:
            name: name of the plugin.
            spec: spec of the tasks, ``tasks.spec``.
            seed: seed of the initialisation, 0 by default. The random state of the process is not changed.
            options: options of the plugin. A learner, tasks or a memory among them is given by its name or as
                ``{"name": ..., **options}``.

        Raises:
            PluginError: the plugin is missing or can't be used.
            OptionError: options are unknown, missing or of the wrong type.
            MisfitError: the learner needs something that tasks of this spec do not provide.

        Example:
            >>> import kshot
            >>> from kshot.testing import sample_learner, sample_tasks
            >>> _ = kshot.register(sample_learner.NearestMean, name="sample-learner")
            >>> learner = kshot.learner("sample-learner", sample_tasks.classification().spec, width=8, seed=1)
            >>> learner.embedding
            Sequential(... Linear(in_features=6, out_features=8, bias=True) ...)
        """
        from kshot.randomness import as_seed  # imports torch, which a listing of plugins does without

        seed = as_seed(0 if seed is None else seed, name)
        learner = self._builder.build("learners", name, options, spec=spec, seed=seed)
        return typing.cast("Learner", learner)

    def tasks(self, name: str, /, **options: Any) -> TaskDistribution:
        """Build a task distribution.

        Args:
            name: name of the plugin.
            options: options of the plugin, such as ``way`` and ``shot``.

        Raises:
            PluginError, OptionError: see ``learner``.
            DataError: the data are missing or malformed.

        Example:
            >>> import kshot
            >>> from kshot.testing import sample_tasks
            >>> _ = kshot.register(sample_tasks.classification, name="sample-tasks", group="tasks")
            >>> kshot.tasks("sample-tasks", way=5).sample("train", [0, 1]).support.x.shape
            torch.Size([2, 10, 6])
        """
        return typing.cast("TaskDistribution", self._builder.build("tasks", name, options))

    @functools.cached_property
    def _builder(self) -> Builder:
        from kshot.registry.building import Builder  # imported late, since listing builds nothing

        return Builder(lambda group, name: self._get(name, group), self._built)

    def memory(self, name: str, /, **options: Any) -> BoundMemory:
        """Return a memory factory with these options, which a learner calls with the sizes that it needs.

        Args:
            name: name of the plugin.
            options: options of the plugin; sizes (``slots``, ``width``, ``reads``) among them override the learner's.

        Raises:
            PluginError, OptionError: see ``learner``.

        Example:
            >>> import torch, kshot
            >>> class SampleMemory(torch.nn.Module):
            ...     def __init__(self, slots: int, width: int, reads: int) -> None:
            ...         super().__init__()
            ...         self.interface_size, self.read_size = width, reads * width
            ...     def initial_state(self, batch_size):
            ...         return torch.zeros(batch_size, self.read_size)
            ...     def step(self, interface, state):
            ...         return state, interface.repeat(1, self.read_size // self.interface_size)
            >>> _ = kshot.register(SampleMemory)
            >>> memory = kshot.memory("sample-memory", width=4)(slots=8, width=16, reads=2)
            >>> memory.read_size
            8
        """
        return typing.cast("BoundMemory", self._builder.build("memories", name, options))

    def encoder(self, name: str, spec: TaskSpec, /, **options: Any) -> Module:
        """Build an encoder for inputs of tasks of this spec: a module from inputs [n, *input] to embeddings [n, D].

        Args:
            name: name of the plugin, or ``NAME:MODEL``, which is short for the option ``model``.
            spec: spec of the tasks, ``tasks.spec``.
            options: options of the plugin.

        Raises:
            PluginError, OptionError: see ``learner``.
            DataError: the encoder does not accept inputs of this shape, or its weights are missing.

        Example:
            >>> import torch, kshot
            >>> from kshot.testing import sample_tasks
            >>> def pixels(spec: kshot.TaskSpec) -> torch.nn.Module:
            ...     return torch.nn.Flatten()
            >>> _ = kshot.register(pixels, group="encoders")
            >>> kshot.encoder("pixels", sample_tasks.classification().spec)(torch.zeros(2, 6)).shape
            torch.Size([2, 6])
        """
        return typing.cast("Module", self._builder.encoder(name, options, spec))

    def default_backend(self, options: Collection[str] = ()) -> str:
        """Return the name of the backend to use if none is named; see ``kshot.registry.devices``."""
        from kshot.registry.devices import first_present  # here, as listing imports no plugin

        return first_present(devices(), self.load, options)

    def backend(self, name: str | None = None, /, **options: Any) -> Backend:
        """Build a backend; without a name, the one of a device that is present and has a plugin, else the CPU.

        Raises:
            Unavailable: the device is missing.
            PluginError, OptionError: see ``learner``.

        Example:
            >>> import kshot
            >>> kshot.backend("cpu", precision="float32").device
            device(type='cpu')
        """
        return typing.cast("Backend", self._builder.build("backends", name or self.default_backend(options), options))

    def hook(self, name: str, /, **options: Any) -> Any:
        """Build the object of a hook plugin, for the argument ``hooks`` of ``kshot.Engine``.

        Raises:
            PluginError, OptionError: see ``learner``.

        Example:
            >>> import kshot
            >>> kshot.hook("progress", seconds=60).seconds
            60.0
        """
        return self._builder.build("hooks", name, options)

    def built(self, component: object) -> Built | None:
        """Return how a component was built, or None if it was not built by name in this process."""
        return recall(self._built, component)

    def rebuild(self, component: object, spec: TaskSpec | None = None, /, **changed: Any) -> Any:
        """Build a new component like this one, with some options changed; a learner gets the same seed.

        Nested components that were built by name are built anew, and modules among the options are copied, so that the
        two components share no parameters. The parameters are not copied; use ``load_state_dict`` for that.

        Raises:
            OptionError: the component was not built by name, or options are wrong.
        """
        return self._builder.rebuild(component, spec, changed)
