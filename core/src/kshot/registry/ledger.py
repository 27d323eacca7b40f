"""How components were built: remembered for as long as they live, in values that a file can hold."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen


@frozen
class Built:
    """How a component was built. ``options`` are plain values that JSON and TOML can write, None apart in
    TOML.

    ``portable`` is False where an option was an object that plain values can't rebuild (an encoder, a
    function); it then stands in ``options`` as text in angle brackets.
    """

    group: str
    name: str
    options: Mapping[str, Any]
    distribution: str
    version: str
    portable: bool = True
    seed: int | None = None  # of a learner's initialisation
    given: Mapping[str, Any] = field(factory=dict, repr=False)  # the same options as they were given

    def plain(self) -> dict[str, Any]:
        """The nested form, which building takes again: ``{"name": "reptile", "inner_lr": 0.001}``."""
        return {"name": self.name, **self.options}


Ledger = dict[int, tuple[Callable[[], object], Built]]
"""By identity: a reference to the component, which does not keep it alive, and how it was built."""


def remember(ledger: Ledger, component: object, how: Built) -> None:
    """Enter a component; the entry goes when it does."""
    key = id(component)
    try:
        reference: Callable[[], object] = weakref.ref(component, lambda _: ledger.pop(key, None))
    except TypeError:  # slots without __weakref__: it is kept for as long as the ledger is
        reference = lambda: component  # noqa: E731
    ledger[key] = reference, how


def recall(ledger: Ledger, component: object) -> Built | None:
    """How a component was built, or None where it is not in the ledger."""
    reference, how = ledger.get(id(component), (lambda: None, None))
    return how if reference() is component else None


def plain(ledger: Ledger, value: Any) -> tuple[Any, bool]:
    """An option as JSON can write it, and whether building from that gives the same."""
    if (how := recall(ledger, value)) is not None:
        return how.plain(), how.portable
    if value is None or isinstance(value, bool | int | float | str):
        return value, True
    if isinstance(value, Path):
        return str(value), True
    if isinstance(value, Mapping):
        pairs = {str(key): plain(ledger, item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, all(whole for _, whole in pairs.values())
    if isinstance(value, list | tuple | set | frozenset | range):
        items = [plain(ledger, item) for item in value]
        return [item for item, _ in items], all(whole for _, whole in items)
    return f"<{getattr(value, '__qualname__', None) or type(value).__qualname__}>", False
