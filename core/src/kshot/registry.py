"""Which plugins there are, what state each is in, and how one is built from its name and options.

Plain entry points find plugins; a static ``plugin.toml`` (see ``kshot.manifest``) describes them. Listing
imports neither a plugin nor torch; a plugin is imported when it is asked for. One broken plugin never stops
another.

The functions of this module work on one registry of the process; ``Registry()`` makes another.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import traceback
import typing
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from attrs import evolve, field, frozen

from kshot.errors import KshotError, MisfitError, OptionError, PluginError, Unavailable, UnknownPluginError
from kshot.manifest import API_LEVEL, GROUPS, Entry, Manifest, ManifestError
from kshot.manifest import parse as parse_manifest
from kshot.manifest import read as read_manifest
from kshot.options import Option, Raw, did_you_mean, options_of, parse_literal, takes_positional, validate

if TYPE_CHECKING:
    from kshot.protocols import Backend, Learner, TaskDistribution
    from kshot.spec import TaskSpec

__all__ = [
    "API_LEVEL",
    "GROUPS",
    "BoundMemory",
    "Built",
    "Plugin",
    "PluginInfo",
    "Registry",
    "backend",
    "built",
    "default",
    "find",
    "hook",
    "info",
    "learner",
    "load",
    "memory",
    "plugins",
    "rebuild",
    "refresh",
    "register",
    "tasks",
]

State = Literal["ok", "unavailable", "incompatible", "broken", "duplicate", "disabled"]
F = TypeVar("F", bound=Callable[..., Any])

SINGULAR = {
    "learners": "learner",
    "tasks": "tasks",
    "memories": "memory",
    "backends": "backend",
    "hooks": "hook",
}
_A = {
    "learners": "a learner",
    "tasks": "tasks",
    "memories": "a memory",
    "backends": "a backend",
    "hooks": "a hook",
}

# What tells the members of a group from one another; also what a factory must return. The last two of each
# make the group; `spec` and `device` may exist on instances only.
_MEMBERS = {
    "learners": ("meta_gradient", "adapt"),
    "tasks": ("spec", "sample"),
    "memories": ("initial_state", "step"),
    "backends": ("place", "autocast"),
}
# How many leading parameters of a factory are arguments of the protocol and no options.
_LEADING = {"learners": 1, "tasks": 0, "memories": 0, "backends": 0, "hooks": 0}
_MEMORY_SIZES = ("slots", "width", "reads")
# Parameters annotated with one of these take another plugin, by name or built.
_NESTED = {
    "Learner": "learners",
    "TaskDistribution": "tasks",
    "MemoryFactory": "memories",
    "Backend": "backends",
}
_STALE = "stale entry point"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_INSTALL_AS = {"sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml"}


@frozen
class Plugin:
    """One plugin as it is listed.

    The first line of ``reason`` is enough for a list; a traceback may follow.
    """

    name: str
    group: str
    distribution: str  # '' for what was registered in this process
    version: str
    target: str  # 'module:attribute'
    state: State = "ok"
    reason: str = ""  # '' when ok
    summary: str = ""
    kinds: tuple[str, ...] = ()
    lifecycle: str = "stable"
    api_level: int = 1
    aliases: tuple[str, ...] = ()
    builtin: bool = False

    @property
    def who(self) -> str:
        """The plugin in an error message: ``learner 'protonet' (kshot-protonet 0.1.0)``."""
        return f"{SINGULAR[self.group]} {self.name!r} ({self.origin})"

    @property
    def origin(self) -> str:
        """Distribution and version, or where the object was registered."""
        return f"{self.distribution} {self.version}".strip() or f"registered from {self.target}"


@frozen
class PluginInfo:
    """A plugin and what its factory tells once it is imported."""

    plugin: Plugin
    options: tuple[Option, ...]
    doc: str


@frozen
class Built:
    """How a component was built. ``options`` are plain values that JSON and TOML can write, None apart in
    TOML.

    ``portable`` is False where an option was an object that plain values can't rebuild (an encoder, a
    function); it then stands in ``options`` as text in angle brackets.
    """

    group: str
    name: str
    options: Mapping[str, Any]
    distribution: str
    version: str
    portable: bool = True
    seed: int | None = None  # of a learner's initialisation
    given: Mapping[str, Any] = field(factory=dict, repr=False)  # the same options as they were given

    def plain(self) -> dict[str, Any]:
        """The nested form, which building takes again: ``{"name": "reptile", "inner_lr": 0.001}``."""
        return {"name": self.name, **self.options}


@frozen(eq=False)
class BoundMemory:
    """A memory factory with its options: what ``memory(name, **options)`` returns and a learner is given.

    The learner calls it as ``factory(slots, width, reads)`` with the sizes it would choose; sizes among the
    options are the user's word and win. Read the actual sizes off the memory (``interface_size``,
    ``read_size``).
    """

    plugin: Plugin
    factory: Callable[..., Any]
    options: Mapping[str, Any]

    def __call__(self, slots: int, width: int, reads: int, **options: Any) -> Any:
        sizes = {"slots": slots, "width": width, "reads": reads}
        wanted = {**sizes, **options, **self.options}
        lead = [wanted.pop(size) for size in _MEMORY_SIZES]
        made = _call(self.plugin.who, self.factory, *lead, **wanted)
        _check_members(self.plugin, made)
        return made


def _builtin(group: str, name: str, target: str, summary: str) -> Plugin:
    return Plugin(name, group, "kshot", "", target, summary=summary, builtin=True)


_BUILTINS = (
    _builtin("backends", "cpu", "kshot.backends:Cpu", "The processor of this machine"),
    _builtin("hooks", "progress", "kshot.hooks:Progress", "A progress bar"),
    _builtin("hooks", "metrics", "kshot.hooks:MetricsLog", "Metrics as JSON lines in the run folder"),
)
_BUILTIN_NAMES = frozenset(plugin.name for plugin in _BUILTINS)
_Key = tuple[str, str, str]  # distribution, group, name


def _key(plugin: Plugin) -> _Key:
    return plugin.distribution, plugin.group, plugin.name


class Registry:
    """The plugins of one process.

    Entry points are read once, when first needed; ``refresh`` reads them again.
    """

    def __init__(self) -> None:
        self._found: tuple[Plugin, ...] | None = None
        self._causes: dict[_Key, BaseException] = {}  # why a plugin can't be had, where an exception said so
        self._failed: dict[_Key, tuple[State, str]] = {}
        self._loaded: dict[_Key, Callable[..., Any]] = {}
        self._registered: dict[str, tuple[Plugin, Callable[..., Any]]] = {}
        self._built: dict[int, tuple[Callable[[], object], Built]] = {}

    # -------------------- listing

    def plugins(self) -> tuple[Plugin, ...]:
        """All plugins by group and name, each in its present state.

        Imports none of them, and never raises.
        """
        disabled = {name.strip() for name in os.environ.get("KSHOT_DISABLE", "").split(",")} - {""}
        listed = [*self._scan(), *(plugin for plugin, _ in self._registered.values())]
        enabled = [p for p in listed if not disabled & {p.name, p.distribution, *p.aliases}]
        claims = _claims(enabled)
        return tuple(
            sorted(
                (self._judge(plugin, plugin in enabled, claims) for plugin in listed),
                key=lambda plugin: (plugin.group, plugin.name, plugin.distribution),
            )
        )

    def _judge(self, plugin: Plugin, enabled: bool, claims: Mapping[str, list[Plugin]]) -> Plugin:
        if not enabled:
            return evolve(plugin, state="disabled", reason="KSHOT_DISABLE names it")
        if reason := _duplicate(plugin, claims):
            return evolve(plugin, state="duplicate", reason=reason)
        if _key(plugin) in self._failed:
            state, reason = self._failed[_key(plugin)]
            return evolve(plugin, state=state, reason=reason)
        if _key(plugin) in self._loaded:  # importing it is a better proof than looking for its file
            return evolve(plugin, state="ok", reason="")
        return plugin

    def refresh(self) -> None:
        """Read the entry points again and forget what failed: after a pip install in a running process."""
        importlib.invalidate_caches()
        self._found = None
        self._causes.clear()
        self._failed.clear()
        self._loaded.clear()

    def find(self, name: str, group: str | None = None) -> Plugin:
        """The plugin of this name or alias, in whatever state it is.

        Raises:
            UnknownPluginError: nothing (of this group) has this name.
        """
        listed = self.plugins()
        named = [p for p in listed if p.name == name] or [p for p in listed if name in p.aliases]
        fitting = [p for p in named if group in (None, p.group)]
        if not fitting:
            raise UnknownPluginError(_unknown(name, group, named, listed))
        # Among claims of one name, the built-in stays, and a disabled one tells nothing.
        return min(fitting, key=lambda p: (not p.builtin, p.state == "disabled"))

    def info(self, name: str) -> PluginInfo:
        """A plugin's options and documentation; imports it. Raises PluginError where it can't be had."""
        plugin = self.find(name)
        factory = self.load(plugin.name, plugin.group)
        options = options_of(factory, skip_positional=_LEADING[plugin.group])
        if plugin.group == "memories":
            doc = "the learner's choice where left out"
            options = tuple(
                evolve(o, required=False, default=None, doc=o.doc or doc) if o.name in _MEMORY_SIZES else o
                for o in options
            )
        return PluginInfo(self.find(name), options, (getattr(factory, "__doc__", None) or "").strip())

    # -------------------- importing

    def load(self, name: str, group: str | None = None) -> Callable[..., Any]:
        """The factory of a plugin, imported now if it was not.

        Raises:
            UnknownPluginError: nothing has this name.
            Unavailable: something it needs is not here.
            PluginError: any other state than ok; the original cause is chained.
        """
        plugin = self.find(name, group)
        if plugin.name in self._registered and not plugin.distribution and plugin.state == "ok":
            return self._registered[plugin.name][1]
        key = _key(plugin)
        if plugin.state == "ok" and key in self._loaded:
            return self._loaded[key]
        # A file that listing did not find may still be importable, through an import hook; and if it is not,
        # the import's own error is the cause to show.
        stale = plugin.reason.startswith(_STALE) and key not in self._causes
        if plugin.state == "ok" or stale:
            try:
                self._loaded[key] = _import(plugin.target)
            except KeyboardInterrupt:
                raise
            except Unavailable as exc:
                self._fail(key, "unavailable", str(exc), exc)
            except BaseException as exc:  # SystemExit too: no plugin may end the process by being imported
                if plugin.state == "ok":
                    first = f"importing {plugin.target} raised {type(exc).__name__}: {exc}".splitlines()[0]
                    self._fail(key, "broken", f"{first}\n{_traceback(exc)}", exc)
                else:
                    self._fail(key, "broken", plugin.reason, exc)
            else:
                self._failed.pop(key, None)
                return self._loaded[key]
            plugin = self.find(name, group)
        error = Unavailable if plugin.state == "unavailable" else PluginError
        raise error(_refusal(plugin)) from self._causes.get(key)

    def _fail(self, key: _Key, state: State, reason: str, cause: BaseException) -> None:
        self._failed[key] = state, reason
        self._causes[key] = cause

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
        if not callable(factory):
            raise OptionError(f"register: expected a class or a function, got {factory!r}")
        if group is not None and group not in GROUPS:
            raise OptionError(
                f"register: no group is called {group!r}{did_you_mean(group, GROUPS)} (groups: "
                f"{', '.join(GROUPS)})"
            )
        own = getattr(factory, "__name__", type(factory).__name__)
        group = group or _infer_group(factory)
        if group is None:
            raise OptionError(
                f"register: can't tell what {own} is from its members; say group= one of "
                f"{', '.join(map(repr, GROUPS))}"
            )
        name = name if name is not None else _kebab(own)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise OptionError(
                f"register: {name!r} is no name for a plugin; use small letters, digits and hyphens"
            )
        target = f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', own)}"
        for plugin in self.plugins():
            again = not plugin.distribution and plugin.target == target
            if name in (plugin.name, *plugin.aliases) and not again:
                raise PluginError(
                    f"register: {name!r} is taken by {plugin.who}; register {own} with another name="
                )
        doc = (getattr(factory, "__doc__", None) or "").strip().partition("\n")[0]
        kinds = tuple(getattr(_class_needs(factory), "kinds", None) or ())
        self._registered[name] = Plugin(name, group, "", "", target, summary=doc, kinds=kinds), factory
        return factory

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
        return typing.cast("Learner", self._build("learners", name, options, spec=spec, seed=seed or 0))

    def tasks(self, name: str, /, **options: Any) -> TaskDistribution:
        """A task distribution. Raises PluginError, OptionError, and DataError where its data are bad."""
        return typing.cast("TaskDistribution", self._build("tasks", name, options))

    def memory(self, name: str, /, **options: Any) -> BoundMemory:
        """A memory factory with these options, for a learner to call with sizes.

        Raises PluginError, OptionError.
        """
        return typing.cast(BoundMemory, self._build("memories", name, options))

    def backend(self, name: str = "cpu", /, **options: Any) -> Backend:
        """A backend. Raises PluginError (Unavailable without the device), OptionError."""
        return typing.cast("Backend", self._build("backends", name, options))

    def hook(self, name: str, /, **options: Any) -> Any:
        """A hook plugin's object for the engine. Raises PluginError, OptionError."""
        return self._build("hooks", name, options)

    def built(self, component: object) -> Built | None:
        """How a component was built, or None where it was not built by name here."""
        entry = self._built.get(id(component))
        return entry[1] if entry is not None and entry[0]() is component else None

    def rebuild(self, component: object, spec: TaskSpec | None = None, /, **changed: Any) -> Any:
        """A new component like this one, with some options changed; a learner with the same seed.

        Nested components that were built by name are built anew; modules among the options are copied, so
        that the two share no parameters. Parameters are not carried over: ``load_state_dict`` does that.

        Raises:
            OptionError: the component was not built by name, or options are wrong.
        """
        how = self.built(component)
        if how is None:
            raise OptionError(
                f"this {type(component).__name__} was not built by name, so it can't be rebuilt with "
                "other options; "
                "build it with kshot.learner(name, ...) or register its class"
            )
        if how.group == "learners" and spec is None:
            raise OptionError(f"rebuilding learner {how.name!r} takes the spec of the tasks")
        options = {name: self._again(value) for name, value in how.given.items()}
        for name, value in changed.items():
            options[name] = _overlay(options.get(name), value)
        return self._build(how.group, how.name, options, spec=spec, seed=how.seed)

    def _again(self, value: Any) -> Any:
        if (how := self.built(value)) is not None:
            return {"name": how.name, **{name: self._again(given) for name, given in how.given.items()}}
        if hasattr(value, "state_dict"):
            import copy

            return copy.deepcopy(value)
        return value

    def _build(
        self,
        group: str,
        name: str,
        options: Mapping[str, Any],
        *,
        spec: TaskSpec | None = None,
        seed: int | None = None,
    ) -> Any:
        factory = self.load(name, group)
        plugin = self.find(name, group)
        skip = _LEADING[group]
        if skip and not takes_positional(factory, skip):
            raise PluginError(
                f"{plugin.who}: its factory must take the spec of the tasks as its first argument"
            )
        known = options_of(factory, skip_positional=skip)
        nested = {}
        for option in known:
            if (inner := _nested_group(option.annotation)) is not None:
                value = options.get(option.name, option.default)
                asked = _nested_name(plugin, option, value)
                if asked is not None:
                    nested[option.name] = (inner, *asked)
        given = {key: value for key, value in options.items() if key not in nested}
        missing_ok = (*nested, *_MEMORY_SIZES) if group == "memories" else tuple(nested)
        values = validate(factory, given, who=plugin.who, skip_positional=skip, missing_ok=missing_ok)
        if group == "learners":
            _check_fit(plugin, factory, spec)
        for key, (inner, inner_name, inner_options) in nested.items():
            inner_spec, inner_seed = (spec, seed) if inner == "learners" else (None, None)
            if inner == "learners" and inner_spec is None:
                raise OptionError(
                    f"{plugin.who}: option {key} takes a learner that is already built, not a name"
                )
            try:
                values[key] = self._build(inner, inner_name, inner_options, spec=inner_spec, seed=inner_seed)
            except KshotError as exc:
                exc.args = (f"option {key} of {plugin.who}: {exc}",)
                raise
        if group == "memories":
            component: Any = BoundMemory(plugin, factory, values)
        elif group == "learners":
            component = _initialise(plugin, factory, spec, seed or 0, values)
        else:
            component = _call(plugin.who, factory, **values)
        if group != "memories":
            _check_members(plugin, component)
        self._remember(component, plugin, values, seed)
        return component

    def _remember(
        self, component: object, plugin: Plugin, values: Mapping[str, Any], seed: int | None
    ) -> None:
        plain = {name: self._plain(value) for name, value in values.items()}
        how = Built(
            group=plugin.group,
            name=plugin.name,
            options={name: value for name, (value, _) in plain.items()},
            distribution=plugin.distribution,
            version=plugin.version,
            portable=all(portable for _, portable in plain.values()),
            seed=seed,
            given=dict(values),
        )
        key = id(component)
        try:
            reference: Callable[[], object] = weakref.ref(component, lambda _: self._built.pop(key, None))
        except TypeError:  # slots without __weakref__: it is kept for as long as the registry is
            reference = lambda: component  # noqa: E731
        self._built[key] = reference, how

    def _plain(self, value: Any) -> tuple[Any, bool]:
        """The value as JSON can write it, and whether building from that gives the same."""
        if (how := self.built(value)) is not None:
            return how.plain(), how.portable
        if value is None or isinstance(value, bool | int | float | str):
            return value, True
        if isinstance(value, Path):
            return str(value), True
        if isinstance(value, Mapping):
            pairs = {str(key): self._plain(item) for key, item in value.items()}
            return {key: item for key, (item, _) in pairs.items()}, all(
                portable for _, portable in pairs.values()
            )
        if isinstance(value, list | tuple | set | frozenset | range):
            items = [self._plain(item) for item in value]
            return [item for item, _ in items], all(portable for _, portable in items)
        return f"<{getattr(value, '__qualname__', None) or type(value).__qualname__}>", False

    # -------------------- discovery

    def _scan(self) -> tuple[Plugin, ...]:
        if self._found is None:
            found = [evolve(plugin, version=_core_version()) for plugin in _BUILTINS]
            seen: set[str] = set()
            for distribution in importlib.metadata.distributions():
                lines = _entry_lines(distribution)
                if lines:
                    name, version = _identity(distribution)
                    # The first on sys.path is the one whose code is imported.
                    if (normal := re.sub(r"[-_.]+", "-", name).lower()) not in seen:
                        seen.add(normal)
                        found += self._describe(distribution, name, version, lines)
            self._found = tuple(found)
        return self._found

    def _describe(
        self, distribution: importlib.metadata.Distribution, name: str, version: str, lines: list[_Line]
    ) -> Iterator[Plugin]:
        """The plugins of one distribution, in the state that can be told without importing them."""
        manifest, problem = Manifest(), None
        for line in lines:
            if line.group == "manifest":
                try:
                    manifest = _merge(manifest, _manifest_of(distribution, line))
                except ManifestError as exc:
                    problem = exc
        entries = dict(manifest.entries)
        for line in lines:
            if line.group == "manifest":
                continue
            entry = entries.pop((line.group, line.name), Entry())
            plugin = Plugin(
                name=line.name,
                group=line.group,
                distribution=name,
                version=version,
                target=line.value,
                summary=entry.summary,
                kinds=entry.kinds,
                lifecycle=manifest.lifecycle,
                api_level=manifest.api_level,
                aliases=entry.aliases,
            )
            state, reason = _state(plugin, manifest, problem)
            if problem is not None and reason == str(problem):
                self._causes[_key(plugin)] = problem
            yield evolve(plugin, state=state, reason=reason)
        if manifest.api_level == API_LEVEL:
            for (group, plugin_name), entry in entries.items():
                reason = (
                    f"plugin.toml describes it, but {name} {version} has no such entry point in "
                    f"kshot.{group}: "
                    f"correct the name, or install {name} again if it was added since"
                )
                yield Plugin(
                    plugin_name, group, name, version, "", "broken", reason, entry.summary, entry.kinds
                )


