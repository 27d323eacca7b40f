"""The kit's rules for encoders; the folder ``wrong_components`` has one that breaks each of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot.errors import DataError
from kshot.testing import RuleViolation, rules, sample_tasks, suite

sys.path.insert(0, str(Path(__file__).with_name("wrong_components")))

import shelf
import wrong_encoders  # noqa: F401 -- puts its components on the shelf

sys.path.pop(0)


class Vectors(nn.Module):
    """An encoder of vectors of length 6 alone, which notes what it embeds."""

    seen: list[Tensor] = []

    def __init__(self, spec: kshot.TaskSpec) -> None:
        super().__init__()
        if spec.input_shape != (6,):
            raise DataError(f"vectors: got inputs of shape {list(spec.input_shape)}, expected [6]")
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        z: Tensor = self.layer(x).tanh()
        return z


vectors = suite(encoder=Vectors, tasks=sample_tasks.classification)


def test_every_rule_has_a_component_that_breaks_it() -> None:
    """A rule that nothing breaks may check nothing."""
    assert {wrong.rule for wrong in shelf.WRONG if wrong.group == "encoder" and wrong.rule} == {
        rule.name for rule in rules("encoders")
    }
    assert all(rule.statement for rule in rules("encoders"))


def test_inputs_are_those_of_the_tasks_that_are_given() -> None:
    """Random numbers may be far from what an encoder expects."""
    Vectors.seen.clear()
    suite(encoder=Vectors, tasks=sample_tasks.classification).verify("embeds-each-input")
    tasks = sample_tasks.classification()
    episode = tasks.sample("train", [0])
    expected = torch.cat([episode.support.x, episode.query.x], 1)[0, :1]
    assert any(torch.equal(x, expected) for x in Vectors.seen)


def test_an_encoder_of_other_inputs_needs_tasks() -> None:
    """The message lists the shapes that the kit tried, with the refusals."""

    class Few(Vectors):
        def __init__(self, spec: kshot.TaskSpec) -> None:
            if spec.input_shape != (5, 5, 5):
                raise DataError(f"few: got {list(spec.input_shape)}, expected [5, 5, 5]")
            super().__init__(spec)

    with pytest.raises(
        RuleViolation, match=r"refuses inputs of all shapes.*\[3, 32, 32\].*suite\(encoder=\.\.\., tasks"
    ):
        suite(encoder=Few).verify("embeds-each-input")
