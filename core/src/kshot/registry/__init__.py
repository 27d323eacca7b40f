"""Finding plugins by name and building them, without importing more than is asked for.

The functions here work on one registry of the process; ``Registry()`` makes another. Reading order: ``plugin`` (the
value), ``manifest`` (the ``plugin.toml``), ``discovery`` (entry points to plugins), ``names`` (clashes, unknown names),
``conversion`` and ``options`` (typed options), ``building`` and ``ledger`` (components and how they were built),
``registering`` (in a notebook), ``registry``.
"""

from __future__ import annotations

from kshot.registry.ledger import Built
from kshot.registry.manifest import API_LEVEL, GROUPS
from kshot.registry.plugin import SINGULAR, Plugin, PluginInfo, State
from kshot.registry.registry import Registry

__all__ = [
    "API_LEVEL",
    "GROUPS",
    "SINGULAR",
    "Built",
    "Plugin",
    "PluginInfo",
    "Registry",
    "State",
    "backend",
    "built",
    "default",
    "find",
    "hook",
    "info",
    "learner",
    "load",
    "memory",
    "plugins",
    "preparation",
    "rebuild",
    "refresh",
    "register",
    "register_preparation",
    "tasks",
]

default = Registry()
plugins = default.plugins
find = default.find
info = default.info
load = default.load
refresh = default.refresh
register = default.register
register_preparation = default.register_preparation
preparation = default.preparation
learner = default.learner
tasks = default.tasks
memory = default.memory
backend = default.backend
hook = default.hook
built = default.built
rebuild = default.rebuild
