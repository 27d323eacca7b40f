"""The pytest plugin: a ``kshot.testing.Suite`` in a test module becomes one test for each rule.

It is loaded in every pytest run where kshot is installed, so it imports nothing of kshot: a suite can only be there
if its module already is.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kshot.testing.rulebook.rule import Rule
    from kshot.testing.suites import Suite


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> pytest.Collector | None:
    """Collect suites, whatever they are called."""
    suites = sys.modules.get("kshot.testing.suites")
    if suites is None or not isinstance(obj, suites.Suite):
        return None
    made: SuiteCollector = SuiteCollector.from_parent(collector, name=name, suite=obj)
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A rule that does not apply is reported where the suite is, not here."""
    report = yield
    if isinstance(item, RuleItem) and report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = (str(item.path), None, report.longrepr[2])  # type: ignore[assignment]
    return report


class SuiteCollector(pytest.Collector):
    """The rules of one component; a test's id ends in ``NAME::RULE``."""

    def __init__(self, *, suite: Suite, **more: Any) -> None:
        super().__init__(**more)
        self.suite = suite

    def collect(self) -> Iterator[pytest.Item]:
        for rule in self.suite.rules():
            item: RuleItem = RuleItem.from_parent(self, name=rule.name, suite=self.suite, rule=rule)
            if rule.name in self.suite.expected_failures:
                reason = self.suite.expected_failures[rule.name]
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
            yield item


class RuleItem(pytest.Item):
    """One rule, tried on one component."""

    def __init__(self, *, suite: Suite, rule: Rule, **more: Any) -> None:
        super().__init__(**more)
        self.suite = suite
        self.rule = rule

    def runtest(self) -> None:
        reason = self.suite.verify(self.rule)
        if reason is not None:
            where = self.parent.name if self.parent is not None else self.suite.who
            pytest.skip(f"{where}::{self.rule.name} does not apply to {self.suite.who}: {reason}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was found, the rule itself, and the component's own traceback where it raised."""
        violation = excinfo.value
        if getattr(violation, "rule", None) != self.rule.name:
            return super().repr_failure(excinfo, style)
        text = f"{self.suite.who} breaks {violation}\n\nThe rule: {self.rule.statement}"
        if violation.__cause__ is not None:
            cause = pytest.ExceptionInfo.from_exception(violation.__cause__)
            return f"{text}\n\n{super().repr_failure(cause, style)}"
        return text

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, f"{self.suite.who}: {self.rule.name}"
