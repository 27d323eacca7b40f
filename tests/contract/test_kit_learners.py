"""The kit's rules for learners: good learners of every kind keep them, and broken ones are rejected
by the rule's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Episode, Needs, Support, TaskSpec
from kshot.errors import DataError
from kshot.functional import class_means, prototypical_logits
from kshot.registry import Plugin
from kshot.testing import RuleViolation, rules, sample_tasks, suite
from kshot.testing.source import Source

# --- Good learners, at least one of each kind -----------------------------------------------------


class NearestMean(nn.Module):
    """A good learner: prototypes in a learned linear embedding."""

    needs = Needs(variable_way=True, exact_gradient=True, invariant={"labels", "order"})

    def __init__(self, spec: TaskSpec, *, width: int = 4) -> None:
        super().__init__()
        if len(spec.input_shape) != 1:
            raise DataError(f"NearestMean takes vectors, not {spec.input_shape}")
        self.embed = nn.Linear(spec.input_shape[0], width)

    def logits(self, support: Support, x: Tensor) -> Tensor:
        prototypes = class_means(self.embed(support.x).tanh(), support.y, support.way or 0)
        return prototypical_logits(self.embed(x).tanh(), prototypes)

    def loss(self, episodes: Episode) -> Tensor:
        logits = self.logits(episodes.support, episodes.query.x)
        return F.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = self.loss(episodes)
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.logits(support, x)


class FirstOrderMaml(nn.Module):
    """A good learner with one inner step, whose outer gradient is that at the adapted parameters (Finn et al. 2017)."""

    needs = Needs(kinds=("classification", "regression"))

    def __init__(self, spec: TaskSpec, *, inner_lr: float = 0.1) -> None:
        super().__init__()
        if len(spec.input_shape) != 1:
            raise DataError("vectors only")
        self.kind = spec.kind
        out = spec.way if spec.kind == "classification" else spec.target_shape[0]
        self.net = nn.Sequential(nn.Linear(spec.input_shape[0], 8), nn.Tanh(), nn.Linear(8, out))
        self.inner_lr = inner_lr

    def loss(self, predictions: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(predictions, y) if self.kind == "classification" else F.mse_loss(predictions, y)

    def adapted(self, support: Support) -> dict[str, Tensor]:
        with torch.enable_grad():
            now = dict(self.net.named_parameters())
            loss = self.loss(self.net(support.x), support.y)
            slopes = torch.autograd.grad(loss, list(now.values()))
        return {n: p - self.inner_lr * g for (n, p), g in zip(now.items(), slopes, strict=True)}

    @kshot.per_episode
    def meta_gradient(self, episode: Any) -> Any:
        fast = self.adapted(episode.support)
        return self.loss(torch.func.functional_call(self.net, fast, (episode.query.x,)), episode.query.y)

    @kshot.per_episode
    def adapt(self, support: Any) -> Any:
        fast = {n: p.detach() for n, p in self.adapted(support).items()}
        return lambda x: torch.func.functional_call(self.net, fast, (x,))


class Recurrent(nn.Module):
    """A good learner: a recurrent net over a stream of labels or a sequence of bits."""

    needs = Needs(kinds=("sequence",), exact_gradient=True)
    bidirectional = False

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        out = spec.way if spec.way is not None else spec.target_shape[0]
        self.core = nn.GRU(spec.input_shape[0], 6, batch_first=True, bidirectional=self.bidirectional)
        self.head = nn.Linear(12 if self.bidirectional else 6, out)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0])

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        logits, y = self.logits(episodes.query.x), episodes.query.y
        if y.is_floating_point():
            asked = ~y.isnan()
            loss = F.binary_cross_entropy_with_logits(logits[asked], y[asked])
        else:
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return self.logits


class LastGoal(nn.Module):
    """A good learner of control: explores with the task's own random numbers, then goes to where the
    rewards were best.
    """

    needs = Needs(kinds=("control",), actions="continuous")

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def goal(self, support: Support) -> Tensor:
        direction = torch.stack([torch.randn(4, 2, generator=kshot.generator(k, "explore")) for k in support.key.cpu()])
        played = support.source.rollout(lambda x: direction.to(x))
        best = played.rewards.sum(-1).argmax(1)
        return played.observations[torch.arange(len(best)), best, -1]

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        goal = self.goal(episodes.support)[:, None]
        played = episodes.query.source.rollout(lambda x: self.gain.detach() * (goal - x))
        step = self.gain * (goal[:, None] - played.observations)
        loss = (played.observations + 0.3 * step - goal[:, None]).square().sum(-1).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        goal = self.goal(support)[:, None]
        return lambda x: self.gain * (goal - x)


class FromSemantics(NearestMean):
    """A good learner for zero-shot tasks: it computes prototypes from class vectors alone."""

    needs = Needs(semantics="required", zero_shot=True, variable_way=True, exact_gradient=True, invariant={"labels"})

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        assert spec.semantics_shape is not None
        self.describe = nn.Linear(spec.semantics_shape[0], 4)

    def logits(self, support: Support, x: Tensor) -> Tensor:
        assert support.semantics is not None
        return prototypical_logits(self.embed(x).tanh(), self.describe(support.semantics))


class SoftMeans(NearestMean):
    """A good learner that moves the prototypes by unlabelled examples, if there are any."""

    needs = Needs(unlabelled="optional", variable_way=True, exact_gradient=True, invariant={"labels", "order"})

    def logits(self, support: Support, x: Tensor) -> Tensor:
        z = self.embed(support.x).tanh()
        prototypes = class_means(z, support.y, support.way or 0)
        if support.unlabelled is not None:
            more = self.embed(support.unlabelled).tanh()
            shares = prototypical_logits(more, prototypes).softmax(-1)
            prototypes = (prototypes + shares.mT @ more) / (1 + shares.sum(1)[..., None])
        return prototypical_logits(self.embed(x).tanh(), prototypes)


class Joint(NearestMean):
    """A good learner that centres queries by their own mean, and declares it."""

    needs = Needs(queries="joint")

    def logits(self, support: Support, x: Tensor) -> Tensor:
        return super().logits(support, x - x.mean(1, keepdim=True))


class SeesQueries(NearestMean):
    """A good learner that adapts to the query inputs, and declares it."""

    needs = Needs(queries="at_adapt")

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        assert support.query_x is not None
        centre = support.query_x.mean(1, keepdim=True)
        return lambda x: self.logits(support, x - centre)


class Coupled(NearestMean):
    """A good learner that weights the tasks of a meta-batch by each other, and declares it."""

    needs = Needs(couples_tasks=True)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = self.loss(episodes) * episodes.size
        loss.backward()
        return {"loss": loss.detach()}


class WithDropout(NearestMean):
    """A good learner that draws from torch's generator while training, as dropout does."""

    def loss(self, episodes: Episode) -> Tensor:
        support = attrs.evolve(episodes.support, x=F.dropout(episodes.support.x, 0.5, self.training))
        return super().loss(attrs.evolve(episodes, support=support))


