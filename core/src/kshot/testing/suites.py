"""Suites of one component and its rules, and reports of how it kept them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from attrs import frozen

from kshot.errors import OptionError, Unavailable
from kshot.registry.options import did_you_mean
from kshot.registry.surroundings import kept
from kshot.testing.rulebook.rule import Rule, RuleViolation, rules

if TYPE_CHECKING:
    from kshot.testing.source import Source

Outcome = Literal["passed", "failed", "warned", "skipped", "failed as expected", "passed unexpectedly"]


class Finding(NamedTuple):
    """The outcome of one rule.

    Attributes:
        rule: name of the rule.
        outcome: what happened.
        message: what was observed, or why the rule does not apply; empty if it passed.

    Example:
        >>> finding = Finding("describe-is-plain", "passed", "")
        >>> finding.outcome
        'passed'
    """

    rule: str
    outcome: Outcome
    message: str


@frozen
class Report:
    """The outcomes of all rules of a component; it prints as a table.

    Attributes:
        component: the component in words.
        findings: one per rule.

    Example:
        >>> print(Report("backend mine", (Finding("place-keeps-values", "passed", ""),)))
        backend mine: 1 passed
          passed    place-keeps-values
    """

    component: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no rule failed except those that were expected to fail, and all of those did fail."""
        return not any(f.outcome in ("failed", "passed unexpectedly") for f in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        outcomes = [f.outcome for f in self.findings]
        counts = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(sorted(outcomes)))
        wide = max((len(f.rule) for f in self.findings), default=0)
        lines = [f"  {f.outcome:<8}  {f.rule:<{wide}}  {f.message}".rstrip() for f in self.findings]
        return "\n".join([f"{self.component}: {counts}", *lines])


class Suite:
    """One component and the rules that it must keep; ``suite`` builds it.

    Attributes:
        group: tasks, learners, memories, backends, hooks or encoders.
        expected_failures: names of rules, each with the reason why the component breaks it.

    Example:
        >>> from kshot.testing import sample_tasks, suite
        >>> suite(tasks=sample_tasks.Lines()).verify("labels-uniform")
        'their kind is regression'
    """

    def __init__(
        self, group: str, source: Source, tasks: Sequence[Source], expected_failures: Mapping[str, str]
    ) -> None:
        self.group = group
        self.expected_failures = dict(expected_failures)
        self._source = source
        self._tasks = tuple(tasks)
        self._subject: Any = None

    def __repr__(self) -> str:
        return f"<kshot.testing.Suite: {self.who}>"

    @property
    def who(self) -> str:
        """The component in words."""
        return self._source.who

    def rules(self) -> tuple[Rule, ...]:
        """Return the rules for this group of components."""
        return rules(self.group)

    def verify(self, rule: Rule | str) -> str | None:
        """Check one rule; return None if it is kept, or the reason why it does not apply to this component.

        Settings of the process that the component changes, and the states of random generators, are restored.

        Raises:
            RuleViolation: the component breaks the rule, or can't be built.
            OptionError: there is no rule of this name.
        """
        with kept(lambda changes: None):
            return self._verify(self._named(rule) if isinstance(rule, str) else rule)

    def _verify(self, rule: Rule) -> str | None:
        try:
            subject = self.subject()
            reason = rule.applies(subject)
        except Unavailable as why:
            return str(why)
        except Exception as raised:
            message = f"got {type(raised).__name__} while building or inspecting {self.who}, expected none: {raised}"
            raise RuleViolation(rule.name, message) from raised
        if reason is None:
            try:
                with one_thread():
                    rule.verify(subject)
            except Unavailable as why:
                return str(why)
        return reason

    def subject(self) -> Any:
        """Return the component in the form that rules receive; it is built at the first call."""
        if self._subject is None:
            from kshot.testing import subjects

            if self.group == "learners":
                self._subject = subjects.LearnerSubject(self._source, self._tasks)
            elif self.group == "encoders":
                self._subject = subjects.EncoderSubject(self._source, self._tasks)
            else:
                subject_types = {
                    "tasks": subjects.TasksSubject,
                    "memories": subjects.MemorySubject,
                    "backends": subjects.BackendSubject,
                    "hooks": subjects.HookSubject,
                }
                self._subject = subject_types[self.group](self._source)
        return self._subject

    def run(self) -> Report:
        """Check every rule and report the outcomes."""
        return Report(self.who, tuple(self._finding(rule) for rule in self.rules()))

    def _finding(self, rule: Rule) -> Finding:
        expected = self.expected_failures.get(rule.name)
        try:
            reason = self.verify(rule)
        except RuleViolation as violation:
            if expected is None:
                return Finding(rule.name, "warned" if rule.advice else "failed", violation.message)
            return Finding(rule.name, "failed as expected", f"{expected} ({violation.message})")
        if reason is not None:
            return Finding(rule.name, "skipped", reason)
        if expected is not None:
            message = f"got no failure, expected one; remove it from expected_failures: {expected}"
            return Finding(rule.name, "passed unexpectedly", message)
        return Finding(rule.name, "passed", "")

    def _named(self, name: str) -> Rule:
        known = {rule.name: rule for rule in self.rules()}
        if name not in known:
            raise OptionError(unknown_rule(name, self.group, known))
        return known[name]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread inside the context, because the kit's components are too small for more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def unknown_rule(name: str, group: str, known: Mapping[str, Rule]) -> str:
    """Return the message for a rule's name that does not exist."""
    return f"suite: got the rule {name!r} for {group}, expected one of {', '.join(known)}{did_you_mean(name, known)}"


