"""The kit's rules for objectives: good tasks and learners keep them, and broken ones are rejected
by the rule's name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import kshot
from kshot import Episode, Needs, Support, TaskSpec
from kshot.testing import RuleViolation, rules, sample_tasks, suite

IN_THIS_PROCESS = [rule.name for rule in rules("tasks") if rule.name != "same-episodes-in-another-process"]

# --- Tasks ----------------------------------------------------------------------------------------


class SpoiltObjectives:
    """Good objectives with one fault: subclasses override ``function`` or ``spoil``."""

    function = staticmethod(sample_tasks.quadratic)

    def __init__(self, seed: int = 0) -> None:
        self.of = sample_tasks.Quadratics(seed=seed)
        self.seed = seed
        self.spec = self.of.spec

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        episode = self.of.sample(split, indices)
        source = attrs.evolve(episode.support.source, function=self.function)
        support, query = attrs.evolve(episode.support, source=source), attrs.evolve(episode.query, source=source)
        return self.spoil(attrs.evolve(episode, support=support, query=query))

    def spoil(self, episode: Episode) -> Episode:
        return episode


class Constant(SpoiltObjectives):
    """The loss does not depend on the point."""

    @staticmethod
    def function(point: Any, data: Any) -> Any:
        return data[1].square().sum()


class LossPerParameter(SpoiltObjectives):
    """The loss is a vector with one entry per parameter."""

    @staticmethod
    def function(point: Any, data: Any) -> Any:
        return (data[0] @ point - data[1]).square()


class Undefined(SpoiltObjectives):
    """The loss is NaN at the initial point."""

    @staticmethod
    def function(point: Any, data: Any) -> Any:
        return (point - 100).log().sum()


class Drifting(SpoiltObjectives):
    """Each evaluation moves the target."""

    @staticmethod
    def function(point: Any, data: Any) -> Any:
        data[1].add_(0.1)
        return sample_tasks.quadratic(point, data)


class Unweighed(SpoiltObjectives):
    """The weights of all steps are 0."""

    def spoil(self, episode: Episode) -> Episode:
        return attrs.evolve(episode, query=attrs.evolve(episode.query, y=torch.zeros_like(episode.query.y)))


class HalfSteps(SpoiltObjectives):
    """The steps are not integers."""

    def spoil(self, episode: Episode) -> Episode:
        return attrs.evolve(episode, query=attrs.evolve(episode.query, x=episode.query.x + 0.5))


def shifted(shift: Tensor, point: Any, data: Any) -> Tensor:
    """Return the sample tasks' function times a constant; unlike a lambda, this can be pickled."""
    return shift * sample_tasks.quadratic(point, data)


class OtherFunctions(SpoiltObjectives):
    """The function has a constant, which is in no tensor of the episode and is another whenever tasks are built."""

    built = itertools.count()

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.function = functools.partial(shifted, torch.tensor(1.0 + next(self.built) % 8))


# Rule, broken tasks, and the other rules that they break inevitably.
BROKEN_TASKS: list[tuple[str, Any, set[str]]] = [
    ("objectives-can-be-minimised", Constant, set()),
    ("objectives-can-be-minimised", LossPerParameter, set()),
    ("objectives-can-be-minimised", Undefined, set()),
    ("objectives-can-be-minimised", Drifting, {"same-episodes"}),
    ("objectives-can-be-minimised", Unweighed, set()),
    ("objectives-can-be-minimised", HalfSteps, set()),
    ("same-episodes", OtherFunctions, set()),
]


@pytest.mark.parametrize(("rule", "tasks", "also"), BROKEN_TASKS, ids=lambda v: getattr(v, "__name__", None))
def test_broken_objectives_are_rejected_by_the_rule_they_break(rule: str, tasks: Any, also: set[str]) -> None:
    """The message names the rule, and rules that the tasks keep do not fail."""
    tried = suite(tasks=tasks)
    with pytest.raises(RuleViolation, match=f"^{rule}: .{{20,}}"):
        tried.verify(rule)
    failed = set()
    for other in IN_THIS_PROCESS:
        try:
            tried.verify(other)
        except RuleViolation as violation:
            failed.add(violation.rule)
    assert failed - also == {rule}


# --- Learners -------------------------------------------------------------------------------------


class LearnedRate(nn.Module):
    """A good learner: gradient descent with a learned rate; it yields twice per meta-batch, as a
    truncated unroll does.
    """

    needs = Needs(kinds=("objective",), exact_gradient=True, variable_parameters=True)

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1))

    def descend(self, source: Any, steps: int, create_graph: bool) -> Tensor:
        point, points = source.initial, []
        with torch.enable_grad():
            for _ in range(steps):
                point = point if point.requires_grad else point.requires_grad_()
                (slope,) = torch.autograd.grad(source.loss(point).sum(), point, create_graph=create_graph)
                point = point - self.rate * slope
                points.append(point)
        return torch.stack(points, 1)

    def meta_gradient(self, episodes: Episode) -> Iterator[dict[str, Any]]:
        for steps in (2, 4):
            source = attrs.evolve(episodes.query.source, initial=episodes.query.source.initial.clone())
            points = self.descend(source, steps, create_graph=True)
            loss = source.loss(points[:, -1]).mean()
            loss.backward()
            score = kshot.kinds.objective(self.adapt(episodes.support), episodes)["loss"]
            yield {"loss": loss.detach(), "score": score.mean()}

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        source = attrs.evolve(support.source, initial=support.source.initial.clone())

        def predict(x: Tensor) -> Tensor:
            points = self.descend(source, int(x.max()), create_graph=False).detach()
            return points[torch.arange(len(x))[:, None], x.long() - 1]

        return predict


