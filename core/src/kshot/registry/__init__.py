"""Find plugins by name and build their components, without importing other plugins.

The functions here work on the registry of the process; ``Registry()`` creates another one. Reading order: ``plugin``
(what is known of a plugin), ``manifest`` (the ``plugin.toml``), ``discovery`` (from entry points to plugins), ``names``
(clashes and unknown names), ``ranges``, ``conversion`` and ``options`` (typed options), ``building`` and ``ledger``
(components and how they were built), ``devices`` (the backend if none is named), ``modules`` (networks named by an
import path), ``networks`` (which options name a network, an encoder or another component), ``registering`` (plugins of
this process, as in a notebook), ``surroundings`` (what importing a plugin must not change), ``registry``.
"""

from __future__ import annotations

from kshot.registry.ledger import Built
from kshot.registry.manifest import API_LEVEL, GROUPS
from kshot.registry.options import check_values
from kshot.registry.plugin import SINGULAR, Plugin, PluginInfo, State
from kshot.registry.ranges import Range
from kshot.registry.registry import Registry

__all__ = [
    "API_LEVEL",
    "GROUPS",
    "SINGULAR",
    "Built",
    "Plugin",
    "PluginInfo",
    "Range",
    "Registry",
    "State",
    "backend",
    "built",
    "check_values",
    "default",
    "default_backend",
    "encoder",
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
encoder = default.encoder
default_backend = default.default_backend
hook = default.hook
built = default.built
rebuild = default.rebuild
