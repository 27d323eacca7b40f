"""Register rules for learners, which are checked on each task distribution to which they apply."""

from __future__ import annotations

from collections.abc import Callable

from kshot.testing.cases import Case
from kshot.testing.rulebook.rule import Broken, Rule, add, broken, named
from kshot.testing.subjects import LearnerSubject

Check = Callable[[Case], None]
Unless = Callable[[Case], "str | None"]

TABLES = ("classification", "regression")
"""The kinds whose episodes are tables of labelled examples, so that each query has a meaning without the others."""


def everywhere(_: Case) -> None:
    """Say that a rule applies to all tasks."""


def learner_rule(unless: Unless = everywhere) -> Callable[[Check], Check]:
    """Register a check as a rule for learners; it is run on each case for which ``unless`` returns None."""

    def put(check: Check) -> Check:
        def on_every_case(subject: LearnerSubject) -> None:
            for case in subject.cases:
                if unless(case) is None:
                    try:
                        check(case)
                    except Broken as violation:
                        broken(f"on {case.name}: {violation}")
                    except Exception as raised:
                        raised.add_note(f"on {case.name}")
                        raise

        def on_no_case(subject: LearnerSubject) -> str | None:
            reasons = [unless(case) for case in subject.cases]
            return None if None in reasons else "; ".join(dict.fromkeys(r for r in reasons if r))

        on_every_case.__doc__ = check.__doc__
        add(Rule(named(check), "learners", on_every_case, on_no_case))
        return check

    return put


def only(*kinds: str) -> Unless:
    """Say that a rule applies to these kinds only."""
    return lambda case: None if case.kind in kinds else f"it learns {case.kind}"


def first_of(*reasons: Unless) -> Unless:
    """Combine reasons: the rule applies if none of them returns one."""
    return lambda case: next((r for r in (reason(case) for reason in reasons) if r is not None), None)


def claims(what: str) -> Unless:
    """Say that a rule applies only to learners that declare this invariance."""
    return lambda case: None if what in case.needs.invariant else f"needs.invariant does not have {what!r}"