GOOD = [
    NearestMean,
    FirstOrderMaml,
    Recurrent,
    LastGoal,
    FromSemantics,
    SoftMeans,
    Joint,
    SeesQueries,
    Coupled,
    WithDropout,
]


@pytest.mark.parametrize("learner", GOOD, ids=lambda c: c.__name__)
def test_a_good_learner_keeps_every_rule(learner: Any) -> None:
    """A rule that a legitimate learner breaks would make the kit useless."""
    report = suite(learner=learner).run()
    assert report.ok, str(report)


def test_the_rules_that_do_not_apply_say_why() -> None:
    """Every rule that is not tested is reported with its reason."""
    report = suite(learner=Recurrent).run()
    skipped = {f.rule: f.message for f in report if f.outcome == "skipped"}
    assert "it learns sequence" in skipped["query-permutation"]
    assert "it learns sequence" in skipped["unbalanced-support"]
    assert all(skipped.values())


def test_a_learner_is_tried_on_every_kind_it_declares() -> None:
    """MAML is tried on classification and on regression; a learner of sequences on a stream and on bits."""
    names = {
        learner: [case.name for case in suite(learner=learner).subject().cases]
        for learner in (FirstOrderMaml, Recurrent, NearestMean)
    }
    assert names[FirstOrderMaml] == ["classification", "regression"]
    assert names[Recurrent] == ["a stream of labels", "sequences of bits"]
    assert names[NearestMean] == ["classification", "classification of varying way"]


def test_a_learner_that_refuses_vectors_is_tried_on_images() -> None:
    """If a learner refuses tasks with a KshotError, the next input shape is tried."""

    class Images(NearestMean):
        def __init__(self, spec: TaskSpec) -> None:
            if len(spec.input_shape) != 3:
                raise DataError("images only")
            super().__init__(attrs.evolve(spec, input_shape=(spec.input_shape[-1],)))

    assert suite(learner=Images).subject().cases[0].tasks.spec.input_shape == (1, 16, 16)


def test_a_factory_is_tried_on_what_its_learner_needs() -> None:
    """A function declares no needs, so the needs of the learner that it builds count."""
    cases = suite(learner=lambda spec: NearestMean(spec, width=3)).subject().cases
    assert [case.name for case in cases] == ["classification", "classification of varying way"]


