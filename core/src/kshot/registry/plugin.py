"""What is known of a plugin: a frozen value, always in one state."""

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
}
A = {group: one if group == "tasks" else f"a {one}" for group, one in SINGULAR.items()}
MEMBERS = {  # what tells a component of a group; of a hook, nothing does
    "learners": ("meta_gradient", "adapt"),
    "tasks": ("spec", "sample"),
    "memories": ("initial_state", "step"),
    "backends": ("place", "autocast"),
}
LEADING = {"learners": 1}  # how many parameters of a factory are the protocol's own (the spec), and no options
MEMORY_SIZES = ("slots", "width", "reads")
NAME = r"[a-z0-9]+(-[a-z0-9]+)*"


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
    def key(self) -> Key:
        """What no two plugins have in common, those that claim one name included."""
        return self.distribution, self.group, self.name

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return self.name, *self.aliases

    @property
    def who(self) -> str:
        """The plugin in an error message: ``learner 'protonet' (kshot-protonet 0.1.0)``."""
        return f"{SINGULAR[self.group]} {self.name!r} ({self.origin})"

    @property
    def origin(self) -> str:
        """Distribution and version, or where the object was registered."""
        return f"{self.distribution} {self.version}".strip() or f"registered from {self.target}"

    @property
    def refusal(self) -> str:
        """Why it can't be had, in a line; for a state other than ok."""
        first = self.reason.partition("\n")[0]
        if self.state == "disabled":
            return f"{self.who} is disabled: {first}; take it out of that environment variable to use it"
        if self.state == "duplicate":
            return f"{SINGULAR[self.group]} {self.name!r} is refused: {first}"
        return f"{self.who} is {self.state}: {first}"


@frozen
class PluginInfo:
    """A plugin and what its factory tells once it is imported."""

    plugin: Plugin
    options: tuple[Option, ...]
    doc: str
