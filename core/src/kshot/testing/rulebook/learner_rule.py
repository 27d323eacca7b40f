"""How a rule for learners is stated: on which tasks it holds, and that it is tried on each of them."""

from __future__ import annotations

from collections.abc import Callable

from kshot.testing.cases import Case
from kshot.testing.rulebook.rule import Broken, Rule, add, broken, named
from kshot.testing.subjects import LearnerSubject

Check = Callable[[Case], None]
Unless = Callable[[Case], "str | None"]

TABLES = ("classification", "regression")
"""The kinds whose episodes are tables of examples: their queries stand for themselves."""


def everywhere(_: Case) -> None:
    """The rule holds for all tasks."""


def learner_rule(unless: Unless = everywhere) -> Callable[[Check], Check]:
    """Put a check on the list of rules for learners: it is tried on each case for which ``unless`` says nothing."""

    def put(check: Check) -> Check:
        def on_every_case(subject: LearnerSubject) -> None:
            for case in subject.cases:
                if unless(case) is None:
                    try:
                        check(case)
                    except Broken as found:
                        broken(f"on {case.name}: {found}")
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
    """The rule holds for these kinds."""
    return lambda case: None if case.kind in kinds else f"it learns {case.kind}"


def first_of(*reasons: Unless) -> Unless:
    """The rule holds where all of these say nothing."""
    return lambda case: next((r for r in (reason(case) for reason in reasons) if r is not None), None)


def claims(what: str) -> Unless:
    """The rule holds for learners that claim this invariance."""
    return lambda case: None if what in case.needs.invariant else f"it does not claim to be invariant to {what}"