# --- Broken learners ------------------------------------------------------------------------------


class Peeping(NearestMean):
    """Keeps the query labels of meta_gradient for adapt."""

    seen: Any = None

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        self.seen = float(episodes.query.y[0, 0])
        return super().meta_gradient(episodes)

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        predict = super().adapt(support)
        return lambda x: predict(x) * (1 + (self.seen or 0))


class Clairvoyant(Recurrent):
    """Reads a stream of labels in both directions."""

    bidirectional = True


class BatchNormed(NearestMean):
    """Normalises by the batch while adapting, and changes the running statistics."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.norm = nn.BatchNorm1d(6)

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        self.norm.train()
        self.norm(support.x.flatten(0, 1))
        self.norm.eval()
        return super().adapt(support)


class LeftInTraining(NearestMean):
    """Leaves a submodule in training mode."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        self.embed.train()
        return super().adapt(support)


class Noisy(NearestMean):
    """Draws from torch's global generator while adapting, without using the number."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        torch.randn(1)
        return super().adapt(support)


class Backward(NearestMean):
    """Calls backward while adapting."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        with torch.enable_grad():
            self.embed(support.x).sum().backward()
        return super().adapt(support)


class Writing(NearestMean):
    """Centres the support in place."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        support.x.sub_(1e-3)
        return super().adapt(support)


class Sticky(NearestMean):
    """Keeps the support on the learner, where the predictor reads it."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        self.support = support
        return lambda x: self.logits(self.support, x)


class Unseeded(NearestMean):
    """Draws from the global seed instead of the episode's key."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        noise = torch.randn(1, generator=torch.Generator().manual_seed(torch.initial_seed()))
        predict = super().adapt(support)
        return lambda x: predict(x) * noise.to(x)


class SecretlyJoint(NearestMean):
    """Centres queries by their mean, but declares that they are independent."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.logits(support, x - x.mean(1, keepdim=True))


class OtherWithoutGradients(NearestMean):
    """Has a path for evaluation that computes another function."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.logits(support, x) * (2.0 if torch.is_grad_enabled() else 1.0)


class Unpicklable(NearestMean):
    """Remembers a local function after it was used."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        self.last = lambda x: self.logits(support, x)
        return self.last


class Positional(NearestMean):
    """Lets a query's prediction depend on its position."""

    needs = Needs(queries="joint")

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.logits(support, x) * torch.linspace(1, 2, x.shape[1]).to(x)[:, None]


class NormalisedOverTasks(NearestMean):
    """Centres inputs by the mean over the meta-batch."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        centre = support.x.mean((0, 1), keepdim=True)
        return lambda x: self.logits(attrs.evolve(support, x=support.x - centre), x)


class Summed(NearestMean):
    """Computes the gradient of the sum over tasks instead of the mean."""

    needs = Needs()

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        (self.loss(episodes) * episodes.size).backward()
        return {}


class Overwriting(NearestMean):
    """Overwrites .grad instead of adding to it."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = self.loss(episodes)
        for p, g in zip(self.parameters(), torch.autograd.grad(loss, list(self.parameters())), strict=True):
            p.grad = g
        return {"loss": loss.detach()}


class Stepping(NearestMean):
    """Updates its own parameters."""

    needs = Needs()

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        found = super().meta_gradient(episodes)
        with torch.no_grad():
            self.embed.bias.add_(0.01)
        return found


class HoldingGraph(NearestMean):
    """Returns a loss with its graph."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = self.loss(episodes)
        loss.backward(retain_graph=True)
        return {"loss": loss}


class Vectorial(NearestMean):
    """Returns a metric that is not a scalar."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        return {**super().meta_gradient(episodes), "each": torch.zeros(3)}


class HalfGradient(NearestMean):
    """Declares the exact gradient, but computes half of it."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = self.loss(episodes)
        (loss / 2).backward()
        return {"loss": loss.detach()}


class ClaimsSecondOrder(FirstOrderMaml):
    """Declares that the first-order gradient is exact."""

    needs = Needs(kinds=("classification", "regression"), exact_gradient=True)

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec, inner_lr=0.5)

    def adapted(self, support: Support) -> dict[str, Tensor]:
        with torch.enable_grad():
            now = dict(self.net.named_parameters())
            slopes = torch.autograd.grad(self.loss(self.net(support.x), support.y), list(now.values()))
        return {n: p - self.inner_lr * g for (n, p), g in zip(now.items(), slopes, strict=True)}


class Transposed(NearestMean):
    """Returns logits [B, N, n]."""

    needs = Needs()

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.logits(support, x).transpose(1, 2)


class Infinite(NearestMean):
    """Returns NaN logits."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.logits(support, x) * torch.nan


