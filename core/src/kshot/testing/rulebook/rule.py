"""What a rule is, and the list of all rules."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from attrs import frozen

from kshot.errors import OptionError, Unavailable
from kshot.registry.options import did_you_mean

MODULES = {
    "tasks": (
        "tasks",
        "task_specs",
        "task_examples",
        "task_labels",
        "control",
        "objectives",
        "copies",
    ),
    "learners": (
        "learners",
        "gradients",
        "per_task",
        "promises",
        "choices",
        "learning",
        "control",
        "objectives",
        "copies",
    ),
    "memories": ("memories", "copies"),
    "backends": ("backends",),
    "hooks": ("hooks",),
    "encoders": ("encoders",),
}
"""The modules that have the rules of each group of components; the groups are those of the registry."""


class RuleViolation(AssertionError):
    """Raised when a component breaks a rule.

    Attributes:
        rule: name of the rule.
        message: what was observed and what was expected.

    Example:
        >>> violation = RuleViolation("predictor-shape", "got shape (3,), expected (3, 5)")
        >>> print(violation)
        predictor-shape: got shape (3,), expected (3, 5)
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule
        self.message = message


class Broken(Exception):
    """Raised inside a check, which does not know the name of its rule."""


def broken(message: str) -> NoReturn:
    """End a check because the component breaks the rule.

    Raises:
        Broken: always, with ``message``.
    """
    raise Broken(message)


@frozen(eq=False)
class Rule:
    """One rule that every component of a group must keep.

    Attributes:
        name: in kebab case, unique within its group.
        group: tasks, learners, memories, backends, hooks or encoders.
        check: takes the component under test (its subject) and raises an exception if the rule is broken.
        unless: takes the same; returns the reason why the rule does not apply to this component, or None if it does.
        advice: whether a component that breaks the rule is reported with a warning, and not refused.

    Example:
        >>> rule = rules("memories")[0]
        >>> rule.name, rule.group
        ('sizes-are-true', 'memories')
    """

    name: str
    group: str
    check: Callable[[Any], None]
    unless: Callable[[Any], str | None]
    advice: bool = False

    @property
    def statement(self) -> str:
        """The rule in words."""
        return inspect.cleandoc(self.check.__doc__ or "")

    def applies(self, component: Any) -> str | None:
        """Return the reason why the rule does not apply to this component, or None if it does."""
        return self.unless(component)

    def verify(self, component: Any) -> None:
        """Check the rule on a component.

        Raises:
            RuleViolation: the component breaks the rule, or raises another exception.
            Unavailable: something that the component needs is missing on this machine.
        """
        try:
            self.check(component)
        except Unavailable:
            raise
        except Broken as violation:
            raise RuleViolation(self.name, str(violation)) from None
        except Exception as raised:
            message = f"raised {type(raised).__name__}: {raised}"
            raise RuleViolation(self.name, message) from raised


_RULES: dict[str, dict[str, Rule]] = {group: {} for group in MODULES}


def always(_: Any) -> None:
    """Say that a rule applies to every component of its group."""


def add(rule: Rule) -> None:
    """Add a rule to the list of its group."""
    _RULES[rule.group][rule.name] = rule


def named(check: Callable[..., Any]) -> str:
    """Return the name of a check function in kebab case."""
    return check.__name__.replace("_", "-")


def rules(group: str | None = None) -> tuple[Rule, ...]:
    """Return the rules of a group (tasks, learners, memories, backends, hooks, encoders), or of all groups.

    Raises:
        OptionError: there is no such group.

    Example:
        >>> "stays-finite" in [rule.name for rule in rules("memories")]
        True
    """
    if group is not None and group not in MODULES:
        raise OptionError(
            f"rules: got the group {group!r}, expected one of {', '.join(MODULES)}{did_you_mean(group, MODULES)}"
        )
    # Import the modules of all groups in one fixed order, because some of them have rules for two groups.
    for modules in MODULES.values():
        for module in modules:
            importlib.import_module(f"kshot.testing.rulebook.{module}")
    return tuple(rule for name in MODULES if group in (None, name) for rule in _RULES[name].values())
