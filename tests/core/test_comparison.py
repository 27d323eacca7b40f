"""Several tests of one run: what they are called, and which are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kshot import Result
from kshot.runs.comparison import compare_tests, labels


def test_a_label_is_what_the_tests_do_not_share() -> None:
    """Nested options by dotted names; way and shot are in the result's own line; an option that is left out says
    nothing."""
    a = ({"name": "view", "of": {"name": "omniglot", "size": 28}, "way": 5}, {"refine": "soft"})
    b = ({"name": "view", "of": {"name": "omniglot", "size": 32}, "way": 20, "distractors": 5}, {"refine": "none"})
    c = ({"name": "view", "of": {"name": "omniglot", "size": 28}, "way": 5}, {})
    assert labels([a, b, c]) == (
        "refine soft, of.size 28",
        "refine none, of.size 32, distractors 5",
        "of.size 28",
    )


def test_what_is_told_apart_by_way_and_shot_needs_no_label() -> None:
    """Neither does a single test."""
    assert labels([({"way": 5, "shot": 1}, {}), ({"way": 5, "shot": 5}, {})]) == ("", "")
    assert labels([({"way": 5}, {"refine": "soft"})]) == ("",)


def result(accuracy: list[float], tasks: str) -> Result:
    about: dict[str, Any] = {"kind": "classification", "split": "test", "tasks": {"name": tasks}}
    return Result({"accuracy": np.array(accuracy)}, **about)


def test_each_test_is_compared_with_the_first_on_the_same_episodes() -> None:
    """Two groups of episodes, interleaved; by hand; the first of each group is compared with nothing."""
    results = [result([0.5, 0.7], "x"), result([0.1, 0.1], "y"), result([0.6, 0.9], "x"), result([0.1, 0.3], "y")]
    results += [result([0.5, 0.5], "x"), result([0.5, 0.8], "x")]
    found = compare_tests(results, ["a", "b", "c", "", "e", "f"])
    assert [(c.test, c.against) for c in found] == [("c", "a"), ("test 4", "b"), ("e", "a"), ("f", "a")]
    assert [c.difference.mean for c in found] == pytest.approx([0.15, 0.1, -0.1, 0.05])
    assert str(found[0]) == "c against a: +15.00 ± 63.53 points of accuracy (2 paired episodes)"
    assert compare_tests(results[:2], ["a", "b"]) == ()
