"""Which software and which components took part in a result, and what tells one training from another."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from kshot.protocols import TaskDistribution
from kshot.registry import built


def versions(*components: Any) -> dict[str, str]:
    """Return the versions of kshot, torch, Python and of the distributions that the components were built from."""
    recorded = {"kshot": version("kshot"), "torch": str(torch.__version__), "python": platform.python_version()}
    for component in components:
        how = built(component)
        if how is not None and how.distribution and how.distribution != "kshot":
            recorded[how.distribution] = how.version
    return recorded


def version(distribution: str) -> str:
    """Return the installed version of a distribution, or ``unknown``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def describe(component: Any) -> dict[str, Any]:
    """Return name and options of a component as the registry built it, else its class."""
    how = built(component)
    if how is None:
        return {"class": f"{type(component).__module__}.{type(component).__qualname__}"}
    return {"name": how.name, "options": dict(how.options)}


def initial_seed(learner: Any) -> int | None:
    """Return the seed that a learner was initialised from; None if it was not built by name."""
    how = built(learner)
    return None if how is None else how.seed


def tasks_facts(tasks: TaskDistribution) -> dict[str, Any]:
    """Return what tells the episodes of these tasks from those of others: spec, seed, data and options."""
    how = built(tasks)
    return {
        "spec": tasks.spec.to_dict(),
        "seed": int(getattr(tasks, "seed", 0)),
        "data": str(getattr(tasks, "fingerprint", "")),
        **({} if how is None else {"options": dict(how.identity)}),
    }


def learner_facts(learner: nn.Module) -> dict[str, Any]:
    """Return what tells this learner from another one with parameters of the same shapes.

    These are the options of a learner that was built by name. Of another one they are the numbers, strings and
    booleans that it and the modules in it keep as attributes, such as an inner learning rate or a dropout rate.
    """
    how = built(learner)
    if how is not None:
        return dict(how.identity)
    return {
        f"{name}.{attribute}" if name else attribute: value
        for name, module in learner.named_modules()
        for attribute, value in vars(module).items()
        if not attribute.startswith("_") and attribute != "training" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def differences(
    theirs: Mapping[str, Any], mine: Mapping[str, Any], *, added: frozenset[str] = frozenset()
) -> list[tuple[str, Any, Any]]:
    """Compare two nested mappings: [(dotted name, their value, my value)] of the leaves that differ.

    Args:
        added: names that mappings of earlier versions lack; they are not compared if ``theirs`` lacks them.
    """
    mine = {name: value for name, value in mine.items() if name in theirs or name not in added}
    first, second = dict(leaves(as_json(theirs))), dict(leaves(as_json(mine)))
    names = [name for name in dict.fromkeys([*first, *second]) if name.partition(".")[0] in mine]
    return [(n, first.get(n), second.get(n)) for n in names if first.get(n) != second.get(n)]


def as_json(value: Any) -> Any:
    """Return ``value`` as JSON writes and reads it: tuples as lists, paths as text."""
    return json.loads(json.dumps(value, default=str))


def leaves(facts: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of everything in nested mappings."""
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{under}{name}.")
        else:
            yield f"{under}{name}", value


def computed_on(backend: Any) -> str:
    """Return the device and the precision that a backend computes with, such as ``cpu in float32``.

    Of a backend for several processes it is that of the local one: their number changes nothing that is learnt.
    """
    described: Mapping[str, Any] = backend.describe()
    while isinstance(described.get("local"), Mapping):
        described = described["local"]
    return f"{described.get('name', 'backend')} in {described.get('precision', 'its own precision')}"
