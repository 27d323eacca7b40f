"""The pytest plugin, which turns a ``kshot.testing.Suite`` in a test module into one test per rule.

Every pytest run loads it if kshot is installed, so it imports nothing of kshot: a suite can exist only if its module
has been imported already.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kshot.testing.rulebook.rule import Rule
    from kshot.testing.suites import Suite


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> pytest.Collector | None:
    """Collect suites, whatever their variables are called."""
    suites = sys.modules.get("kshot.testing.suites")
    if suites is None or not isinstance(obj, suites.Suite):
        return None
    suite: SuiteCollector = SuiteCollector.from_parent(collector, name=name, suite=obj)
    return suite


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a rule that does not apply at the file of the suite, not at this file."""
    report = yield
    if isinstance(item, RuleItem) and report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (str(item.path), None, report.longrepr[2])  # type: ignore[assignment]
    return report


class SuiteCollector(pytest.Collector):
    """Collect the rules of one component; the id of each test ends in ``NAME::RULE``."""

    def __init__(self, *, suite: Suite, **more: Any) -> None:
        super().__init__(**more)
        self.suite = suite

    def collect(self) -> Iterator[pytest.Item]:
        """Yield one test per rule; those of ``expected_failures`` are marked as strict xfails."""
        for rule in self.suite.rules():
            item: RuleItem = RuleItem.from_parent(self, name=rule.name, suite=self.suite, rule=rule)
            if rule.name in self.suite.expected_failures:
                reason = self.suite.expected_failures[rule.name]
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
            yield item


class RuleItem(pytest.Item):
    """Run one rule on one component."""

    def __init__(self, *, suite: Suite, rule: Rule, **more: Any) -> None:
        super().__init__(**more)
        self.suite = suite
        self.rule = rule

    def runtest(self) -> None:
        """Verify the rule, and skip the test if it does not apply. A rule that is an advice gives a warning."""
        try:
            reason = self.suite.verify(self.rule)
        except AssertionError as violation:
            if not self.rule.advice or self.rule.name in self.suite.expected_failures:
                raise
            warnings.warn(f"{self.suite.who} breaks {violation}", stacklevel=1)
            return
        if reason is not None:
            where = self.parent.name if self.parent is not None else self.suite.who
            pytest.skip(f"{where}::{self.rule.name} does not apply to {self.suite.who}: {reason}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show what was observed, the rule in words, and the component's own traceback if it raised an exception."""
        violation = excinfo.value
        if getattr(violation, "rule", None) != self.rule.name:
            return super().repr_failure(excinfo, style)
        text = f"{self.suite.who} breaks {violation}\n\nThe rule: {self.rule.statement}"
        if violation.__cause__ is not None:
            cause = pytest.ExceptionInfo.from_exception(violation.__cause__)
            return f"{text}\n\n{super().repr_failure(cause, style)}"
        return text

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return the file of the suite and the name of the test."""
        return self.path, None, f"{self.suite.who}: {self.rule.name}"
