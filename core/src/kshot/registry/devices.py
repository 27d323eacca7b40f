"""Choose the backend if the user names none: that of a device which is present, else the CPU.

A distribution with a backend for a device registers a function by an entry point of the group ``kshot.devices``:
``NAME = "module:function"``, where NAME is the name of the backend. It takes no arguments and returns whether the
device is present. Backends without such a function are never chosen by themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from kshot.errors import PluginError
from kshot.registry.importing import import_factory
from kshot.registry.options import options_of
from kshot.registry.plugin import Factory

log = logging.getLogger("kshot.registry")


def first_present(
    devices: Mapping[str, str], load: Callable[[str, str], Factory], options: Collection[str] = ()
) -> str:
    """Return the name of the first backend, in the order of the alphabet, whose device is present, else ``cpu``.

    A plugin that can't be used is passed over, and so is one that lacks one of the options: options that were given
    without a name were those of the CPU before the plugin was installed.

    Args:
        devices: the function of each backend, as ``module:function``.
        load: returns the factory of a plugin from name and group, or raises PluginError.
        options: names of options that the backend must have.

    Example:
        >>> first_present({}, lambda name, group: dict)
        'cpu'
    """
    for name, target in sorted(devices.items()):
        try:
            factory = load(name, "backends")
            if import_factory(target)() is True and {*options} <= {option.name for option in options_of(factory)}:
                return name
        except PluginError as error:
            log.debug("backend %s is not chosen: %s", name, error)
        except Exception as error:  # a driver may fail in any way
            log.warning("backend %s is not chosen: %s raised %s: %s", name, target, type(error).__name__, error)
    return "cpu"
