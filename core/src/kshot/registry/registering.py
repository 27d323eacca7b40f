"""A class or function of this process as a plugin, described by what it is."""

from __future__ import annotations

import re
from typing import Any

from kshot.errors import OptionError
from kshot.registry.conversion import did_you_mean
from kshot.registry.manifest import GROUPS
from kshot.registry.plugin import MEMBERS, NAME, Plugin


def described(factory: Any, name: str | None = None, group: str | None = None) -> Plugin:
    """The plugin that registering ``factory`` makes.

    The name is its own in kebab case where none is given, the group told from the members of a class.

    Raises:
        OptionError: the group can't be told, or name or group are not possible ones.
    """
    if not callable(factory):
        raise OptionError(f"register: expected a class or a function, got {factory!r}")
    if group is not None and group not in GROUPS:
        hint = did_you_mean(group, GROUPS)
        raise OptionError(f"register: no group is called {group!r}{hint} (groups: {', '.join(GROUPS)})")
    own = getattr(factory, "__name__", type(factory).__name__)
    group = group or _group_of(factory)
    if group is None:
        choices = ", ".join(map(repr, GROUPS))
        raise OptionError(f"register: can't tell what {own} is from its members; say group= one of {choices}")
    name = _kebab(own) if name is None else name
    if not re.fullmatch(NAME, name):
        raise OptionError(f"register: {name!r} is no name for a plugin; use small letters, digits and hyphens")
    target = f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', own)}"
    summary = (getattr(factory, "__doc__", None) or "").strip().partition("\n")[0]
    kinds = tuple(getattr(getattr(factory, "needs", None), "kinds", ()))
    return Plugin(name, group, "", "", target, summary=summary, kinds=kinds)


def _group_of(factory: Any) -> str | None:
    def has(member: str) -> bool:  # a spec is often set by __init__
        return member == "spec" or hasattr(factory, member)

    if not isinstance(factory, type):
        return None
    return next((group for group, members in MEMBERS.items() if all(map(has, members))), None)


def _kebab(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", "-", name)
    return words.strip("-").lower()
