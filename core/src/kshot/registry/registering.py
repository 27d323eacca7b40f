"""Describe a class or function of this process as a plugin."""

from __future__ import annotations

import re
from typing import Any

from kshot.errors import OptionError
from kshot.registry.conversion import did_you_mean
from kshot.registry.manifest import GROUPS
from kshot.registry.options import doc_of
from kshot.registry.plugin import MEMBERS, NAME, Plugin


def described(factory: Any, name: str | None = None, group: str | None = None) -> Plugin:
    """Return the plugin that registering ``factory`` adds.

    Args:
        factory: a class or a function.
        name: the plugin's name; if None, the name of ``factory`` in kebab case.
        group: the plugin's group; if None, it is recognised by the members of the class.

    Raises:
        OptionError: the group can't be recognised, or the name or the group is not valid.

    Example:
        >>> class MyTasks:
        ...     def sample(self, split, indices): ...
        >>> described(MyTasks).name, described(MyTasks).group
        ('my-tasks', 'tasks')
    """
    if not callable(factory):
        raise OptionError(f"register: got {factory!r}, expected a class or a function")
    if group is not None and group not in GROUPS:
        hint = did_you_mean(group, GROUPS)
        raise OptionError(f"register: got the group {group!r}, expected one of {', '.join(GROUPS)}{hint}")
    own = getattr(factory, "__name__", type(factory).__name__)
    group = group or _group_of(factory)
    if group is None:
        choices = ", ".join(map(repr, GROUPS))
        raise OptionError(
            f"register: got {own}, expected a class whose members show its group; for others, set group= to one of "
            f"{choices}"
        )
    name = _kebab(own) if name is None else name
    if not re.fullmatch(NAME, name):
        raise OptionError(f"register: got the name {name!r}, expected lower-case letters, digits and hyphens")
    target = f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', own)}"
    summary = doc_of(factory).strip().partition("\n")[0]
    kinds = tuple(getattr(getattr(factory, "needs", None), "kinds", ()))
    return Plugin(name, group, "", "", target, summary=summary, kinds=kinds)


def _group_of(factory: Any) -> str | None:
    """Return the group whose members a class has, or None."""

    def has(member: str) -> bool:  # ``spec`` is often set by __init__, so the class need not have it
        return member == "spec" or hasattr(factory, member)

    if not isinstance(factory, type):
        return None
    return next((group for group, members in MEMBERS.items() if all(map(has, members))), None)


def _kebab(name: str) -> str:
    """Convert a name to kebab case: ``MyLearner`` becomes ``my-learner``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+", "-", name)
    return words.strip("-").lower()
