"""Build fresh components under test from a name, a class, a factory or an object."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kshot.errors import OptionError
from kshot.registry import SINGULAR, Plugin, Registry, default


@functools.cache
def _private() -> tuple[Registry, Iterator[int]]:
    """Return a registry for classes and factories under test, apart from the user's, and numbers to name them."""
    return Registry(), itertools.count()


class Source:
    """Build components like the one that the user gave.

    Args:
        group: the registry's group: tasks, learners, memories, backends, hooks or encoders.
        given: a name, a class or factory, or (for tasks and backends) an object that is already built.
        options: options of the factory.

    Raises:
        OptionError: ``given`` is none of these, or it is already built and there are options.

    Example:
        >>> from kshot.testing.sample_tasks import Lines
        >>> Source("tasks", Lines, {"shot": 2}).build().spec.shot
        2
    """

    def __init__(self, group: str, given: Any, options: Mapping[str, Any]) -> None:
        self.group, self.given, self.options = group, given, dict(options)
        built_by = {"tasks": "sample", "backends": "place"}.get(group)
        self.is_built = not isinstance(given, str | type) and built_by is not None and hasattr(given, built_by)
        if self.is_built and options:
            raise OptionError(
                f"suite: got the options {', '.join(options)} for {SINGULAR[group]} that is already built, expected "
                "none; give a plugin's name, a class or a factory instead"
            )
        if not (isinstance(given, str) or callable(given) or self.is_built):
            raise OptionError(
                f"suite: got {given!r} for {SINGULAR[group]}=, expected a plugin's name, a class or a factory"
            )

    @property
    def who(self) -> str:
        """The component in words, as in ``learner protonet``."""
        name = self.given if isinstance(self.given, str) else getattr(self.given, "__qualname__", None)
        return f"{SINGULAR[self.group]} {name or type(self.given).__qualname__}"

    @functools.cached_property
    def _registered(self) -> tuple[Registry, str]:
        """The registry and the name by which the component is built.

        A plugin is built by the registry of the process. A factory is registered in the kit's private registry, so
        that its options are checked in the same way as those of a plugin.
        """
        if isinstance(self.given, str):
            return default, self.given
        registry, numbers = _private()
        name = f"under-test-{next(numbers)}"
        registry.register(self.given, name=name, group=self.group)
        return registry, name

    @property
    def plugin(self) -> Plugin | None:
        """The plugin as the registry lists it, or None if the component was not given by name."""
        return default.find(self.given, self.group) if isinstance(self.given, str) else None

    @property
    def factory(self) -> Callable[..., Any]:
        """The class or function that builds the component.

        Raises:
            PluginError: the plugin can't be used.
            Unavailable: something that the plugin needs is missing on this machine.
        """
        return default.load(self.given, self.group) if isinstance(self.given, str) else self.given

    def takes(self, option: str) -> bool:
        """Say whether the factory has this option."""
        return not self.is_built and option in inspect.signature(self.factory).parameters

    def build(self, *leading: Any, **changed: Any) -> Any:
        """Build a fresh component, or return the object itself if it was given already built."""
        if self.is_built:
            return self.given
        registry, name = self._registered
        return getattr(registry, SINGULAR[self.group])(name, *leading, **{**self.options, **changed})