def suite(
    *,
    learner: Any = None,
    tasks: Any = None,
    memory: Any = None,
    backend: Any = None,
    hook: Any = None,
    encoder: Any = None,
    options: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Suite:
    """Build the suite of one component.

    Args:
        learner: a plugin's name, a learner class, or a factory ``(spec, **options)``.
        tasks: a plugin's name, a class or factory, or tasks that are already built. Together with ``learner``: the
            tasks on which the learner is tried instead of the kit's own small tasks; one of these,
            ``{"name": ..., **options}``, or a list of them. Together with ``encoder``: tasks whose inputs it embeds.
        memory: a plugin's name, a class, or a factory ``(slots, width, reads, **options)``.
        backend: a plugin's name, a class or factory, or a backend that is already built.
        hook: a plugin's name, a class or a factory.
        encoder: a plugin's name, a class, or a factory ``(spec, **options)``.
        options: options of the component.
        expected_failures: names of rules that the component is known to break, each with the reason.

    Raises:
        OptionError: there is not exactly one component, a rule does not exist, or an expected failure has no reason.

    Example:
        >>> from kshot.testing import sample_tasks, suite
        >>> report = suite(tasks=sample_tasks.Quadratics, options={"steps": 3}).run()
        >>> report.ok
        True
    """
    given = {
        "learners": learner,
        "encoders": encoder,
        "tasks": tasks,
        "memories": memory,
        "backends": backend,
        "hooks": hook,
    }
    present = [group for group, value in given.items() if value is not None]
    if len(present) != 1 and present not in (["learners", "tasks"], ["encoders", "tasks"]):
        raise OptionError(
            f"suite: got {', '.join(present) or 'no component'}, expected one of learner=, tasks=, memory=, "
            "backend=, hook= and encoder= (or tasks= together with a learner or an encoder, to try it on them)"
        )
    from kshot.testing.source import Source

    group = present[0]
    source = Source(group, given[group], dict(options or {}))
    tried_on: list[Source] = []
    if group in ("learners", "encoders") and tasks is not None:
        for each in tasks if isinstance(tasks, list | tuple) else [tasks]:
            more = dict(each) if isinstance(each, Mapping) else {"name": each}
            if "name" not in more:
                raise OptionError(f"suite: got the tasks {each!r}, expected {{'name': ..., **options}}")
            tried_on.append(Source("tasks", more.pop("name"), more))
    known = {rule.name: rule for rule in rules(group)} if expected_failures else {}
    for name, reason in (expected_failures or {}).items():
        if name not in known:
            raise OptionError(unknown_rule(name, group, known))
        if not isinstance(reason, str) or not reason.strip():
            raise OptionError(
                f"suite: got the reason {reason!r} for {name!r} in expected_failures, expected why the component "
                "breaks the rule"
            )
    return Suite(group, source, tried_on, expected_failures or {})
