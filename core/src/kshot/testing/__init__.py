"""The conformance kit, which checks that a component keeps what its protocol promises.

Add one line per component to a test module:

    conformance = kshot.testing.suite(learner="protonet")

If kshot is installed, pytest collects it as one test per rule. Without pytest, use ``print(suite(...).run())``.
Importing this module imports neither torch nor the rules; its names are loaded on first use.

Example:
    >>> import kshot.testing
    >>> report = kshot.testing.suite(tasks=kshot.testing.sample_tasks.Lines()).run()
    >>> report.ok
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kshot.testing import sample_tasks
    from kshot.testing.rulebook.rule import Rule, RuleViolation, rules
    from kshot.testing.suites import Finding, Report, Suite, suite

_MODULE_OF = {
    "Finding": "suites",
    "Report": "suites",
    "Rule": "rulebook.rule",
    "RuleViolation": "rulebook.rule",
    "Suite": "suites",
    "rules": "rulebook.rule",
    "suite": "suites",
}

__all__ = ["Finding", "Report", "Rule", "RuleViolation", "Suite", "rules", "sample_tasks", "suite"]


def __getattr__(name: str) -> Any:
    if name == "sample_tasks":
        return importlib.import_module("kshot.testing.sample_tasks")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kshot.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kshot.testing.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