# -------------------- reading entry points


@frozen
class _Line:
    """One line of entry_points.txt in a group of ours; ``value`` is '' where the line can't be read."""

    group: str
    name: str
    value: str


def _entry_lines(distribution: importlib.metadata.Distribution) -> list[_Line]:
    # Read by hand: of a hundred installed distributions a few are ours, and one malformed line (which
    # importlib.metadata would raise for) must cost one plugin only.
    try:
        text = distribution.read_text("entry_points.txt")
    except (OSError, UnicodeDecodeError):
        return []
    if not text or "kshot." not in text:
        return []
    found, group = [], ""
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group.startswith("kshot.") and group[6:] in (*GROUPS, "manifest"):
            name, _, value = line.partition("=")
            value = re.sub(r"\s*\[[^\]]*\]$", "", value.strip())  # extras mean nothing to us
            found.append(_Line(group[6:], name.strip(), re.sub(r"\s*:\s*", ":", value)))
    return found


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Name and version from the headers of METADATA, without parsing the long description below them."""
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except (OSError, UnicodeDecodeError):
        text = ""
    headers = dict(re.findall(r"^(Name|Version):[ \t]*(\S+)", text.partition("\n\n")[0], re.MULTILINE))
    folder = Path(str(getattr(distribution, "_path", "unknown"))).name  # half removed: only the folder tells
    guess = re.sub(r"\.(dist|egg)-info$", "", folder).partition("-")
    return headers.get("Name") or guess[0], headers.get("Version") or guess[2]


def _spec_of(module: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module is, told without importing anything, its parents included."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for i in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(
                ".".join((top, *rest[: i + 1])), list(spec.submodule_search_locations)
            )
    except (ImportError, ValueError, AttributeError, OSError):
        return None
    return spec


def _manifest_of(distribution: importlib.metadata.Distribution, line: _Line) -> Manifest:
    package, _, file = line.value.partition(":")
    file = file or "plugin.toml"
    if not package or not re.fullmatch(r"[\w.-]+", file):
        raise ManifestError(
            f"entry point {line.name!r} in kshot.manifest is {line.value!r}, not 'package:plugin.toml'"
        )
    spec = _spec_of(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if spec is not None and not places and spec.origin:
        places = [str(Path(spec.origin).parent)]
    for place in places:
        if (path := Path(place, file)).is_file():
            return read_manifest(path)
    relative = f"{package.replace('.', '/')}/{file}"
    text = distribution.read_text(f"../{relative}") if places or spec is None else None
    if text is None:
        raise ManifestError(
            f"{relative} is not there, though the entry point {line.name!r} in kshot.manifest names it"
        )
    return parse_manifest(text, where=relative)


def _merge(first: Manifest, second: Manifest) -> Manifest:
    """Two manifests of one distribution say more together; the higher API level is what it needs."""
    if not first.entries and first == Manifest():
        return second
    return Manifest(
        api_level=max(first.api_level, second.api_level),
        lifecycle=second.lifecycle if first.lifecycle == "stable" else first.lifecycle,
        requires=(*first.requires, *second.requires),
        entries={**first.entries, **second.entries},
    )


def _state(plugin: Plugin, manifest: Manifest, problem: ManifestError | None) -> tuple[State, str]:
    module, _, attribute = plugin.target.partition(":")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module) or not re.fullmatch(r"[A-Za-z_][\w.]*", attribute):
        return "broken", f"its entry point is {plugin.target!r}, not 'module:attribute'"
    if not _NAME.fullmatch(plugin.name):
        return "broken", f"{plugin.name!r} is no name for a plugin; small letters, digits and hyphens are"
    if _spec_of(module) is None:
        return "broken", (
            f"{_STALE}: module {module} is not there, though {plugin.distribution} is "
            "installed; it may be half "
            f"removed: pip install --force-reinstall {plugin.distribution}, or pip uninstall "
            f"{plugin.distribution}"
        )
    if problem is not None:
        return "broken", str(problem)
    if manifest.api_level > API_LEVEL:
        return "incompatible", (
            f"needs API level {manifest.api_level}, this kshot speaks {API_LEVEL}: pip install -U kshot"
        )
    if manifest.api_level < 1:
        return "incompatible", (
            f"needs API level {manifest.api_level}, this kshot speaks {API_LEVEL}: pip install -U "
            f"{plugin.distribution}"
        )
    missing = [name for name in manifest.requires if _spec_of(name) is None]
    if missing:
        install = " ".join(_INSTALL_AS.get(name.split(".")[0], name.split(".")[0]) for name in missing)
        return "unavailable", f"needs {', '.join(missing)}, not installed: pip install {install}"
    return "ok", ""


# -------------------- names


def _core_version() -> str:
    try:
        return importlib.metadata.distribution("kshot").version
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return ""


def _claims(plugins: Iterable[Plugin]) -> dict[str, list[Plugin]]:
    """Who claims each name, aliases included."""
    claims: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        for name in {plugin.name, *plugin.aliases}:
            claims.setdefault(name, []).append(plugin)
    return claims


def _duplicate(plugin: Plugin, claims: Mapping[str, list[Plugin]]) -> str:
    """Why its name is not its own, or ''."""
    for name in (plugin.name, *plugin.aliases):
        if name in _BUILTIN_NAMES and not plugin.builtin:
            return f"{name!r} is built into kshot and can't be overridden: {plugin.origin} must rename it"
        claimants = claims[name]
        if len(claimants) > 1 and not plugin.builtin:
            them = " and ".join(f"{p.origin} ({p.group}, {p.target or 'plugin.toml'})" for p in claimants)
            owners = sorted({p.distribution for p in claimants} - {""})
            way_out = " or ".join(f"pip uninstall {owner}" for owner in owners)
            if len(owners) > 1:
                way_out += f", or KSHOT_DISABLE={owners[-1]}"
            elif owners:
                way_out = f"{owners[0]} must name one of them otherwise"
            return f"{name!r} is claimed by {them}: {way_out}"
    return ""


def _refusal(plugin: Plugin) -> str:
    first = plugin.reason.partition("\n")[0]
    if plugin.state == "disabled":
        return f"{plugin.who} is disabled: {first}; take it out of that environment variable to use it"
    if plugin.state == "duplicate":
        return f"{SINGULAR[plugin.group]} {plugin.name!r} is refused: {first}"
    return f"{plugin.who} is {plugin.state}: {first}"


def _first_party() -> dict[str, dict[str, Any]]:
    import tomllib

    return tomllib.loads(Path(__file__).with_name("first_party.toml").read_text(encoding="utf-8"))


def _unknown(name: str, group: str | None, elsewhere: list[Plugin], listed: Collection[Plugin]) -> str:
    """What to say about a name that nothing (of the group) has."""
    if elsewhere and group is not None:
        other = elsewhere[0].group
        call = f"kshot.{SINGULAR[other]}({name!r}{', spec' if other == 'learners' else ''})"
        return f"{name!r} is {_A[other]}, not {_A[group]}: {call}"
    first_party = _first_party()
    kind = SINGULAR[group] if group else "plugin"
    head = f"no {kind} {'are' if group == 'tasks' else 'is'} called {name!r}"
    names = {known: p for p in listed if group in (None, p.group) for known in (p.name, *p.aliases)}
    ours = {known: row for known, row in first_party.items() if group in (None, row["group"])}
    if name in first_party:
        row = first_party[name]
        if row["distribution"] in {p.distribution for p in listed}:
            has = ", ".join(p.name for p in listed if p.distribution == row["distribution"])
            return f"{head}; {row['distribution']} is installed and has {has}"
        provides = f" (it has {', '.join(row['provides'])})" if "provides" in row else ""
        if name not in ours and group is not None:
            wrong = f"{name!r} is {_A[row['group']]}, not {_A[group]}"
            return f"{wrong}, and not installed: pip install {row['distribution']}"
        return f"{head} here; it is in {row['distribution']}{provides}: pip install {row['distribution']}"
    if hint := did_you_mean(name, names):
        return f"{head}{hint}"
    if hint := did_you_mean(name, ours):
        near = hint.split("'")[1]
        return f"{head}{hint} It is in {ours[near]['distribution']}: pip install {ours[near]['distribution']}"
    there = ", ".join(sorted(names)) or "none is installed"
    return f"{head}; there are: {there}" if names else f"{head}; {there}: see kshot list"


# -------------------- factories


def _import(target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{target} is {found!r}, neither a class nor a function")
    return typing.cast("Callable[..., Any]", found)


def _traceback(exc: BaseException) -> str:
    """The traceback from where the plugin's own code begins."""
    frames = exc.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(exc), exc, frames)).rstrip()


