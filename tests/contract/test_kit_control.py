"""The kit's rules for control: good environments and learners keep them, and broken ones are rejected by the rule's
name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

import kshot
from kshot import Episode, Needs, Rollout, Support, TaskSpec, control
from kshot.episode import Policy, register_value
from kshot.testing import RuleViolation, rules, sample_tasks, suite

TASKS_RULES = {
    "rollouts-as-specified",
    "rollouts-are-values",
    "rollouts-have-own-chance",
    "wrong-actions-refused",
    "environments-travel",
}
LEARNERS_RULES = {"budget-kept", "plays-from-own-chance"}


def test_these_are_the_rules_for_control() -> None:
    """A rule that no test breaks may be one that can't be broken."""
    found = {rule.name for group in ("tasks", "learners") for rule in rules(group)}
    assert found >= TASKS_RULES | LEARNERS_RULES
    assert {rule for rule, *_ in BROKEN_TASKS} == TASKS_RULES
    assert {rule for rule, *_ in BROKEN_LEARNERS} == LEARNERS_RULES


# --- Environments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [sample_tasks.Points, sample_tasks.Corridors])
@pytest.mark.parametrize("rollouts", [8, 1])
def test_good_environments_keep_every_rule(tasks: Any, rollouts: int) -> None:
    """These have continuous and discrete actions, with budgets for several updates and for one."""
    report = suite(tasks=tasks, options={"rollouts": rollouts}).run()
    assert report.ok, str(report)
    assert {f.rule for f in report if f.outcome == "passed"} >= TASKS_RULES


class Bent(sample_tasks.Points):
    """Good tasks whose environments are wrapped by ``bend``."""

    bend: Callable[[Any], Any]

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        episode = super().sample(split, indices)
        bend = type(self).bend
        return attrs.evolve(
            episode,
            support=attrs.evolve(episode.support, source=bend(episode.support.source)),
            query=attrs.evolve(episode.query, source=bend(episode.query.source)),
        )


@frozen(eq=False)
class Wrapped:
    """An environment in which a subclass changes one thing."""

    of: sample_tasks.PointEnvironment

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        return self.of.rollout(policy, number)


class Differentiable(Wrapped):
    """Returns rewards with a graph."""

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        played = self.of.rollout(policy, number)
        return attrs.evolve(played, rewards=played.rewards.clone().requires_grad_())


class Clipped(Wrapped):
    """Records actions as they took effect, and not as the policy returned them."""

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        played = self.of.rollout(policy, number)
        return attrs.evolve(played, actions=played.actions.clamp(-0.5, 0.5))


class NeverOver(Wrapped):
    """Has rewards after the end."""

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        played = self.of.rollout(policy, number)
        running = played.running.clone()
        running[..., 3:] = False
        return attrs.evolve(played, running=running)


class OneTooMany(Wrapped):
    """Plays one trajectory more than the spec says."""

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        return attrs.evolve(self.of, trajectories=self.of.trajectories + 1).rollout(policy, number)


class Unlimited(Wrapped):
    """Ignores the budget."""

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        return self.of.rollout(policy, number % 8)


class Remembering(Wrapped):
    """Lets random numbers depend on the rollouts that were played before."""

    played: list[int] = []

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        self.played.append(number)
        key = self.of.key + len(self.played)
        return attrs.evolve(self.of, key=key).rollout(policy, number)


class SameForAllNumbers(Wrapped):
    """Has the same random numbers in every rollout."""

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        self.of.rollout(policy, number)  # for its budget
        return self.of.rollout(policy, 0)


class Crowded(Wrapped):
    """Lets the goal of a task depend on how many tasks are played together."""

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        moved = self.of.goal + torch.arange(self.of.goal[..., 0].numel())[..., None]
        return attrs.evolve(self.of, goal=moved).rollout(policy, number)


class Anything(Wrapped):
    """Accepts NaN actions as standing still."""

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        if hasattr(policy, "begin"):
            return self.of.rollout(policy, number)
        return self.of.rollout(lambda x: policy(x).nan_to_num(), number)


