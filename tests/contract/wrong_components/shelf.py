"""The record of one wrong component: which rule of the conformance kit catches it, or why none can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Wrong(NamedTuple):
    """One component with one fault.

    Attributes:
        group: learner, tasks, memory, backend, hook or encoder, as ``kshot.testing.suite`` calls it.
        component: a class or factory.
        rule: the rule that catches it; empty if no rule does.
        survives: why no rule can catch it without refusing right components; empty if one does.
        more: further arguments of the suite, such as ``tasks`` on which a learner is tried.
    """

    group: str
    component: Any
    rule: str
    survives: str
    more: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The component's name, which is unique in the collection."""
        return str(self.component.__name__)


WRONG: list[Wrong] = []
"""All wrong components whose modules have been imported."""

RIGHT: list[Wrong] = []
"""The components from which the wrong ones are derived; they keep all rules."""


def right(group: str, **more: Any) -> Callable[[T], T]:
    """Put a right component into the collection."""

    def put(component: T) -> T:
        RIGHT.append(Wrong(group, component, "", "", more))
        return component

    return put


def caught_by(rule: str, group: str, **more: Any) -> Callable[[T], T]:
    """Put a wrong component into the collection, with the rule that catches it."""

    def put(component: T) -> T:
        WRONG.append(Wrong(group, component, rule, "", more))
        return component

    return put


def survives(why: str, group: str, **more: Any) -> Callable[[T], T]:
    """Put a wrong component into the collection that no rule can catch, with the reason."""

    def put(component: T) -> T:
        WRONG.append(Wrong(group, component, "", why, more))
        return component

    return put
