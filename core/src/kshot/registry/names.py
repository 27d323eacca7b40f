"""Whose name is whose: names that several claim, and what to say of a name that nobody has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from kshot.registry.conversion import nearest
from kshot.registry.plugin import SINGULAR, A, Plugin


def claims(plugins: Iterable[Plugin]) -> dict[str, list[Plugin]]:
    """Who claims each name, aliases included: names are unique across all groups."""
    found: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        for name in set(plugin.names):
            found.setdefault(name, []).append(plugin)
    return found


def dispute(plugin: Plugin, claimed: Mapping[str, list[Plugin]]) -> str:
    """Why its name is not its own and what ends it, or ''. A built-in keeps its name, whoever claims it."""
    if plugin.builtin:
        return ""
    for name in plugin.names:
        claimants = claimed[name]
        if any(p.builtin for p in claimants):
            return f"{name!r} is built into kshot and can't be overridden: {plugin.origin} must rename it"
        if len(claimants) > 1:
            them = " and ".join(f"{p.origin} ({p.group}, {p.target or 'plugin.toml'})" for p in claimants)
            owners = sorted({p.distribution for p in claimants} - {""})
            way_out = " or ".join(f"pip uninstall {owner}" for owner in owners)
            if len(owners) > 1:
                way_out += f", or KSHOT_DISABLE={owners[-1]}"
            elif owners:
                way_out = f"{owners[0]} must name one of them otherwise"
            return f"{name!r} is claimed by {them}: {way_out}"
    return ""


def unknown(name: str, group: str | None, elsewhere: Plugin | None, listed: Collection[Plugin]) -> str:
    """What to say about a name that nothing (of the group) has.

    Args:
        elsewhere: what has the name in another group.
        listed: all plugins.
    """
    if elsewhere is not None and group is not None:
        other = elsewhere.group
        call = f"kshot.{SINGULAR[other]}({name!r}{', spec' if other == 'learners' else ''})"
        return f"{name!r} is {A[other]}, not {A[group]}: {call}"
    head = f"no {SINGULAR.get(group or '', 'plugin')} {'are' if group == 'tasks' else 'is'} called {name!r}"
    first_party = _first_party()
    if name in first_party:
        return head + _where(first_party[name], group, listed)
    here = {known for p in listed if group in (None, p.group) for known in p.names}
    if near := nearest(name, here):
        return f"{head}; did you mean {near!r}?"
    ours = {known: row for known, row in first_party.items() if group in (None, row["group"])}
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


def _first_party() -> dict[str, dict[str, Any]]:
    import tomllib

    return tomllib.loads(Path(__file__).with_name("first_party.toml").read_text(encoding="utf-8"))