class HalfRegistered(Wrapped):
    """Is not sliced with its episode."""


for wrapped in Wrapped.__subclasses__():
    if wrapped is not HalfRegistered:
        register_value(wrapped, "of")
register_value(HalfRegistered)


class SameForBoth(sample_tasks.Points):
    """Has the same random numbers in support and query."""

    def sample(self, split: str, indices: Sequence[int]) -> Episode:
        episode = super().sample(split, indices)
        same = attrs.evolve(episode.query.source, key=episode.support.source.key)
        return attrs.evolve(episode, query=attrs.evolve(episode.query, source=same))


BROKEN_TASKS: list[tuple[str, Any]] = [
    ("rollouts-as-specified", Differentiable),
    ("rollouts-as-specified", Clipped),
    ("rollouts-as-specified", NeverOver),
    ("rollouts-as-specified", OneTooMany),
    ("rollouts-are-values", Unlimited),
    ("rollouts-are-values", Remembering),
    ("rollouts-have-own-chance", SameForAllNumbers),
    ("rollouts-have-own-chance", SameForBoth),
    ("rollouts-have-own-chance", Crowded),
    ("wrong-actions-refused", Anything),
    ("environments-travel", HalfRegistered),
]


@pytest.mark.parametrize(("rule", "broken"), BROKEN_TASKS, ids=lambda v: getattr(v, "__name__", None))
def test_broken_environments_are_rejected_by_the_rule_they_break(rule: str, broken: Any) -> None:
    """The message names the rule and says what was observed."""
    tasks = (
        broken if issubclass(broken, Bent | sample_tasks.Points) else type(broken.__name__, (Bent,), {"bend": broken})
    )
    with pytest.raises(RuleViolation, match=f"^{rule}: .{{20,}}"):
        suite(tasks=tasks).verify(rule)


@frozen(eq=False)
class Simulator:
    """An environment that is not registered as a value."""

    of: Any

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        return self.of.rollout(policy, number)


class Simulated(Bent):
    """Good tasks with such an environment."""

    bend = Simulator


def test_an_environment_that_is_no_registered_value_can_still_be_tried() -> None:
    """A wrapper of a simulator can't be sliced; the kit reports this and tries the other rules."""
    report = suite(tasks=Simulated).run()
    assert report.ok, str(report)
    (reason,) = [f.message for f in report if f.rule == "environments-travel"]
    assert reason == "Simulator is not registered with kshot.episode.register_value"


# --- Learners -------------------------------------------------------------------------------------


class Keen(nn.Module):
    """A good learner: one step of REINFORCE on the support's returns, for both sorts of actions, with a stochastic
    policy.
    """

    needs = Needs(kinds=("control",), rollouts=1)
    rollouts = 1

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.discrete = spec.way is not None
        self.out = nn.Linear(spec.input_shape[0], spec.way if self.discrete else spec.target_shape[0])

    def log_probability(self, out: Tensor, actions: Tensor) -> Tensor:
        if self.discrete:
            return out.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
        return -(out - actions).square().sum(-1) / 2

    def policy(self, weight: Tensor, bias: Tensor) -> Drawing:
        return Drawing(weight, bias, self.discrete)

    def learn(self, support: Support) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            weight, bias = (p.expand(len(support.key), *p.shape) for p in (self.out.weight, self.out.bias))
            for number in range(self.rollouts):
                start = tuple(p if p.requires_grad else p.detach().requires_grad_() for p in (weight, bias))
                weight, bias = start
                played = support.source.rollout(self.policy(weight, bias), number)
                returns = played.rewards.sum(-1)
                advantages = (returns - returns.mean(1, keepdim=True))[..., None]
                out = Drawing(weight, bias, self.discrete).out(played.observations)
                logp = self.log_probability(out, played.actions) * played.running
                gain = (logp * advantages).sum((1, 2)).sum() / returns.shape[1]
                slopes = torch.autograd.grad(gain, start, create_graph=True)
                weight, bias = (p + 0.1 * g for p, g in zip(start, slopes, strict=True))
        return weight, bias

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        weight, bias = self.learn(episodes.support)
        played = episodes.query.source.rollout(self.policy(weight, bias))
        logp = self.log_probability(Drawing(weight, bias, self.discrete).out(played.observations), played.actions)
        loss = -(logp * played.running * played.rewards.sum(-1, keepdim=True)).sum(-1).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Any:
        weight, bias = self.learn(support)
        return self.policy(weight.detach(), bias.detach())


