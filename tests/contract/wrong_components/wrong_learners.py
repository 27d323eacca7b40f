"""Wrong learners of classification and regression, each with one fault that a plugin's author may make."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import attrs
import numpy as np
import shelf
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kshot
from kshot import Episode, Needs, Support, TaskSpec
from kshot.errors import DataError
from kshot.functional import class_means, prototypical_logits

caught_by = partial(shelf.caught_by, group="learner")
survives = partial(shelf.survives, group="learner")
right = partial(shelf.right, group="learner")
Predict = Callable[[Tensor], Tensor]
MORE_TRAINING = (
    "It uses the support, and right methods too (MAML) are worse than the mean of its targets after a short training."
)


@right()
class Prototypes(nn.Module):
    """A right learner: the nearest class mean in a learned embedding."""

    needs = Needs(variable_way=True, exact_gradient=True, invariant={"labels", "order"})

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        if len(spec.input_shape) != 1:
            raise DataError(f"Prototypes: got inputs of shape {spec.input_shape}, expected vectors")
        self.embed = nn.Sequential(nn.Linear(spec.input_shape[0], 8), nn.Tanh(), nn.Linear(8, 8))

    def logits(self, support: Support, x: Tensor) -> Tensor:
        prototypes = class_means(self.embed(support.x), support.y, support.way or 0)
        return prototypical_logits(self.embed(x), prototypes)

    def loss(self, episodes: Episode) -> Tensor:
        logits = self.logits(episodes.support, episodes.query.x)
        return F.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = self.loss(episodes)
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(support, x)


@caught_by("unknown-choices-are-refused")
class IgnoresUnknownChoices(Prototypes):
    """It takes a misspelt choice for the other one."""

    def __init__(self, spec: TaskSpec, *, distance: Literal["squared", "plain"] = "squared") -> None:
        super().__init__(spec)
        self.squared = distance == "squared"

    def logits(self, support: Support, x: Tensor) -> Tensor:
        logits = super().logits(support, x)
        return logits if self.squared else -(-logits + 1e-6).sqrt()


@right()
class GradientStep(nn.Module):
    """A right learner: one gradient step on the support, differentiated by the outer loop."""

    needs = Needs(kinds=("classification", "regression"), exact_gradient=True)
    second_order = True

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        if len(spec.input_shape) != 1:
            raise DataError(f"GradientStep: got inputs of shape {spec.input_shape}, expected vectors")
        self.classifies = spec.kind == "classification"
        self.way = spec.way
        out = spec.way if self.classifies else spec.target_shape[0]
        self.net = nn.Sequential(nn.Linear(spec.input_shape[0], 16), nn.Tanh(), nn.Linear(16, out))

    def loss_of(self, predictions: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(predictions, y) if self.classifies else F.mse_loss(predictions, y)

    def adapted(self, support: Support) -> dict[str, Tensor]:
        with torch.enable_grad():
            now = dict(self.net.named_parameters())
            loss = self.loss_of(self.net(support.x), support.y)
            slopes = torch.autograd.grad(loss, list(now.values()), create_graph=self.second_order)
        return {n: p - 0.4 * g for (n, p), g in zip(now.items(), slopes, strict=True)}

    def predict(self, fast: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(self.net, fast, (x,))

    @kshot.per_episode
    def meta_gradient(self, episode: Episode) -> Tensor:
        return self.loss_of(self.predict(self.adapted(episode.support), episode.query.x), episode.query.y)

    @kshot.per_episode
    def adapt(self, support: Support) -> Predict:
        fast = {n: p.detach() for n, p in self.adapted(support).items()}
        return lambda x: self.predict(fast, x)


@right()
class Ridge(nn.Module):
    """A right learner: ridge regression in learned features."""

    needs = Needs(kinds=("regression",), exact_gradient=True, invariant={"order"})

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(spec.input_shape[0], 8), nn.Tanh())

    def fit(self, support: Support) -> Tensor:
        """Return weights [B, F + 1, T]."""
        z = self.of(support.x)
        eye = 0.1 * torch.eye(z.shape[-1]).to(z)
        return torch.linalg.solve(z.mT @ z + eye, z.mT @ support.y)

    def of(self, x: Tensor) -> Tensor:
        return torch.cat([self.features(x), torch.ones_like(x[..., :1])], -1)

    def error(self, predictions: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(predictions, y)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = self.error(self.of(episodes.query.x) @ self.fit(episodes.support), episodes.query.y)
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Predict:
        weights = self.fit(support)
        return lambda x: self.of(x) @ weights


# --- What they change in the process ---------------------------------------------------------------


@caught_by("adapt-changes-nothing")
class SeedsInAdapt(Prototypes):
    """Makes its predictions reproducible by seeding torch."""

    def adapt(self, support: Support) -> Predict:
        torch.manual_seed(0)
        return super().adapt(support)


@caught_by("process-is-left-alone")
class SeedsInMetaGradient(Prototypes):
    """Makes its training reproducible by seeding torch."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        torch.manual_seed(0)
        return super().meta_gradient(episodes)


