"""Represent what is known about a plugin, as frozen values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from attrs import frozen

from kshot.registry.options import Option

State = Literal["ok", "unavailable", "incompatible", "broken", "duplicate", "disabled"]
Factory = Callable[..., Any]
Key = tuple[str, str, str]  # distribution, group, name

SINGULAR = {
    "learners": "learner",
    "tasks": "tasks",
    "memories": "memory",
    "backends": "backend",
    "hooks": "hook",
    "encoders": "encoder",
}
A = {group: one if group == "tasks" else f"{'an' if one[0] == 'e' else 'a'} {one}" for group, one in SINGULAR.items()}
MEMBERS = {  # the members by which the group of a class is recognised; hooks and encoders can't be recognised
    "learners": ("meta_gradient", "adapt"),
    "tasks": ("spec", "sample"),
    "memories": ("initial_state", "step"),
    "backends": ("place", "autocast"),
}
LEADING = {"learners": 1, "encoders": 1}  # how many leading parameters of a factory are not options (the tasks' spec)
MEMORY_SIZES = ("slots", "width", "reads")
NAME = r"[a-z0-9]+(-[a-z0-9]+)*"
LONGEST = 64  # letters of a name
COLUMNS = ("group", "name", "state", "summary", "distribution")


@frozen(repr=False)
class Plugin:
    """One plugin as it is listed.

    Attributes:
        name: the name by which it is built.
        group: learners, tasks, memories, backends, hooks or encoders.
        distribution: the installed distribution; empty if the plugin was registered in this process.
        version: version of the distribution.
        target: where its factory is, as ``module:attribute``.
        state: "ok", or why it can't be used.
        reason: the reason in words, empty if the state is "ok". A list shows its first line; a traceback may follow.
        summary: one line about it.
        kinds: the kinds of tasks that it learns or provides.
        lifecycle: "stable" or "incubating".
        api_level: the API level that it was written for.
        aliases: further names.
        builtin: whether it is part of kshot.

    Example:
        >>> plugin = Plugin("protonet", "learners", "kshot-protonet", "0.1.0", "kshot_protonet:ProtoNet")
        >>> plugin.who
        "learner 'protonet' (kshot-protonet 0.1.0)"
    """

    name: str
    group: str
    distribution: str
    version: str
    target: str
    state: State = "ok"
    reason: str = ""
    summary: str = ""
    kinds: tuple[str, ...] = ()
    lifecycle: str = "stable"
    api_level: int = 1
    aliases: tuple[str, ...] = ()
    builtin: bool = False

    def __repr__(self) -> str:
        return f"<Plugin: {self.who}, {self.state}>"

    @property
    def key(self) -> Key:
        """The key that distinguishes all plugins, also those that claim the same name."""
        return self.distribution, self.group, self.name

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return self.name, *self.aliases

    @property
    def who(self) -> str:
        """The plugin as error messages name it: ``learner 'protonet' (kshot-protonet 0.1.0)``."""
        return f"{SINGULAR[self.group]} {self.name!r} ({self.origin})"

    @property
    def origin(self) -> str:
        """The distribution and its version, or where the object was registered."""
        return f"{self.distribution} {self.version}".strip() or f"registered from {self.target}"

    @property
    def refusal(self) -> str:
        """The reason in one line why the plugin can't be used, if its state is not "ok"."""
        first = self.reason.partition("\n")[0]
        if self.state == "disabled":
            return f"{self.who} is disabled: {first}; remove it from that environment variable to use it"
        if self.state == "duplicate":
            return f"{SINGULAR[self.group]} {self.name!r} is refused: {first}"
        return f"{self.who} is {self.state}: {first}"


class Plugins(tuple[Plugin, ...]):
    """A tuple of plugins that is shown as a short text, and as a table in a notebook.

    Example:
        >>> Plugins([Plugin("cpu", "backends", "kshot", "0.1.0", "kshot:Cpu")])
        <1 plugin: 1 backends>
    """

    __slots__ = ()

    def __repr__(self) -> str:
        groups = [plugin.group for plugin in self]
        counts = ", ".join(f"{groups.count(group)} {group}" for group in dict.fromkeys(groups))
        return f"<{len(self)} {'plugin' if len(self) == 1 else 'plugins'}: {counts or 'none'}>"

    def _repr_html_(self) -> str:
        """Return a table of names, states and summaries as HTML."""
        from kshot._shown import table  # here, as listing needs none of it

        return table([(p.group, p.name, p.state, p.summary, p.origin) for p in self], COLUMNS)


@frozen(repr=False)
class PluginInfo:
    """A plugin with what is known after importing its factory.

    Attributes:
        plugin: the plugin.
        options: the options of its factory.
        doc: the docstring of its factory.

    Example:
        >>> import kshot
        >>> [option.name for option in kshot.info("cpu").options][:2]
        ['precision', 'memory_format']
    """

    plugin: Plugin
    options: tuple[Option, ...]
    doc: str

    def __repr__(self) -> str:
        return f"<PluginInfo: {self.plugin.who}, {len(self.options)} options>"