def _kebab(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", "-", name)
    return words.strip("-").lower()


def _infer_group(factory: Any) -> str | None:
    def has(member: str) -> bool:
        if hasattr(factory, member):
            return True
        return any(
            member in vars(base).get("__annotations__", {}) for base in getattr(factory, "__mro__", ())
        )

    if not isinstance(factory, type):
        return None
    for group, members in _MEMBERS.items():
        if all(map(has, members)):
            return group
    if has("sample"):  # `spec` may be set by __init__ only
        import inspect

        if list(inspect.signature(factory.sample).parameters)[1:3] == ["split", "indices"]:  # type: ignore[attr-defined]
            return "tasks"
    return None


def _class_needs(factory: Any) -> Any:
    needs = getattr(factory, "needs", None)
    return None if isinstance(needs, property) else needs


def _check_fit(plugin: Plugin, factory: Any, spec: Any) -> None:
    needs = _class_needs(factory)
    if needs is None:
        return
    from kshot.fit import class_mismatches

    if mismatches := class_mismatches(needs, spec):
        raise MisfitError(f"{plugin.who} does not fit these tasks: {'; '.join(mismatches)}")


def _check_members(plugin: Plugin, component: Any) -> None:
    missing = [member for member in _MEMBERS.get(plugin.group, ()) if not hasattr(component, member)]
    if missing:
        raise PluginError(
            f"{plugin.who}: its factory returned a {type(component).__name__}, which has no "
            f"{' and no '.join(missing)}; "
            f"it is not {_A[plugin.group]}"
        )


def _call(who: str, factory: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return factory(*args, **options)
    except Unavailable as exc:
        raise Unavailable(f"{who} is unavailable: {exc}") from exc
    except Exception as exc:
        exc.add_note(f"while building {who}")
        raise


def _initialise(
    plugin: Plugin, factory: Callable[..., Any], spec: Any, seed: int, values: Mapping[str, Any]
) -> Any:
    import torch

    # Seeding the CPU generator alone: torch.manual_seed would also reseed accelerators, which
    # fork_rng(devices=[]) does not restore. Parameters are initialised on the CPU and placed afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _call(plugin.who, factory, spec, **values)


# -------------------- nesting


def _nested_group(annotation: Any) -> str | None:
    """The group of plugins that a parameter of this type takes, or None."""
    if isinstance(annotation, typing.ForwardRef):  # a name imported for type checkers only
        words = re.findall(r"\w+", annotation.__forward_arg__)
        return next((_NESTED[word] for word in words if word in _NESTED), None)
    if isinstance(annotation, type):
        ours = annotation.__module__ == "kshot.protocols"
        return _NESTED.get(annotation.__name__) if ours else None
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.get_origin(Callable[..., Any]):
        made = args[-1] if args else None
        is_memory = (
            getattr(made, "__name__", "") == "Memory" and getattr(made, "__module__", "") == "kshot.protocols"
        )
        return "memories" if is_memory else None
    if typing.get_origin(annotation) in _UNIONS:
        return next((group for group in map(_nested_group, args) if group), None)
    return None


_UNIONS = (typing.Union, typing.get_origin(int | str), typing.Annotated)


def _nested_name(plugin: Plugin, option: Option, value: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and options of the plugin that ``value`` asks for; None where it is an object already."""
    if isinstance(value, Raw):
        value = parse_literal(value)
    if isinstance(value, str):
        return str(value), {}
    if not isinstance(value, Mapping):
        return None
    options = dict(value)
    names = [options.pop(key) for key in ("", "name") if key in options]
    if not names and isinstance(option.default, str):
        names = [option.default]
    if len(names) != 1 or not isinstance(names[0], str):
        raise OptionError(
            f"{plugin.who}: option {option.name} takes a plugin's name and its options, "
            f"{{'name': ..., **options}}; got {dict(value)!r}"
        )
    name = parse_literal(names[0]) if isinstance(names[0], Raw) else names[0]
    return str(name), options


def _overlay(old: Any, new: Any) -> Any:
    """Changed options of a nested component go over its old ones, unless it is now another plugin."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and "name" in old:
        name = new.get("name", new.get("", old["name"]))
        rest = {key: value for key, value in new.items() if key not in ("", "name")}
        if name != old["name"]:
            return {"name": name, **rest}
        kept = {key: value for key, value in old.items() if key not in rest}
        return kept | {key: _overlay(old.get(key), value) for key, value in rest.items()}
    return new


# -------------------- the process's registry

default = Registry()
plugins = default.plugins
find = default.find
info = default.info
load = default.load
refresh = default.refresh
register = default.register
learner = default.learner
tasks = default.tasks
memory = default.memory
backend = default.backend
hook = default.hook
built = default.built
rebuild = default.rebuild
