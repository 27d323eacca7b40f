"""Test the rules for stored values: what they accept, and what they refuse although Python would take it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kshot
from kshot._engine.run_folder import load_checkpoint, save_checkpoint
from kshot._engine.stored import Unfit, fields, list_of, mapping_of, number, optional, plain, text, truth, whole
from kshot.errors import RunError
from kshot.testing import sample_learner, sample_tasks


def fits(rule: Any, value: Any) -> bool:
    try:
        rule(value, "key")
    except Unfit:
        return False
    return True


@pytest.mark.parametrize(
    ("rule", "accepted", "refused"),
    [
        (whole(0, 3), [0, 3], [-1, 4, 1.0, True, False, "1", None, np.int64(1)]),
        (number, [1, 1.5, math.nan, -math.inf], [True, "1", None, 1j]),
        (truth, [True, False], [0, 1, None, "true"]),
        (text, ["", "ä b"], ["\x1b[31m", "a\x00", b"a", 1, None]),
        (plain, [None, 1, "a", [1, {"b": [True]}]], [object(), torch.zeros(1), {"a": object()}, ["\x1b"]]),
        (optional(whole()), [None, 1], [True, "1"]),
        (list_of(whole(), 1), [[1], (1, 2)], [[], [1, True], "11", {1: 1}]),
        (mapping_of(whole()), [{}, {"a": 1}], [{1: 1}, {"a": True}, [("a", 1)]]),
        (fields({"a": whole()}, {"b": text}), [{"a": 1}, {"a": 1, "b": "x"}], [{}, {"b": "x"}, {"a": 1, "c": 1}]),
        (fields({"a": whole()}, others=True), [{"a": 1, "c": object()}], [{"a": True}, {"c": 1}]),
    ],
)
def test_a_rule_accepts_exactly_what_it_says(rule: Any, accepted: list[Any], refused: list[Any]) -> None:
    """True is not the number 1, and text that a terminal would obey is no text."""
    assert [value for value in accepted if not fits(rule, value)] == []
    assert [value for value in refused if fits(rule, value)] == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["learner", "best"])
def test_a_checkpoint_with_parameters_that_are_not_finite_is_refused(bad: float, part: str, tmp_path: Path) -> None:
    """It would evaluate to numbers without meaning, and train to nothing; nothing of the engine changes."""

    def engine() -> kshot.Engine:
        tasks = sample_tasks.classification()
        return kshot.Engine(sample_learner.NearestMean(tasks.spec), tasks, hooks=())

    trained = engine()
    trained.train(1, validate_every=1, validation_episodes=2)
    state = load_checkpoint(trained.save(tmp_path / "c.pt"))
    parameters = state["learner"] if part == "learner" else state["best"]["parameters"]
    next(iter(parameters.values())).flatten()[0] = bad
    save_checkpoint(tmp_path / "c.pt", state)
    other = engine()
    before = [p.detach().clone() for p in other.learner.parameters()]
    for load in (other.resume, other.load):
        with pytest.raises(RunError, match="expected finite numbers"):
            load(tmp_path / "c.pt")
    assert all(torch.equal(a, b) for a, b in zip(before, other.learner.parameters(), strict=True))