@caught_by("process-is-left-alone")
class SeedsNumpyInMetaGradient(Prototypes):
    """Seeds numpy, from which it draws a subset of the queries."""

    needs = Needs()

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        np.random.seed(0)
        return super().meta_gradient(episodes)


@caught_by("adapt-changes-nothing")
class ShufflesInAdapt(Prototypes):
    """Shuffles the support with Python's global generator."""

    def adapt(self, support: Support) -> Predict:
        order = list(range(support.x.shape[1]))
        random.shuffle(order)
        return super().adapt(attrs.evolve(support, x=support.x[:, order], y=support.y[:, order]))


@caught_by("process-is-left-alone")
class DoublesByDefault(Prototypes):
    """Sets torch's default type when it adapts, to solve a system precisely."""

    def adapt(self, support: Support) -> Predict:
        torch.set_default_dtype(torch.float64)
        return super().adapt(support)


@caught_by("process-is-left-alone")
class DoublesByDefaultInTraining(Prototypes):
    """Sets torch's default type when it trains."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        torch.set_default_dtype(torch.float64)
        return super().meta_gradient(episodes)


@caught_by("process-is-left-alone")
class SwitchesGradientsOff(Prototypes):
    """Calls set_grad_enabled as a statement, which is never undone."""

    def adapt(self, support: Support) -> Predict:
        torch.set_grad_enabled(False)
        return super().adapt(support)


@caught_by("process-is-left-alone")
class LeavesAnomalyDetection(Prototypes):
    """Leaves torch's anomaly detection on, which makes every backward pass slow."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        torch.autograd.set_detect_anomaly(True)
        return super().meta_gradient(episodes)


@caught_by("process-is-left-alone")
class TakesAllThreads(Prototypes):
    """Sets the number of torch's threads when it is built."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        torch.set_num_threads(3)


# --- What they predict -----------------------------------------------------------------------------


@caught_by("logits-are-no-probabilities")
class Probabilities(Prototypes):
    """Returns probabilities instead of logits."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(support, x).softmax(-1)


@caught_by("logits-are-no-probabilities")
class Decisions(Prototypes):
    """Returns the predicted class, one-hot, instead of logits."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: F.one_hot(self.logits(support, x).argmax(-1), support.way or 0).float()


@caught_by("learns-from-the-support")
class Farthest(Prototypes):
    """Ranks classes by their distance, not by minus their distance, when it adapts."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: -self.logits(support, x)


@caught_by("learns-from-the-support")
class OffByOne(Prototypes):
    """Numbers classes from 1."""

    needs = Needs(variable_way=True)

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(support, x).roll(1, -1)


@caught_by("learns-from-the-support")
class IgnoresSupport(nn.Module):
    """Trains one classifier for all tasks, without the support."""

    needs = Needs()

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        if len(spec.input_shape) != 1:
            raise DataError("vectors only")
        self.out = nn.Linear(spec.input_shape[0], spec.way)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        loss = F.cross_entropy(self.out(episodes.query.x).flatten(0, 1), episodes.query.y.flatten())
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Predict:
        return self.out


@caught_by("learns-from-the-support")
class IgnoresSupportOfLines(Ridge):
    """Predicts by the weights of an empty support."""

    def adapt(self, support: Support) -> Predict:
        weights = self.fit(attrs.evolve(support, x=0 * support.x, y=0 * support.y))
        return lambda x: self.of(x) @ weights


@survives(MORE_TRAINING)
class Standardised(Ridge):
    """Standardises targets by those of the support, and forgets to undo it in its predictions."""

    def adapt(self, support: Support) -> Predict:
        mean, scale = support.y.mean(1, keepdim=True), support.y.std(1, keepdim=True) + 1e-6
        return super().adapt(attrs.evolve(support, y=(support.y - mean) / scale))


@survives(MORE_TRAINING)
class Broadcast(GradientStep):
    """Subtracts targets [n] from predictions [n, 1], which gives all pairs of them, so that it learns their mean."""

    needs = Needs(kinds=("regression",), exact_gradient=True)

    def loss_of(self, predictions: Tensor, y: Tensor) -> Tensor:
        return (predictions - y[:, 0]).square().mean()


