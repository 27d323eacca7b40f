"""How components were built: remembered for as long as they live, in values that a file can store."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen


@frozen
class Built:
    """How a component was built.

    Attributes:
        group, name: of the plugin; a network that was named by an import path has the group ``modules``.
        options: plain values that JSON can write. An option that plain values can't rebuild (a module object, a
            function) stands there as text in angle brackets.
        distribution, version: that the plugin is of.
        obstacles: the names of the options that plain values can't rebuild, dotted where they are nested.
        seed: of a learner's initialisation.
        identity: name and options without those that say where something lies on this machine.
        given: the same options as they were given.
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
        """Whether building from ``options`` gives the same component."""
        return not self.obstacles

    def plain(self) -> dict[str, Any]:
        """Return the nested form, which building takes again: ``{"name": "reptile", "inner_lr": 0.001}``."""
        return {"name": self.name, **self.options}


Ledger = dict[int, tuple[Callable[[], object], Built]]
"""By identity: a reference to the component, which does not keep it alive, and how it was built."""


def remember(ledger: Ledger, component: object, how: Built) -> None:
    """Enter a component; the entry is dropped with it."""
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
    """Return the option ``name`` as JSON can write it, and the names of what in it plain values can't rebuild."""
    if (how := recall(ledger, value)) is not None:
        return how.plain(), tuple(f"{name}.{inner}" for inner in how.obstacles)
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
