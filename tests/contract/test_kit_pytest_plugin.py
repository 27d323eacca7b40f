"""The pytest plugin: one line per component becomes one test per rule, and unused it costs nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from kshot.errors import OptionError
from kshot.testing import Rule, rules, suite

pytest_plugins = ["pytester"]

BACKENDS = """
    import kshot, torch
    from kshot.testing import suite

    class Honest(kshot.Cpu):
        def __init__(self):
            super().__init__(precision="float32", keep_freed_memory=False)

    class Undescribed(Honest):
        def describe(self):
            return {"name": "cpu", "precision": torch.float32}
"""


def ran(pytester: pytest.Pytester, text: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(test_components=textwrap.dedent(BACKENDS) + textwrap.dedent(text))
    return pytester.runpytest("-p", "no:cacheprovider", *arguments)


def test_one_line_is_one_test_for_each_rule(pytester: pytest.Pytester) -> None:
    """A test's id has the rule's name, so that -k and reports use names of rules."""
    result = ran(pytester, "conformance = suite(backend=Honest)", "-v")
    result.assert_outcomes(passed=len(rules("backends")))
    result.stdout.fnmatch_lines(["*test_components.py::conformance::describe-is-plain PASSED*"])


def test_a_failure_names_the_rule_and_says_what_was_found(pytester: pytest.Pytester) -> None:
    """The report has the component, the rule, the observation and the rule in words, but no traceback of the kit."""
    result = ran(pytester, "conformance = suite(backend=Undescribed)")
    result.assert_outcomes(passed=len(rules("backends")) - 1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*backend Undescribed breaks describe-is-plain: *expected a mapping that JSON can write*",
            "*The rule: *",
            "FAILED *::conformance::describe-is-plain*",
        ]
    )
    result.stdout.no_fnmatch_line("*backend_rules.py:*")


def test_an_expected_failure_is_a_strict_xfail_with_its_reason(pytester: pytest.Pytester) -> None:
    """Known faults remain visible, and those that were fixed must be removed from the list."""
    text = """
        broken = suite(backend=Undescribed, expected_failures={"describe-is-plain": "reported upstream"})
        fixed = suite(backend=Honest, expected_failures={"describe-is-plain": "was broken once"})
    """
    result = ran(pytester, text, "-rx")
    result.assert_outcomes(passed=2 * len(rules("backends")) - 2, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["XFAIL *broken::describe-is-plain - reported upstream*"])
    result.stdout.fnmatch_lines(["*XPASS(strict)*was broken once*"])


def test_an_advice_is_a_warning(pytester: pytest.Pytester) -> None:
    """A method may need more training than the kit gives it, so a learner that learns nothing is not refused."""
    text = """
        from kshot.testing.sample_learner import NearestMean

        class Farthest(NearestMean):
            def adapt(self, support):
                predict = super().adapt(support)
                return lambda x: -predict(x)

        conformance = suite(learner=Farthest)
        known = suite(learner=Farthest, expected_failures={"learns-from-the-support": "it needs more training"})
    """
    result = ran(pytester, text, "-k", "learns-from-the-support", "-W", "always::UserWarning")
    result.assert_outcomes(passed=1, xfailed=1, warnings=1, deselected=2 * len(rules("learners")) - 2)
    result.stdout.fnmatch_lines(
        ["*learner Farthest breaks learns-from-the-support: on classification: got an accuracy*"]
    )


def test_a_rule_that_does_not_apply_is_skipped_with_the_reason(pytester: pytest.Pytester) -> None:
    """-ra lists what was not tested, in one line each."""
    text = """
        from kshot.testing import sample_tasks
        lines = suite(tasks=sample_tasks.Lines())
    """
    result = ran(pytester, text, "-ra", "-k", "labels-uniform or spec-is-true")
    result.assert_outcomes(passed=1, skipped=1, deselected=len(rules("tasks")) - 2)
    said = "lines::labels-uniform does not apply to tasks Lines: their kind is regression"
    result.stdout.fnmatch_lines([f"SKIPPED * test_components.py: {said}"])


def test_rules_are_chosen_by_name(pytester: pytest.Pytester) -> None:
    """-k accepts a fragment of a rule's name, and an id names one rule."""
    result = ran(pytester, "conformance = suite(backend=Honest)", "-k", "describe")
    result.assert_outcomes(passed=1, deselected=len(rules("backends")) - 1)
    result = pytester.runpytest("-p", "no:cacheprovider", "test_components.py::conformance::world-is-consistent")
    result.assert_outcomes(passed=1)


def test_a_component_that_can_not_be_built_fails_with_its_own_traceback(pytester: pytest.Pytester) -> None:
    """The author needs the line in the component, not in the kit."""
    text = """
        def no_backend():
            raise ValueError("bolts are missing")

        conformance = suite(backend=no_backend)
    """
    result = ran(pytester, text, "-k", "describe")
    result.assert_outcomes(failed=1, deselected=len(rules("backends")) - 1)
    result.stdout.fnmatch_lines(["*bolts are missing*", '*raise ValueError("bolts are missing")*'])


def test_the_plugin_imports_nothing_until_a_suite_is_there() -> None:
    """Every pytest run loads the plugin if kshot is installed, and importing torch would cost each of them a second."""
    code = """
        import sys
        import kshot.testing.pytest_plugin
        loaded = sorted(m for m in sys.modules if m.split(".")[0] in ("kshot", "torch", "numpy", "attrs", "attr"))
        print(*loaded)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = [m for m in done.stdout.split() if not m.startswith("attr")]  # pytest itself may use attrs
    assert loaded == ["kshot", "kshot._distributions", "kshot.testing", "kshot.testing.pytest_plugin"]


def test_every_rule_is_stated() -> None:
    """Every rule has a name in kebab case and a statement in words."""
    for rule in rules():
        assert isinstance(rule, Rule)
        assert rule.name == rule.name.lower().replace("_", "-")
        assert len(rule.statement) > 40, rule.name


def test_rules_of_an_unknown_group_are_refused() -> None:
    """The message has the most similar name."""
    with pytest.raises(OptionError, match=r"got the group 'memory', expected one of .*; did you mean 'memories'"):
        rules("memory")


def test_a_suite_is_named_after_its_component() -> None:
    """Reports of several suites can be distinguished."""
    report = suite(backend="cpu", options={"keep_freed_memory": False}).run()
    assert str(report).startswith(f"backend cpu: {len(rules('backends'))} passed\n  passed    place-keeps-values")