@caught_by("predictor-shape")
class Squeezed(Ridge):
    """Returns predictions without their last axis."""

    def adapt(self, support: Support) -> Predict:
        predict = super().adapt(support)
        return lambda x: predict(x).squeeze(-1)


@caught_by("predictor-shape")
class ClassNumbers(Prototypes):
    """Returns the numbers of classes."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(support, x).argmax(-1)


@caught_by("query-permutation")
class Transductive(Prototypes):
    """Standardises the queries by their own mean without declaring it."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(support, x - x.mean(1, keepdim=True))


@caught_by("query-permutation")
class QueryOrder(Prototypes):
    """Takes the position of a query for its class: the queries it was written for were ordered by class."""

    def adapt(self, support: Support) -> Predict:
        def predict(x: Tensor) -> Tensor:
            N = support.way or 1
            guess = F.one_hot((torch.arange(x.shape[1]) * N // x.shape[1]).clamp(max=N - 1), N)
            return self.logits(support, x) + 0.1 * guess.to(x)

        return predict


@caught_by("chance-of-labels")
class SupportOrder(Prototypes):
    """Takes the position of a support example for its label, because its own tasks order the support by class."""

    needs = Needs()

    def logits(self, support: Support, x: Tensor) -> Tensor:
        N, S = support.way or 1, support.x.shape[1]
        y = (torch.arange(S) * N // S).expand_as(support.y)
        return prototypical_logits(self.embed(x), class_means(self.embed(support.x), y, N))


@caught_by("chance-of-labels")
class FirstSeenFirst(Prototypes):
    """Numbers classes by their first appearance in the support."""

    needs = Needs()

    def logits(self, support: Support, x: Tensor) -> Tensor:
        first = [torch.tensor(list(dict.fromkeys(row.tolist()))) for row in support.y]
        return torch.stack([row[:, f] for row, f in zip(super().logits(support, x), first, strict=True)])


@caught_by("chance-of-labels")
class ReadsTheKey(nn.Module):
    """Draws the classes of the episode again from its key, and ranks them by what it learned of each class."""

    needs = Needs()

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        if len(spec.input_shape) != 1:
            raise DataError("vectors only")
        self.classes = nn.Linear(spec.input_shape[0], 10)

    def numbers(self, support: Support) -> Tensor:
        from kshot.randomness import choose

        drawn = choose(support.key.numpy().view(np.uint64), "classes", 10, support.way or 1)
        return torch.from_numpy(drawn.astype(np.int64))

    def logits(self, support: Support, x: Tensor) -> Tensor:
        picked = self.numbers(support)[:, None].expand(-1, x.shape[1], -1)
        return self.classes(x).gather(-1, picked)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        logits = self.logits(episodes.support, episodes.query.x)
        loss = F.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(support, x)


@caught_by("unbalanced-support")
class FixedShot(Prototypes):
    """Cuts the support into classes of equal size, after sorting it by label."""

    needs = Needs(invariant={"labels"})

    def logits(self, support: Support, x: Tensor) -> Tensor:
        order = support.y.argsort(dim=1, stable=True)
        z = self.embed(support.x).gather(1, order[..., None].expand(-1, -1, 8))
        return prototypical_logits(self.embed(x), z.view(len(z), support.way or 0, -1, 8).mean(2))


# --- What they keep and change ---------------------------------------------------------------------


@caught_by("adapt-changes-nothing")
class WritesToQueries(Prototypes):
    """Centres the queries in place."""

    def adapt(self, support: Support) -> Predict:
        def predict(x: Tensor) -> Tensor:
            centre = support.x.mean(1, keepdim=True)
            return self.logits(attrs.evolve(support, x=support.x - centre), x.sub_(centre))

        return predict


@caught_by("adapt-changes-nothing")
class ForgetsItsHook(Prototypes):
    """Registers a hook on its network at each adaptation, to read features, and never removes it."""

    def adapt(self, support: Support) -> Predict:
        self.embed.register_forward_hook(ignore)
        return super().adapt(support)


def ignore(module: nn.Module, given: Any, out: Tensor) -> None:
    """Do nothing."""


@caught_by("adapt-changes-nothing")
class FreezesInAdapt(GradientStep):
    """Freezes its body while it adapts the head, and leaves it frozen."""

    def adapt(self, support: Support) -> Predict:
        self.net[0].requires_grad_(False)
        return super().adapt(support)

    def adapted(self, support: Support) -> dict[str, Tensor]:
        with torch.enable_grad():
            now = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
            loss = self.loss_of(self.net(support.x), support.y)
            slopes = torch.autograd.grad(loss, list(now.values()), create_graph=True)
        return {n: p - 0.4 * g for (n, p), g in zip(now.items(), slopes, strict=True)}


@caught_by("training-keeps-what-is-set")
class FreezesInTraining(Prototypes):
    """Freezes the first layer from the first step of training on, although it was not frozen."""

    needs = Needs()

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        self.embed[0].requires_grad_(False)
        return super().meta_gradient(episodes)


@caught_by("training-keeps-what-is-set")
class EvaluationInTraining(Prototypes):
    """Computes its loss in evaluation mode and stays in it, so that a second chunk trains without dropout."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        self.embed.eval()
        return super().meta_gradient(episodes)


@caught_by("training-keeps-what-is-set")
class WritesToEpisodes(Prototypes):
    """Augments the queries in place."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        episodes.query.x.mul_(1.1)
        return super().meta_gradient(episodes)


@caught_by("adapt-changes-nothing")
class FastWeightsInPlace(Prototypes):
    """Takes a gradient step on its own parameters while adapting."""

    def adapt(self, support: Support) -> Predict:
        with torch.no_grad():
            self.embed[2].bias.sub_(0.01)
        return super().adapt(support)


@caught_by("adapt-changes-nothing")
class RunningStatistics(Prototypes):
    """Updates running statistics while it adapts."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.register_buffer("centre", torch.zeros(8))

    def adapt(self, support: Support) -> Predict:
        with torch.no_grad():
            self.centre.lerp_(self.embed(support.x).mean((0, 1)), 0.1)
        return super().adapt(support)


@caught_by("predictors-are-values")
class LastTask(GradientStep):
    """Keeps the adapted weights on itself."""

    fast: Any = None

    def adapt(self, support: Support) -> Predict:
        self.kept = [{n: p.detach() for n, p in self.adapted(one).items()} for one in _singles(support)]
        return lambda x: torch.stack([self.predict(f, row) for f, row in zip(self.kept, x, strict=True)])


def _singles(support: Support) -> list[Support]:
    return [attrs.evolve(support, x=support.x[b], y=support.y[b]) for b in range(len(support.x))]


@caught_by("predictors-are-values")
class SecondCallDiffers(Prototypes):
    """Adds the queries that it has seen to its prototypes."""

    def adapt(self, support: Support) -> Predict:
        seen: list[Tensor] = []

        def predict(x: Tensor) -> Tensor:
            logits = self.logits(support, x) + 0.1 * len(seen) * x[..., :1]
            seen.append(x)
            return logits * (1 + len(seen))

        return predict


@caught_by("state-round-trips")
class CachesByKey(Prototypes):
    """Remembers the last prototypes by the key of their episode, also after its parameters have changed."""

    kept: Any = (None, None)

    def adapt(self, support: Support) -> Predict:
        key = support.key.tolist(), support.x.shape, support.x.double().sum().item(), support.y.tolist()
        if self.kept[0] != key:
            z = self.embed(support.x).detach()
            self.kept = key, class_means(z, support.y, support.way or 0).tolist()
        prototypes = torch.tensor(self.kept[1]).to(support.x)
        return lambda x: prototypical_logits(self.embed(x), prototypes)


@caught_by("deterministic")
class OwnGenerator(Prototypes):
    """Draws noise from a generator that advances from one adaptation to the next."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.draws = 0

    def adapt(self, support: Support) -> Predict:
        self.draws += 1
        noise = 0.1 * torch.randn(8, generator=torch.Generator().manual_seed(self.draws))
        return lambda x: self.logits(support, x) + noise.to(x).sum() * x[..., :1]


@caught_by("state-round-trips")
class PlainTensor(Prototypes):
    """Keeps a random projection in a plain attribute instead of a buffer."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.projection = torch.randn(spec.input_shape[0], spec.input_shape[0])

    def logits(self, support: Support, x: Tensor) -> Tensor:
        projected = attrs.evolve(support, x=support.x @ self.projection.to(x))
        return super().logits(projected, x @ self.projection.to(x))


@caught_by("training-changes-predictions")
class PredictsWithItsCopy(Prototypes):
    """Predicts with a copy of the embedding that was made before training."""

    needs = Needs()

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        import copy

        self.start = copy.deepcopy(self.embed).requires_grad_(False)

    def adapt(self, support: Support) -> Predict:
        prototypes = class_means(self.start(support.x), support.y, support.way or 0)
        return lambda x: prototypical_logits(self.start(x), prototypes)


@caught_by("flat-memory")
class KeepsLosses(Prototypes):
    """Keeps the loss tensor of each iteration for a plot."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.history: list[Tensor] = []

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        found = super().meta_gradient(episodes)
        self.history.append(found["loss"])
        return found


@caught_by("flat-memory")
class KeepsTasks(Prototypes):
    """Keeps the prototypes of each task."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.tasks: dict[int, Tensor] = {}

    def adapt(self, support: Support) -> Predict:
        for key, x in zip(support.key.tolist(), support.x, strict=True):
            self.tasks[key] = x.mean(0)
        return super().adapt(support)


@caught_by("copies-predict-alike")
class KeepsALambda(Prototypes):
    """Chooses its distance when it is built, as a lambda."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.distance = lambda a, b: (a - b).square().sum(-1)


# --- Their gradient --------------------------------------------------------------------------------


@caught_by("finite-differences")
class FirstOrder(GradientStep):
    """Forgets create_graph, and still declares the exact gradient."""

    second_order = False


@caught_by("finite-differences")
class DetachedPrototypes(Prototypes):
    """Detaches the prototypes, and still declares the exact gradient."""

    def loss(self, episodes: Episode) -> Tensor:
        with torch.no_grad():
            prototypes = class_means(self.embed(episodes.support.x), episodes.support.y, episodes.support.way or 0)
        logits = prototypical_logits(self.embed(episodes.query.x), prototypes)
        return F.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())


@caught_by("gradient-accumulates")
class ClearsGradients(Prototypes):
    """Calls zero_grad before its backward pass."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        self.zero_grad()
        return super().meta_gradient(episodes)


@caught_by("gradient-accumulates")
class OwnOptimizer(Prototypes):
    """Has an optimizer of its own."""

    needs = Needs()

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.01)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        found = super().meta_gradient(episodes)
        self.optimizer.step()
        return found


@caught_by("batch-equals-singles")
class SumOfTasks(GradientStep):
    """Adds the gradients of the tasks instead of their mean."""

    needs = Needs(kinds=("classification", "regression"))

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        total = super().meta_gradient(episodes)
        for p in self.parameters():
            if p.grad is not None:
                p.grad *= episodes.size
        return total


@caught_by("batch-equals-singles")
class FirstTaskForAll(Prototypes):
    """Uses the prototypes of the first task for all tasks of a meta-batch."""

    def adapt(self, support: Support) -> Predict:
        first = attrs.evolve(support, x=support.x[:1], y=support.y[:1])
        return lambda x: torch.cat([self.logits(first, row[None]) for row in x])


# --- What they declare -----------------------------------------------------------------------------


@caught_by("label-equivariance")
class PrefersFirst(Prototypes):
    """Declares that it treats all labels alike, and adds a learned bias for each label."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.bias = nn.Parameter(torch.linspace(-1, 1, 9))

    def logits(self, support: Support, x: Tensor) -> Tensor:
        return super().logits(support, x) + self.bias[: support.way or 0]


@caught_by("order-invariance")
class RunningMean(Prototypes):
    """Declares that the order of the support does not matter, and computes prototypes by a moving average."""

    def logits(self, support: Support, x: Tensor) -> Tensor:
        weights = 0.9 ** torch.arange(support.x.shape[1]).flip(0).to(x)
        return super().logits(attrs.evolve(support, x=support.x * weights[:, None]), x)


@caught_by("needs-are-true")
class FixedOutputs(GradientStep):
    """Declares any way, and has one output for each class of the tasks that it was built for."""

    needs = Needs(variable_way=True)

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(attrs.evolve(spec, way=spec.way if isinstance(spec.way, int) else spec.way[1]))


@survives("The kit has no other device than the CPU here; the rule devices catches it on a machine with CUDA.")
class OnTheCpu(Prototypes):
    """Builds a constant on the CPU, whatever its own device."""

    def logits(self, support: Support, x: Tensor) -> Tensor:
        return super().logits(support, x) * torch.full((1, x.shape[1], 1), 2.0)


@survives("Any weight of a regulariser is somebody's method; the loss that it states is the one that it minimises.")
class TooMuchDecay(Prototypes):
    """Adds a weight decay that is a thousand times too strong."""

    def loss(self, episodes: Episode) -> Tensor:
        return super().loss(episodes) + sum(p.square().sum() for p in self.parameters())
