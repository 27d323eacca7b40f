"""Resolve names: which plugins claim the same name, and what to suggest for a name that does not exist."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from kshot.registry.conversion import nearest
from kshot.registry.plugin import LEADING, SINGULAR, A, Plugin


def claims(plugins: Iterable[Plugin]) -> dict[str, list[Plugin]]:
    """Map each name to the plugins that have it; names must be unique across all groups."""
    claimed: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        claimed.setdefault(plugin.name, []).append(plugin)
    return claimed


def without_taken_aliases(plugin: Plugin, claimed: Mapping[str, list[Plugin]]) -> Plugin:
    """Return a plugin without the aliases that are names of plugins: a name beats an alias.

    Otherwise a distribution could make another one's plugin unusable by an alias.
    """
    free = tuple(alias for alias in plugin.aliases if alias not in claimed)
    return plugin if free == plugin.aliases else evolve(plugin, aliases=free)


def alias_dispute(alias: str, claimants: Collection[Plugin]) -> str:
    """Return why an alias can't be used and what to do, or an empty string if at most one plugin claims it."""
    able = [p for p in claimants if p.state != "disabled"]
    if len(able) < 2 or any(p.name == alias for p in able):
        return ""
    them = " and ".join(p.who for p in able)
    return f"{alias!r} is an alias of {them}, expected one plugin: use the name of the one that you mean"


def dispute(plugin: Plugin, claimed: Mapping[str, list[Plugin]]) -> str:
    """Return why a plugin can't have its name and what to do, or an empty string. Built-ins always keep their names."""
    claimants = claimed.get(plugin.name, [])
    if plugin.builtin or len(claimants) < 2:
        return ""
    if any(p.builtin for p in claimants):
        return f"{plugin.name!r} is built into kshot and can't be overridden: {plugin.origin} must rename it"
    them = " and ".join(f"{p.origin} ({p.group}, {p.target or 'plugin.toml'})" for p in claimants)
    owners = sorted({p.distribution for p in claimants} - {""})
    way_out = " or ".join(f"pip uninstall {owner}" for owner in owners)
    if len(owners) > 1:
        way_out += f", or KSHOT_DISABLE={owners[-1]}"
    elif owners:
        way_out = f"{owners[0]} must rename one of them"
    return f"{plugin.name!r} is claimed by {them}: {way_out}"


def unknown(name: str, group: str | None, elsewhere: Plugin | None, listed: Collection[Plugin]) -> str:
    """Return the message for a name that no plugin (of the group) has.

    Args:
        name: the unknown name.
        group: the group in which it was looked up, or None.
        elsewhere: the plugin of another group that has the name, or None.
        listed: all plugins.
    """
    if elsewhere is not None and group is not None:
        other = elsewhere.group
        call = f"kshot.{SINGULAR[other]}({name!r}{', spec' if other in LEADING else ''})"
        return f"{name!r} is {A[other]}, not {A[group]}: {call}"
    head = f"no {SINGULAR.get(group or '', 'plugin')} {'are' if group == 'tasks' else 'is'} called {name!r}"
    known = first_party()
    if name in known:
        return head + _where(known[name], group, listed)
    here = {one for p in listed if group in (None, p.group) for one in p.names if one.isascii()}
    if near := nearest(name, here):
        return f"{head}; did you mean {near!r}?"
    ours = {other: row for other, row in known.items() if group in (None, row["group"])}
    if near := nearest(name, ours):
        owner = ours[near]["distribution"]
        return f"{head}; did you mean {near!r}? It is in {owner}: pip install {owner}"
    return f"{head}; there are: {', '.join(sorted(here))}" if here else f"{head}; none is installed: see kshot list"


def _where(row: Mapping[str, Any], group: str | None, listed: Collection[Plugin]) -> str:
    owner = row["distribution"]
    if has := [p.name for p in listed if p.distribution == owner]:
        return f"; {owner} is installed and has {', '.join(has)}"
    what = "" if group in (None, row["group"]) else f"{A[row['group']]}, "
    return f" here; it is {what}in {owner}: pip install {owner}"


def first_party() -> dict[str, dict[str, Any]]:
    """Read the table of first-party plugins, installed or not."""
    import tomllib

    return tomllib.loads(Path(__file__).with_name("first_party.toml").read_text(encoding="utf-8"))
