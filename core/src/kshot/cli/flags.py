"""Split flags of the form ``--section.name=value`` from other arguments, and put them into the tables of a recipe."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.errors import OptionError

if TYPE_CHECKING:
    from kshot.registry.options import Raw
    from kshot.runs.recipe import Config, Table

_FLAG = re.compile(r"--([A-Za-z_][\w-]*(?:\.[\w-]+)+)(?:=(.*))?", re.DOTALL)


def configured(
    recipe: Path | None,
    flags: Sequence[tuple[str, str]],
    *,
    hooks: str = "",
    iterations: int | None = None,
    **given: Any,
) -> Config:
    """Return the configuration of a recipe, section flags and the other options of a command.

    Args:
        hooks: names with commas between them.
        iterations: short for ``--engine.iterations``.
        given: learner, tasks and so on, by the keys of a recipe; None if left out.

    Raises:
        OptionError: an option is unknown or has a wrong value, or no learner or tasks are named.
    """
    from kshot.runs.recipe import configure, layered, naming  # here, as listing plugins needs none of it

    tables = layered(recipe, given, where="train")
    put_flags(tables, flags)
    if iterations is not None:
        tables["engine"] = {**tables.get("engine", {}), "iterations": iterations}
    with naming(recipe):
        return configure(tables, hooks=[name.strip() for name in hooks.split(",") if name.strip()])


def split_flags(args: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the section flags, and everything else in its order.

    Raises:
        OptionError: a flag has no value.
    """
    flags: list[tuple[str, str]] = []
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        arg = waiting.pop(0)
        if arg == "--":
            rest += [arg, *waiting]
            break
        match = _FLAG.fullmatch(arg)
        if match is None:
            rest.append(arg)
            continue
        path, value = match.groups()
        if value is None:
            if not waiting or waiting[0].startswith("--"):
                raise OptionError(f"--{path}: got no value, expected --{path}=VALUE")
            value = waiting.pop(0)
        flags.append((path, value))
    return flags, rest


def put_flags(tables: Table, flags: Sequence[tuple[str, str]], sections: Collection[str] | None = None) -> None:
    """Put ``section.name`` and ``section.name.inner`` into nested tables.

    Raises:
        OptionError: the section is unknown.
    """
    from kshot.registry.options import Raw, did_you_mean
    from kshot.runs.recipe import SECTIONS

    sections = SECTIONS if sections is None else sections
    for path, value in flags:
        section, *parts = path.split(".")
        if section not in sections:
            valid = ", ".join(f"--{name}.NAME" for name in sections)
            hint = did_you_mean(section, sections)
            raise OptionError(f"--{path}: got section {section!r}, expected one of {valid}{hint}")
        _put(tables, [section, *parts], Raw(value))


def _put(table: Table, parts: Sequence[str], value: Raw) -> None:
    from kshot.registry.options import parse_literal

    *heads, last = parts
    for head in heads:
        inner = table.get(head)
        if not isinstance(inner, dict):
            # A bare name and its options: inner = "reptile", then inner.inner_lr.
            inner = {} if inner is None else {"name": inner}
            table[head] = inner
        table = inner
    old = table.get(last)
    if isinstance(old, dict) and not isinstance(parse_literal(value), dict):
        old["name"] = value
    else:
        table[last] = value
