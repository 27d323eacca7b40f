"""Remember how components were built, for as long as they live, in values that a file can store."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen


@frozen
class Built:
    """Store how a component was built.

    Attributes:
        group, name: group and name of the plugin; a network that was named by an import path has the group ``modules``.
        options: the options as plain values that JSON can write. An option that can't be rebuilt from plain values (a
            module object, a function) is recorded as text in angle brackets.
        distribution, version: distribution and version of the plugin.
        obstacles: names of the options that can't be rebuilt from plain values; nested ones with dots.
        seed: seed of a learner's initialisation.
        identity: name and options, without paths on this machine.
        given: the options as they were given.
    """

    group: str
    name: str
    options: Mapping[str, Any]
    distribution: str
    version: str
    obstacles: tuple[str, ...] = ()
    seed: int | None = None
    identity: Mapping[str, Any] = field(factory=dict, repr=False)
    given: Mapping[str, Any] = field(factory=dict, repr=False)

    @property
    def portable(self) -> bool:
        """Whether the component can be built again from ``options``."""
        return not self.obstacles

    def plain(self) -> dict[str, Any]:
        """Return name and options as one mapping, such as ``{"name": "reptile", "inner_lr": 0.001}``."""
        return {"name": self.name, **self.options}


Ledger = dict[int, tuple[Callable[[], object], Built]]
"""{id of a component: (weak reference to it, how it was built)}."""


def remember(ledger: Ledger, component: object, how: Built) -> None:
    """Record how a component was built; the entry is removed when the component is deleted."""
    key = id(component)
    try:
        reference: Callable[[], object] = weakref.ref(component, lambda _: ledger.pop(key, None))
    except TypeError:  # slots without __weakref__: the component is kept for as long as the ledger is
        reference = lambda: component  # noqa: E731
    ledger[key] = reference, how


def recall(ledger: Ledger, component: object) -> Built | None:
    """Return how a component was built, or None if it is not in the ledger."""
    reference, how = ledger.get(id(component), (lambda: None, None))
    return how if reference() is component else None


def plain(ledger: Ledger, value: Any, name: str) -> tuple[Any, tuple[str, ...]]:
    """Return an option as plain values, and the names in it that can't be rebuilt from plain values.

    Args:
        name: name of the option.
    """
    if (how := recall(ledger, value)) is not None:
        return how.plain(), tuple(f"{name}.{inner}" for inner in how.obstacles)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and hasattr(value, "dtype"):
        value = value.item()  # a number of numpy, in an option of any type
    if value is None or isinstance(value, bool | int | float | str):
        return value, ()
    if isinstance(value, Path):
        return str(value), ()
    if isinstance(value, Mapping):
        pairs = {str(key): plain(ledger, item, f"{name}.{key}") for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, _all(pairs.values())
    if isinstance(value, list | tuple | set | frozenset | range):
        items = [plain(ledger, item, f"{name}[{i}]") for i, item in enumerate(value)]
        return [item for item, _ in items], _all(items)
    return f"<{getattr(value, '__qualname__', None) or type(value).__qualname__}>", (name,)


def _all(pairs: Any) -> tuple[str, ...]:
    return tuple(name for _, names in pairs for name in names)
