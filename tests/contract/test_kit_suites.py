"""``suite``: how a component, its options and its expected failures are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kshot import Episode, Needs, Support, TaskSpec
from kshot.errors import OptionError
from kshot.testing import RuleViolation, sample_tasks, suite

SAMPLE = sample_tasks.Lines()


class MeanTarget(nn.Module):
    """A good learner: predicts the mean of the support's targets plus a learned function of the query."""

    needs = Needs(kinds=("regression",), exact_gradient=True)

    def __init__(self, spec: TaskSpec, *, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)

    def predictions(self, support: Support, x: Tensor) -> Tensor:
        return support.y.mean(1, keepdim=True) + self.embed(x).tanh().sum(-1, keepdim=True)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = (self.predictions(episodes.support, episodes.query.x) - episodes.query.y).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.predictions(support, x)


class GloballySeeded(MeanTarget):
    """Draws from the global seed instead of the episode's key."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        noise = torch.randn(1, generator=torch.Generator().manual_seed(torch.initial_seed()))
        return lambda x: self.predictions(support, x) + noise


def test_a_learner_that_can_not_be_built_breaks_every_rule_by_name() -> None:
    """The reason is the error of the factory, and the kit itself does not fail."""

    def factory(spec: TaskSpec) -> Any:
        raise ZeroDivisionError("nothing to divide by")

    report = suite(learner=factory, tasks=SAMPLE).run()
    assert all("nothing to divide by" in f.message for f in report if f.outcome == "failed")
    assert not report.ok


def test_options_of_the_suite_are_the_factorys() -> None:
    """Options are checked as everywhere: an unknown one is refused with the most similar name."""
    assert suite(learner=MeanTarget, options={"width": 7}).subject().cases[0].build().embed.out_features == 7
    with pytest.raises(RuleViolation, match=r"did you mean 'width'"):
        suite(learner=MeanTarget, options={"widht": 7}).verify("deterministic")


def test_expected_failures_need_a_reason_and_a_rules_name() -> None:
    """Without these, a suite could hide that it breaks a rule."""
    with pytest.raises(OptionError, match=r"got the reason ' ' for 'deterministic' in expected_failures"):
        suite(learner=MeanTarget, expected_failures={"deterministic": " "})
    with pytest.raises(OptionError, match=r"got the rule 'determinstic' .*; did you mean 'deterministic'"):
        suite(learner=MeanTarget, expected_failures={"determinstic": "because"})


def test_an_expected_failure_that_passes_fails_the_report() -> None:
    """A fault that was fixed must be removed from the list of expected failures."""
    report = suite(learner=MeanTarget, tasks=SAMPLE, expected_failures={"deterministic": "not yet"}).run()
    assert not report.ok
    assert ("deterministic", "passed unexpectedly") in [f[:2] for f in report]
    report = suite(learner=GloballySeeded, tasks=SAMPLE, expected_failures={"deterministic": "not yet"}).run()
    assert report.ok
    assert "not yet" in str(report)


class Constant(MeanTarget):
    """Forgets the support."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.embed(x).tanh().sum(-1, keepdim=True)


def test_an_advice_is_reported_and_does_not_refuse_the_component() -> None:
    """A method may need more training than the kit gives it."""
    tried = suite(learner=Constant)
    assert ("learns-from-the-support", "warned") in [f[:2] for f in tried.run()]
    assert tried.run().ok
    known = suite(learner=Constant, expected_failures={"learns-from-the-support": "it is a baseline"}).run()
    assert ("learns-from-the-support", "failed as expected") in [f[:2] for f in known]
    assert known.ok


def test_settings_that_a_component_changes_are_restored() -> None:
    """Otherwise one wrong component would break the rules that are checked after it."""

    class Doubling(MeanTarget):
        def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
            torch.set_default_dtype(torch.float64)
            torch.manual_seed(0)
            return super().adapt(support)

    before = torch.get_rng_state()
    report = suite(learner=Doubling, tasks=SAMPLE).run()
    assert {"process-is-left-alone", "adapt-changes-nothing"} <= {f.rule for f in report if f.outcome == "failed"}
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("given", [{}, {"learner": MeanTarget, "memory": MeanTarget}, {"learner": 3}])
def test_a_suite_is_of_one_component(given: dict[str, Any]) -> None:
    """Two components, none, or an object that is not a component are refused when the suite is built."""
    with pytest.raises(OptionError):
        suite(**given)