class Balanced(NearestMean):
    """Assumes that all classes have the same number of examples."""

    needs = Needs()

    def logits(self, support: Support, x: Tensor) -> Tensor:
        z = self.embed(support.x).tanh()
        prototypes = z.view(len(z), support.way or 0, -1, z.shape[-1]).mean(2)
        return prototypical_logits(self.embed(x).tanh(), prototypes)


class PrefersZero(NearestMean):
    """Declares invariance to labels, but prefers label 0."""

    def logits(self, support: Support, x: Tensor) -> Tensor:
        logits = super().logits(support, x)
        return logits + F.one_hot(torch.tensor(0), logits.shape[-1]).to(logits)


class PrefersLast(NearestMean):
    """Declares invariance to the order of the support, but weights the last example twice."""

    def logits(self, support: Support, x: Tensor) -> Tensor:
        weights = torch.linspace(1, 2, support.x.shape[1]).to(support.x)
        return super().logits(attrs.evolve(support, x=support.x * weights[:, None]), x)


class PrefersFirstUnlabelled(SoftMeans):
    """Declares invariance to order, but treats the first unlabelled example as one of class 0."""

    needs = attrs.evolve(SoftMeans.needs, invariant={"order"})

    def logits(self, support: Support, x: Tensor) -> Tensor:
        logits = super().logits(support, x)
        if support.unlabelled is None:
            return logits
        first = self.embed(support.unlabelled[:, :1]).tanh()
        return torch.cat([logits[..., :1] + prototypical_logits(self.embed(x).tanh(), first), logits[..., 1:]], -1)


class NeedsUnlabelled(SoftMeans):
    """Declares that unlabelled examples are optional, but can't work without them."""

    def logits(self, support: Support, x: Tensor) -> Tensor:
        assert support.unlabelled is not None
        return super().logits(support, x)


class Unregistered(NearestMean):
    """Keeps what it knows in a plain attribute, which is not in the state dict."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.scale = float(torch.rand(()) + 0.5)

    def logits(self, support: Support, x: Tensor) -> Tensor:
        return super().logits(support, x) * self.scale


class Collecting(NearestMean):
    """Keeps every embedding that it computes while adapting."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.history: list[Tensor] = []

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        self.history.append(self.embed(support.x))
        return super().adapt(support)


class CpuOnly(NearestMean):
    """Creates tensors on the CPU, whatever its device."""

    def adapt(self, support: Support) -> Callable[[Tensor], Tensor]:
        return lambda x: self.logits(support, x) + torch.ones(1, x.shape[1], 1)


class Undeclared(NearestMean):
    """Declares its needs on the instance only."""

    needs = None  # type: ignore[assignment]

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.needs = Needs()


class UsesSurplus(NearestMean):
    """Declares that it needs no semantics, but uses them if there are any."""

    def logits(self, support: Support, x: Tensor) -> Tensor:
        logits = super().logits(support, x)
        return logits if support.semantics is None else logits * 2


class FixedWay(NearestMean):
    """Declares that it accepts any way, but has one output per class of the spec."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.head = nn.Linear(6, spec.way if isinstance(spec.way, int) else 4)

    needs = Needs(variable_way=True)

    def logits(self, support: Support, x: Tensor) -> Tensor:
        return self.head(x) if support.way == self.head.out_features else self.head(x)[..., :1].expand(-1, -1, 7)


class WrongKinds(NearestMean):
    """Declares regression although it can't learn it."""

    needs = Needs(kinds=("classification", "regression"))


