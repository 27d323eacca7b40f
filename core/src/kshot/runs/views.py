"""Options of tasks that are seen through views: tables ``{"name": VIEW, "of": {"name": TASKS, ...}, ...}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kshot import registry
from kshot.registry.conversion import Raw, parse_literal
from kshot.registry.options import options_of

Table = dict[str, Any]


def lowered(tasks: Table) -> Table:
    """Return a table in which the options that a view does not have are options of the tasks below, if these have them.

    So ``way`` can be given for ``omniglot`` and for any view of it in the same way.

    Raises:
        PluginError: tasks that it names can't be used.

    Example:
        >>> lowered({"name": "embedded", "of": {"name": "embedded", "of": "t"}, "batch": 1})["of"]["of"]
        't'
    """
    below = _below(tasks)
    if below is None:
        return tasks
    own = {"name", "", *_names(tasks)}
    foreign = {name: value for name, value in tasks.items() if name not in own}
    if not foreign or not all(takes(below, name) for name in foreign):
        return tasks
    kept = {name: value for name, value in tasks.items() if name in own}
    return {**kept, "of": lowered({**below, **foreign})}


def suited(tasks: Table, options: Mapping[str, Any]) -> Table:
    """Return a table with options for the tasks at the bottom, as far as these have them and the user gave no others.

    Args:
        tasks: tasks, or a view of tasks.
        options: options that suit, such as ``{"size": 224}``.

    Raises:
        PluginError: tasks that it names can't be used.
    """
    if not options:
        return tasks
    below = _below(tasks)
    if below is not None:
        given = {name for name in options if name in tasks}  # meant for the tasks below, see ``lowered``
        return {**tasks, "of": suited(below, {name: v for name, v in options.items() if name not in given})}
    names = _names(tasks)
    return {**{name: value for name, value in options.items() if name in names}, **tasks}


def _below(tasks: Table) -> Table | None:
    """Return the tasks below a view as a table, or None if they are not named."""
    of = tasks.get("of")
    if "of" not in _names(tasks) or of is None:
        return None
    of = parse_literal(of) if isinstance(of, Raw) else of
    if isinstance(of, str):
        return {"name": of}
    if not isinstance(of, Mapping):
        return None
    table = {("name" if key == "" else key): value for key, value in of.items()}
    return table if "name" in table else None


def _names(tasks: Table) -> set[str]:
    return {option.name for option in options_of(registry.load(str(tasks["name"]), "tasks"))}


def takes(tasks: Table, name: str) -> bool:
    """Return whether tasks, or those below them, have an option."""
    below = _below(tasks)
    return name in _names(tasks) or (below is not None and takes(below, name))