@frozen(eq=False)
class Drawing:
    """A linear policy for each task, with weight [B, A, O] and bias [B, A]."""

    weight: Tensor
    bias: Tensor
    discrete: bool

    def out(self, x: Tensor) -> Tensor:
        """Compute the outputs [B, E, (T,) A] for observations [B, E, (T,) O]."""
        flat = x.flatten(1, -2)
        return torch.baddbmm(self.bias[:, None], flat, self.weight.mT).reshape(*x.shape[:-1], -1)

    def __call__(self, x: Tensor) -> Tensor:
        return self.out(x).argmax(-1) if self.discrete else self.out(x)

    def noise(self, key: Tensor, E: int, T: int) -> Tensor:
        return control.uniforms(key, "actions", E, T, self.bias.shape[-1])

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        noise = iter(self.noise(key, *shape).to(self.bias).unbind(-2))

        def act(x: Tensor) -> Tensor:
            u = next(noise)
            return (self.out(x) - (-u.log()).log()).argmax(-1) if self.discrete else self.out(x) + u - 0.5

        return act


class Twice(Keen):
    """A good learner that makes two updates on two rollouts, and declares it."""

    needs = Needs(kinds=("control",), rollouts=2)
    rollouts = 2


class Stranger(nn.Module):
    """A good learner written for one episode, without B: tries random actions and keeps the best."""

    needs = Needs(kinds=("control",), actions="continuous")

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(0.5))

    def best(self, support: Support) -> Tensor:
        played = support.source.rollout(OfOne(torch.zeros(2), self.spread.detach()))
        return played.actions[played.rewards.sum(-1).argmax()].mean(0)

    @kshot.per_episode
    def meta_gradient(self, episode: Episode) -> Tensor:
        played = episode.query.source.rollout(OfOne(self.best(episode.support), self.spread.detach()))
        z = (played.actions - self.best(episode.support)) / self.spread
        logp = (-z.square() / 2 - self.spread.abs().log()).sum(-1)
        return -(logp * played.rewards).sum(-1).mean()

    @kshot.per_episode
    def adapt(self, support: Support) -> Any:
        return OfOne(self.best(support), self.spread)


@frozen(eq=False)
class OfOne:
    """A policy that takes the same action with noise, for a task without B."""

    action: Tensor
    spread: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.action.to(x).expand(*x.shape[:-1], 2)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        noise = iter(control.normals(key, "actions", *shape, 2).unbind(-2))
        return lambda x: self(x) + self.spread * next(noise).to(x)


@pytest.mark.parametrize("learner", [Keen, Twice, Stranger], ids=lambda c: c.__name__)
def test_good_learners_keep_every_rule(learner: Any) -> None:
    """These have stochastic policies, several updates, or are written for one episode and lifted by a loop."""
    report = suite(learner=learner).run()
    assert report.ok, str(report)
    assert {f.rule for f in report if f.outcome == "passed"} >= LEARNERS_RULES


def test_a_policy_is_tried_on_both_sorts_of_actions() -> None:
    """A learner is tried on both unless it declares that it accepts only one."""
    named = [case.name for case in suite(learner=Keen).subject().cases]
    assert named == ["control", "control with discrete actions"]
    assert [case.name for case in suite(learner=Stranger).subject().cases] == ["control"]


class Rewound(Twice):
    """Plays rollout 0 several times."""

    def learn(self, support: Support) -> tuple[Tensor, Tensor]:
        again = attrs.evolve(support, source=Rewinding(support.source))
        return super().learn(again)


@frozen(eq=False)
class Rewinding:
    of: Any

    def rollout(self, policy: Policy, number: int = 0) -> Rollout:
        return self.of.rollout(policy, 0)