SAMPLE = sample_tasks.classification()
STREAM = sample_tasks.LabelStream()
UNLABELLED = sample_tasks.classification(unlabelled=4)
# Rule, broken learner, tasks, and the other rules that it breaks inevitably.
BROKEN: list[tuple[str, Any, Any, set[str]]] = [
    ("query-labels-unseen", Peeping, SAMPLE, {"state-round-trips"}),
    ("query-labels-unseen", Clairvoyant, STREAM, set()),
    ("adapt-changes-nothing", BatchNormed, SAMPLE, set()),
    ("adapt-changes-nothing", LeftInTraining, SAMPLE, set()),
    ("adapt-changes-nothing", Noisy, SAMPLE, set()),
    ("adapt-changes-nothing", Backward, SAMPLE, set()),
    ("adapt-changes-nothing", Writing, SAMPLE, {"needs-are-true", "label-equivariance"}),
    ("predictors-are-values", Sticky, SAMPLE, set()),
    ("deterministic", Unseeded, SAMPLE, set()),
    ("query-permutation", SecretlyJoint, SAMPLE, set()),
    ("query-permutation", Positional, SAMPLE, set()),
    ("gradients-do-not-change-predictions", OtherWithoutGradients, SAMPLE, set()),
    ("copies-predict-alike", Unpicklable, SAMPLE, set()),
    ("batch-equals-singles", NormalisedOverTasks, SAMPLE, set()),
    ("batch-equals-singles", Summed, SAMPLE, set()),
    ("gradient-accumulates", Overwriting, SAMPLE, set()),
    ("gradient-accumulates", Stepping, SAMPLE, set()),
    ("gradient-accumulates", HoldingGraph, SAMPLE, set()),
    ("gradient-accumulates", Vectorial, SAMPLE, set()),
    ("finite-differences", HalfGradient, SAMPLE, set()),
    ("finite-differences", ClaimsSecondOrder, SAMPLE, set()),
    ("predictor-shape", Transposed, SAMPLE, {"query-permutation", "unbalanced-support", "needs-are-true"}),
    ("predictor-shape", Infinite, SAMPLE, {"unbalanced-support"}),
    ("unbalanced-support", Balanced, SAMPLE, set()),
    ("label-equivariance", PrefersZero, SAMPLE, set()),
    ("order-invariance", PrefersLast, SAMPLE, set()),
    ("order-invariance", PrefersFirstUnlabelled, UNLABELLED, set()),
    ("state-round-trips", Unregistered, SAMPLE, set()),
    ("flat-memory", Collecting, SAMPLE, set()),
    pytest.param(
        "devices",
        CpuOnly,
        SAMPLE,
        set(),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
    ),
    ("needs-are-true", Undeclared, SAMPLE, set()),
    ("needs-are-true", UsesSurplus, SAMPLE, set()),
    ("needs-are-true", NeedsUnlabelled, UNLABELLED, set()),
    ("needs-are-true", FixedWay, SAMPLE, set()),
    ("needs-are-true", WrongKinds, SAMPLE, set()),
]


@pytest.mark.parametrize(("rule", "learner", "tasks", "also"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_learner_is_rejected_by_the_rule_it_breaks(
    rule: str, learner: Any, tasks: Any, also: set[str]
) -> None:
    """The message names the rule, and rules that the learner keeps do not fail."""
    tried = suite(learner=learner, tasks=tasks)
    with pytest.raises(RuleViolation, match=f"^{rule}: .{{20,}}"):
        tried.verify(rule)
    failed = {f.rule for f in tried.run() if f.outcome == "failed"}
    assert failed - also == {rule}


def test_every_rule_for_learners_has_a_learner_that_breaks_it() -> None:
    """A rule that no test breaks may be one that can't be broken."""
    tested = {getattr(case, "values", case)[0] for case in BROKEN}
    elsewhere = {
        "budget-kept",  # test_kit_control.py
        "unknown-choices-are-refused",  # test_kit_catches.py
        "plays-from-own-chance",
        "iterates-by-step",  # test_kit_objectives.py
        "task-losses-part-the-gradient",  # test_kit_per_task.py
        "process-is-left-alone",  # these are in test_kit_catches.py
        "training-keeps-what-is-set",
        "training-changes-predictions",
        "logits-are-no-probabilities",
        "learns-from-the-support",
        "chance-of-labels",
    }
    assert tested | elsewhere == {rule.name for rule in rules("learners")}


def test_a_manifest_that_says_other_kinds_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """``kshot list`` and ``check`` show users the kinds in the manifest."""
    said = Plugin("nearest", "learners", "kshot-nearest", "1", "x:y", kinds=("regression",))
    monkeypatch.setattr(Source, "plugin", said)
    with pytest.raises(RuleViolation, match=r"needs-are-true: got needs.kinds classification, expected .*: regression"):
        suite(learner=NearestMean).verify("needs-are-true")


def test_a_declared_kind_that_the_learner_refuses_is_rejected() -> None:
    """Without tasks from the user, every declared kind is tried on the kit's own tasks."""

    class Refusing(NearestMean):
        needs = Needs(kinds=("classification", "regression"))

        def __init__(self, spec: TaskSpec) -> None:
            super().__init__(spec)
            if spec.kind == "regression":
                raise DataError("no regression after all")

    with pytest.raises(RuleViolation, match=r"needs\.kinds has 'regression'.*no regression after all"):
        suite(learner=Refusing).verify("needs-are-true")
