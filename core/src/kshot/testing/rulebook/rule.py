"""What a rule is, and the list of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from attrs import frozen

from kshot.errors import OptionError, Unavailable
from kshot.registry.options import did_you_mean

MODULES = {
    "tasks": ("tasks", "control", "objectives"),
    "learners": (
        "learners",
        "gradients",
        "per_task",
        "promises",
        "control",
        "objectives",
    ),
    "memories": ("memories",),
    "backends": ("backends",),
}
"""Where the rules of each group of components are; the groups are the registry's."""


class RuleViolation(AssertionError):
    """A component breaks a rule. ``rule`` is its name, ``message`` what was found and what was expected."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule
        self.message = message


class Broken(Exception):
    """Raised within a check, which needs not know its rule's name."""


def broken(message: str) -> NoReturn:
    """End a check: the component breaks the rule."""
    raise Broken(message)


@frozen(eq=False)
class Rule:
    """One rule.

    Attributes:
        name: in kebab case, unique within its group.
        group: tasks, learners, memories or backends.
        check: takes the component under test (a ``Subject``); raises where the rule is broken.
        unless: takes the same; says why the rule does not hold for this component, or None where it does.
    """

    name: str
    group: str
    check: Callable[[Any], None]
    unless: Callable[[Any], str | None]

    @property
    def statement(self) -> str:
        """The rule in words, such that no legitimate component breaks it."""
        return inspect.cleandoc(self.check.__doc__ or "")

    def applies(self, component: Any) -> str | None:
        """Why the rule does not hold for this component, or None where it does."""
        return self.unless(component)

    def verify(self, component: Any) -> None:
        """Raises RuleViolation where the component breaks the rule, or raises where it should not.

        ``Unavailable`` is passed on: what a component needs may be missing on this machine.
        """
        try:
            self.check(component)
        except Unavailable:
            raise
        except Broken as found:
            raise RuleViolation(self.name, str(found)) from None
        except Exception as raised:
            message = f"raised {type(raised).__name__}: {raised}"
            raise RuleViolation(self.name, message) from raised


_RULES: dict[str, dict[str, Rule]] = {group: {} for group in MODULES}


def always(_: Any) -> None:
    """The rule holds for every component of its group."""


def add(rule: Rule) -> None:
    """Put a rule on the list of its group."""
    _RULES[rule.group][rule.name] = rule


def named(check: Callable[..., Any]) -> str:
    """A check's name in kebab case."""
    return check.__name__.replace("_", "-")


def rules(group: str | None = None) -> tuple[Rule, ...]:
    """The rules of a group (tasks, learners, memories, backends), or all.

    Raises:
        OptionError: there is no such group.
    """
    if group is not None and group not in MODULES:
        raise OptionError(
            f"rules: no group is called {group!r}{did_you_mean(group, MODULES)}; there are {', '.join(MODULES)}"
        )
    for wanted in MODULES if group is None else (group,):
        for module in MODULES[wanted]:
            importlib.import_module(f"kshot.testing.rulebook.{module}")
    return tuple(rule for name in MODULES if group in (None, name) for rule in _RULES[name].values())
