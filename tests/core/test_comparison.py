"""Several tests of one run: what they are called, and which are compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kshot import Result
from kshot.errors import DataError
from kshot.runs.comparison import _as_source, _methods, compare, compare_tests, labels, mean_and_interval


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


# --- Several runs ----------------------------------------------------------------------------------------------------


def stored(folder: Path, learner: str, scores: dict[int, list[float]]) -> list[Path]:
    """Write a file of results for each seed, as ``kshot evaluate --output`` does; return the files."""
    files = []
    for seed, accuracy in scores.items():
        about: dict[str, Any] = {"kind": "classification", "split": "test", "learner": {"name": learner}, "seed": seed}
        one = Result({"accuracy": np.array(accuracy)}, shape={"way": 5, "shot": 1}, **about)
        files.append(folder / f"{learner}-{seed}.json")
        files[-1].write_text(json.dumps({"results": [one.to_dict()]}))
    return files


T1, T2 = 12.7062, 4.3027
"""The 97.5 % quantiles of Student's t with 1 and 2 degrees of freedom, from a table."""


def test_the_interval_of_a_mean_is_that_of_a_small_sample() -> None:
    """By hand: s of 1, 2, 3 is 1; NaN is left out; a single value has none."""
    assert mean_and_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, T2 / math.sqrt(3)), rel=1e-4)
    assert mean_and_interval([1.0, math.nan, 3.0]) == pytest.approx((2.0, T1 * math.sqrt(2) / math.sqrt(2)), rel=1e-4)
    mean, interval = mean_and_interval([5.0])
    assert mean == 5
    assert math.isnan(interval)


def test_one_run_of_each_method_is_compared_over_episodes(tmp_path: Path) -> None:
    """The sample are the episodes: of each mean, and of the difference."""
    files = stored(tmp_path, "a", {0: [0.2, 0.4, 0.6]}) + stored(tmp_path, "b", {0: [0.5, 0.6, 0.7]})
    first, second = compare(*files).rows
    assert (first.method, first.seeds, first.paired_over) == ("a", (0,), "")
    assert (first.mean, first.interval) == pytest.approx((0.4, T2 * 0.2 / math.sqrt(3)), rel=1e-4)
    assert (second.difference, second.difference_interval) == pytest.approx((0.2, T2 * 0.1 / math.sqrt(3)), rel=1e-4)
    assert second.paired_over == "episodes"


def test_several_seeds_are_the_sample_and_are_paired(tmp_path: Path) -> None:
    """However many episodes there are: the interval is over the means of the seeds."""
    a = stored(tmp_path, "a", {0: [0.2, 0.4, 0.6, 0.4], 1: [0.5, 0.5, 0.7, 0.7]})  # means 0.4 and 0.6
    b = stored(tmp_path, "b", {1: [0.7, 0.7, 0.7, 0.7], 0: [0.4, 0.4, 0.4, 0.8]})  # means 0.7 and 0.5
    first, second = compare(*a, *b).rows
    assert (first.seeds, second.seeds) == ((0, 1), (0, 1))
    assert (first.mean, first.interval) == pytest.approx((0.5, T1 * 0.1), rel=1e-4)
    assert (second.difference, second.difference_interval) == pytest.approx((0.1, 0.0), abs=1e-9)
    assert second.paired_over == "seeds"


def test_other_seeds_are_compared_without_the_assumption_of_equal_variances(tmp_path: Path) -> None:
    """Welch's interval by hand: the means 0.4, 0.6 and 0.1, 0.2, 0.9 differ by 0.1."""
    a = stored(tmp_path, "a", {0: [0.4, 0.4], 1: [0.6, 0.6]})
    b = stored(tmp_path, "b", {2: [0.1, 0.1], 3: [0.2, 0.2], 4: [0.9, 0.9]})
    _, second = compare(*a, *b).rows
    va, vb = 0.02 / 2, (0.09 + 0.04 + 0.25) / 2 / 3  # squared standard errors
    degrees = (va + vb) ** 2 / (va**2 / 1 + vb**2 / 2)
    t = float(stats.t.ppf(0.975, degrees))
    assert second.difference == pytest.approx(-0.1)
    assert second.difference_interval == pytest.approx(t * math.sqrt(va + vb), rel=1e-6)
    assert second.paired_over == "unpaired seeds"


def test_runs_that_differ_in_their_seeds_only_are_one_method() -> None:
    """Both seeds, and a start from the run of the same seed, are no options of a method; a rate is."""

    def source(seed: int, learner_seed: int | None, lr: float) -> Any:
        plan = {"learner": {"name": "a"}, "optimizer": {"lr": lr}, "seed": seed, "learner_seed": learner_seed}
        return _as_source(f"run-{seed}", {"seed": seed, "plan": {**plan, "init_from": f"runs/x-{seed}"}}, [RESULT])

    RESULT = result([0.5], "x")
    assert list(_methods([source(1, None, 0.1), source(2, 7, 0.1)])) == ["a"]
    assert list(_methods([source(1, None, 0.1), source(2, 7, 0.2)])) == ["a, optimizer.lr 0.1", "a, optimizer.lr 0.2"]
    with pytest.raises(DataError, match="one seed twice"):
        _methods([source(1, None, 0.1), source(1, 7, 0.1)])