class Understated(Twice):
    """Plays two rollouts but declares one."""

    needs = Needs(kinds=("control",), rollouts=1)


class Late(Keen):
    """Adapts at the first call of the predictor."""

    def adapt(self, support: Support) -> Any:
        return Asked(lambda: super(Late, self).adapt(support))


@frozen(eq=False)
class Asked:
    make: Callable[[], Any]
    made: list[Any] = attrs.field(factory=list)

    def get(self) -> Any:
        if not self.made:
            self.made.append(self.make())
        return self.made[0]

    def __call__(self, x: Tensor) -> Tensor:
        return self.get()(x)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Any:
        return self.get().begin(key, shape)


class FromGlobalChance(Keen):
    """Draws from torch's global generator."""

    def policy(self, weight: Tensor, bias: Tensor) -> Drawing:
        return Global(weight, bias, self.discrete)


class Global(Drawing):
    def noise(self, key: Tensor, E: int, T: int) -> Tensor:
        return torch.rand(*key.shape, E, T, self.bias.shape[-1])


class FromTheFirst(Keen):
    """Draws for all tasks from the key of the first one."""

    def policy(self, weight: Tensor, bias: Tensor) -> Drawing:
        return First(weight, bias, self.discrete)


class First(Drawing):
    def noise(self, key: Tensor, E: int, T: int) -> Tensor:
        chance = kshot.generator(key[0], "actions")
        return torch.rand(*key.shape, E, T, self.bias.shape[-1], generator=chance)


BROKEN_LEARNERS: list[tuple[str, Any]] = [
    ("budget-kept", Rewound),
    ("budget-kept", Understated),
    ("budget-kept", Late),
    ("plays-from-own-chance", FromGlobalChance),
    ("plays-from-own-chance", FromTheFirst),
]


@pytest.mark.parametrize(("rule", "learner"), BROKEN_LEARNERS, ids=lambda v: getattr(v, "__name__", None))
def test_broken_learners_are_rejected_by_the_rule_they_break(rule: str, learner: Any) -> None:
    """The message names the rule and says what was observed."""
    with pytest.raises(RuleViolation, match=f"^{rule}: .{{20,}}"):
        suite(learner=learner).verify(rule)


def test_discrete_policies_that_answer_probabilities_are_rejected() -> None:
    """A scorer would take probabilities for actions."""

    class Soft(Keen):
        def adapt(self, support: Support) -> Any:
            policy = super().adapt(support)
            return lambda x: policy.out(x).softmax(-1)

    class Float(Keen):
        def adapt(self, support: Support) -> Any:
            policy = super().adapt(support)
            return lambda x: policy(x).float()

    with pytest.raises(RuleViolation, match=r"got predictions of shape \(3, 5, 2\) for 5 queries per task"):
        suite(learner=Soft, tasks=sample_tasks.Corridors).verify("predictor-shape")
    with pytest.raises(RuleViolation, match=r"got actions torch\.float32 .* expected int64 from 0 to 2 - 1"):
        suite(learner=Float, tasks=sample_tasks.Corridors).verify("predictor-shape")


def test_the_corridor_by_hand() -> None:
    """Three steps to the end without slips give -0.1 twice, then 1, then nothing; in the other direction, all give
    -0.1.
    """
    tasks = sample_tasks.Corridors(query=40)
    environment = tasks.sample("train", [0]).query.source
    towards = torch.tensor(int(environment.end[0] > 0))
    played = environment.rollout(lambda x: towards.expand(x.shape[:-1]))
    returns = played.rewards.sum(-1)[0]
    straight = played.running[0].sum(-1) == 3
    assert straight.float().mean() > 0.5
    assert torch.allclose(returns[straight], torch.tensor(0.8))
    assert played.scores["reached"][0][straight].all()
    away = environment.rollout(lambda x: (1 - towards).expand(x.shape[:-1]))
    assert math.isclose(float(away.rewards.sum(-1).min()), -0.6, rel_tol=1e-5)
