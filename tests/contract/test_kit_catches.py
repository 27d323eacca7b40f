"""The conformance kit catches wrong components: those of the folder ``wrong_components``, each by the rule it names.

``python tests/contract/wrong_components`` prints which rules each of them breaks.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).with_name("wrong_components")))

import shelf
import wrong_backends
import wrong_encoders
import wrong_hooks
import wrong_learners
import wrong_memories
import wrong_sequences
import wrong_tasks

from kshot.testing import RuleViolation, Suite, rules, suite

sys.path.pop(0)

MODULES = (
    wrong_learners,
    wrong_sequences,
    wrong_tasks,
    wrong_memories,
    wrong_backends,
    wrong_hooks,
    wrong_encoders,
)
CAUGHT = [wrong for wrong in shelf.WRONG if wrong.rule]
SURVIVORS = [wrong for wrong in shelf.WRONG if not wrong.rule]
ELSEWHERE = "same-episodes-in-another-process"  # starts a process, which takes seconds; test_kit_tasks.py tries it


def of(wrong: shelf.Wrong) -> Suite:
    return suite(**{wrong.group: wrong.component}, **wrong.more)


def broken_rules(tried: Suite) -> list[str]:
    """Return the messages of all rules that a component breaks."""
    messages = []
    for rule in tried.rules():
        if rule.name != ELSEWHERE:
            try:
                tried.verify(rule)
            except RuleViolation as violation:
                messages.append(str(violation))
    return messages


def named(wrong: shelf.Wrong) -> str:
    return f"{wrong.group}-{wrong.name}"


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    """Require that the kit restores what a wrong component changes, so that it spoils no later test."""
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state().sum()
    yield
    after = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state().sum()
    assert after == before


@pytest.mark.parametrize("wrong", CAUGHT, ids=named)
def test_a_wrong_component_is_caught_by_its_rule(wrong: shelf.Wrong) -> None:
    """The message says what was observed and what was expected."""
    with pytest.raises(RuleViolation, match=r"(?s).{30,}") as raised:
        of(wrong).verify(wrong.rule)
    assert raised.value.rule == wrong.rule


@pytest.mark.parametrize("right", shelf.RIGHT, ids=named)
def test_the_right_components_keep_every_rule(right: shelf.Wrong) -> None:
    """Otherwise a wrong component may be caught for what it has in common with the right one."""
    assert broken_rules(of(right)) == []


@pytest.mark.parametrize("wrong", SURVIVORS, ids=named)
def test_the_survivors_really_pass(wrong: shelf.Wrong) -> None:
    """The list of what the kit can't catch is true: a survivor that a rule catches belongs to the others."""
    if torch.cuda.is_available() and "CUDA" in wrong.survives:
        pytest.skip("this machine has a CUDA device, where the rule devices applies")
    assert broken_rules(of(wrong)) == []
    assert len(wrong.survives) > 40


def test_nine_of_ten_wrong_components_are_caught() -> None:
    """The tests above show for each of them whether it is."""
    assert len(shelf.WRONG) >= 60
    assert len(CAUGHT) >= 0.9 * len(shelf.WRONG)


def test_names_and_rules_exist() -> None:
    """A rule that was renamed would be reported for each component that it catches."""
    assert [name for name, times in Counter(map(named, shelf.WRONG)).items() if times > 1] == []
    groups = {"learner": "learners", "tasks": "tasks", "memory": "memories", "backend": "backends", "hook": "hooks"}
    groups["encoder"] = "encoders"
    for wrong in CAUGHT:
        assert wrong.rule in {rule.name for rule in rules(groups[wrong.group])}, wrong
    assert {module.__name__ for module in MODULES} == {wrong.component.__module__ for wrong in shelf.WRONG}