def test_a_good_learner_of_objectives_keeps_every_rule() -> None:
    """A rule that a legitimate learner breaks would make the kit useless."""
    report = suite(learner=LearnedRate).run()
    assert report.ok, str(report)


class FirstStepExact(LearnedRate):
    """Declares the exact gradient, but halves it from the second outer step on."""

    def meta_gradient(self, episodes: Episode) -> Iterator[dict[str, Any]]:
        source = attrs.evolve(episodes.query.source, initial=episodes.query.source.initial.clone())
        for share in (1.0, 0.5):
            loss = source.loss(self.descend(source, 3, create_graph=True)[:, -1]).mean()
            (share * loss).backward()
            yield {"loss": loss.detach()}


class OverwritingLater(LearnedRate):
    """Clears the gradient from the second outer step on."""

    def meta_gradient(self, episodes: Episode) -> Iterator[dict[str, Any]]:
        yield from itertools.islice(super().meta_gradient(episodes), 1)
        self.rate.grad = None
        yield from itertools.islice(super().meta_gradient(episodes), 1)


class OneUnroll(LearnedRate):
    """Continues at a later outer step from a point that it keeps on itself, so that chunks of a meta-batch are mixed
    up.
    """

    needs = Needs(kinds=("objective",))
    point: Any = None

    def meta_gradient(self, episodes: Episode) -> Iterator[dict[str, Any]]:
        self.point = episodes.query.source.initial
        for _ in range(2):
            source = attrs.evolve(episodes.query.source, initial=self.point.detach().clone())
            points = self.descend(source, 2, create_graph=True)
            self.point = points[:, -1].detach()  # a copy of the learner can't hold a graph
            loss = source.loss(points[:, -1]).mean()
            loss.backward()
            yield {"loss": loss.detach()}


class MoreForMore(LearnedRate):
    """Takes as many outer steps as there are tasks, up to two."""

    def meta_gradient(self, episodes: Episode) -> Iterator[dict[str, Any]]:
        return itertools.islice(super().meta_gradient(episodes), min(episodes.size, 2))


class CountsQuestions(LearnedRate):
    """Returns as many iterates as there are steps, whatever their numbers."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        source = attrs.evolve(support.source, initial=support.source.initial.clone())
        return lambda x: self.descend(source, x.shape[1], create_graph=False).detach()


class RatePerParameter(LearnedRate):
    """Has a rate for each parameter of the spec, although it declares that their number does not matter."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.rate = nn.Parameter(torch.full(spec.target_shape, 0.1))


class FirstParametersOnly(LearnedRate):
    """Returns as many parameters as those of the spec, also of objectives that have more."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.parameters_of_spec = spec.target_shape[0]

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        predict = super().adapt(support)
        return lambda x: predict(x)[..., : self.parameters_of_spec]


OBJECTIVES = sample_tasks.Quadratics()
BROKEN_LEARNERS: list[tuple[str, Any]] = [
    ("finite-differences", FirstStepExact),
    ("gradient-accumulates", OverwritingLater),
    ("batch-equals-singles", OneUnroll),
    ("batch-equals-singles", MoreForMore),
    ("iterates-by-step", CountsQuestions),
    ("needs-are-true", RatePerParameter),
    ("needs-are-true", FirstParametersOnly),
]


@pytest.mark.parametrize(("rule", "learner"), BROKEN_LEARNERS, ids=lambda v: getattr(v, "__name__", None))
def test_broken_learners_of_objectives_are_rejected_by_the_rule_they_break(rule: str, learner: Any) -> None:
    """The message names the rule, and rules that the learner keeps do not fail."""
    tried = suite(learner=learner, tasks=OBJECTIVES)
    with pytest.raises(RuleViolation, match=f"^{rule}: .{{20,}}"):
        tried.verify(rule)
    assert {f.rule for f in tried.run() if f.outcome == "failed"} == {rule}


def test_chunks_that_can_not_advance_together_are_told_by_their_numbers() -> None:
    """A generator with more outer steps for more tasks would stop in the middle of a meta-batch."""
    with pytest.raises(RuleViolation, match=r"got 2 outer steps on 3 tasks together, expected 1 as on each"):
        suite(learner=MoreForMore, tasks=OBJECTIVES).verify("batch-equals-singles")
