"""Find the names of networks and other components among the options of a plugin."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

from kshot.errors import OptionError, PluginError, UnknownPluginError
from kshot.registry.conversion import Raw, parse_literal
from kshot.registry.modules import is_path, names_of, takes_module
from kshot.registry.names import first_party
from kshot.registry.options import Option
from kshot.registry.plugin import Factory, Plugin

Load = Callable[[str, str], tuple[Plugin, Factory]]
"""Return plugin and factory of a group and a name; raise PluginError if the plugin can't be used."""


def asked(who: str, option: Option, value: Any) -> tuple[str, dict[str, Any]] | None:
    """Return the name and options of the component that an option names, or None if its value is an object already.

    Args:
        who: whose option it is, for messages.
        option: the option.
        value: a name, or ``{"name": ..., **options}``, or text of the command line (``Raw``), or an object.

    Raises:
        OptionError: a mapping has no name.
    """
    value = parse_literal(value) if isinstance(value, Raw) else value
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping):
        return None
    options = dict(value)
    names = [options.pop(key) for key in ("", "name") if key in options]  # '' is the key that flags use
    if not names and isinstance(option.default, str):
        names = [option.default]
    if len(names) != 1 or not isinstance(names[0], str):
        raise OptionError(
            f"{who}: option {option.name}: got {dict(value)!r}, expected a plugin's name and its options, "
            "{'name': ..., **options}"
        )
    return str(parse_literal(names[0]) if isinstance(names[0], Raw) else names[0]), options


def is_encoder(load: Load, name: str) -> bool:
    """Return whether ``NAME`` or ``NAME:MODEL`` names a plugin of the group ``encoders``, in whatever state."""
    try:
        load("encoders", name.partition(":")[0])
    except PluginError as error:
        return not isinstance(error, UnknownPluginError)
    return True


def named_networks(
    load: Load, who: str, known: tuple[Option, ...], options: Mapping[str, Any]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return {option: (name, options)} of the networks among the options that name an encoder or an import path.

    Args:
        load: function from group and name to plugin and factory.
        who: whose options they are, for messages.
        known: the options that there are.
        options: those that are given.

    Raises:
        OptionError: the text is neither a name that the option knows, nor an encoder, nor an import path.
    """
    named = {}
    for option in known:
        value = options.get(option.name)
        if value is None or not takes_module(option.annotation):
            continue
        names = asked(who, option, value)
        choices = names_of(option.annotation)
        if names is None or names[0] in choices:
            continue
        if is_encoder(load, names[0]) or is_path(names[0]):
            named[option.name] = names
        elif str not in typing.get_args(option.annotation):
            try:
                load("encoders", names[0].partition(":")[0])
            except UnknownPluginError as unknown:
                expected = [*map(repr, sorted(choices)), "the name of an encoder plugin"]
                raise OptionError(
                    f"{who}: option {option.name}: got {names[0]!r}, expected {', '.join(expected)} or an import path "
                    f"(MODULE:NAME); {unknown}"
                ) from None
    return named


def hint(path: str) -> str:
    """Return what to add to the error of an import path ``NAME:MODEL``, if NAME is an encoder that can be installed."""
    name = path.partition(":")[0]
    row = first_party().get(name, {})
    if row.get("group") != "encoders":
        return ""
    return f"; if the encoder {name!r} is meant, it is in {row['distribution']}: pip install {row['distribution']}"
