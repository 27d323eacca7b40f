"""Wrong learners of sequences, of control and of objectives, each with one fault that a plugin's author may make."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import shelf
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from kshot import Episode, Needs, Support, TaskSpec, control
from kshot.testing import sample_tasks

caught_by = partial(shelf.caught_by, group="learner")
survives = partial(shelf.survives, group="learner")
right = partial(shelf.right, group="learner")
Predict = Callable[[Tensor], Tensor]
STREAM = sample_tasks.LabelStream()
BITS = sample_tasks.Copying()


@right()
class Recurrent(nn.Module):
    """A right learner: a recurrent net over a stream of labels or a sequence of bits."""

    needs = Needs(kinds=("sequence",), exact_gradient=True)

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        out = spec.way if spec.way is not None else spec.target_shape[0]
        self.core = nn.GRU(spec.input_shape[0], 6, batch_first=True)
        self.head = nn.Linear(6, out)

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

    def adapt(self, support: Support) -> Predict:
        return self.logits


@caught_by("query-labels-unseen", tasks=STREAM)
class LooksAhead(Recurrent):
    """Reads one step too far: the input that shows the label."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(torch.cat([x[:, 1:], x[:, -1:]], 1))


@caught_by("query-labels-unseen", tasks=STREAM)
class NormalisedOverTime(Recurrent):
    """Standardises inputs by their mean over the whole stream."""

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(x - x.mean(1, keepdim=True))


@caught_by("batch-equals-singles")
class TimeFirst(Recurrent):
    """Forgets batch_first, so that its state goes from task to task."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.core.batch_first = False


@caught_by("deterministic")
class KeepsItsState(Recurrent):
    """Begins a stream with the hidden state of the last one."""

    hidden: Any = None

    def logits(self, x: Tensor) -> Tensor:
        start = self.hidden if self.hidden is not None and self.hidden.shape[1] == len(x) else None
        out, last = self.core(x, None if start is None else start.to(x))
        self.hidden = last.detach()
        return self.head(out)


@caught_by("logits-are-no-probabilities", tasks=BITS)
class BitProbabilities(Recurrent):
    """Returns probabilities of bits instead of logits."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(x).sigmoid()


@caught_by("logits-are-no-probabilities", tasks=STREAM)
class StreamProbabilities(Recurrent):
    """Returns probabilities of classes instead of logits."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(x).softmax(-1)


@caught_by("predictor-shape", tasks=STREAM)
class LastStep(Recurrent):
    """Predicts the last step only."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(x)[:, -1:]


@caught_by("deterministic")
class Dropout(Recurrent):
    """Drops inputs also when it predicts."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.logits(F.dropout(x, 0.5))


# --- Control ---------------------------------------------------------------------------------------


@right()
class Explorer(nn.Module):
    """A right learner of continuous control: goes where the best random trajectory went, with some noise."""

    needs = Needs(kinds=("control",), actions="continuous")

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def goal(self, support: Support) -> Tensor:
        played = support.source.rollout(self.policy(torch.zeros(len(support.key), 1, 2), 1.0))
        best = played.rewards.sum(-1).argmax(1)
        return played.observations[torch.arange(len(best)), best, -1][:, None]

    def policy(self, goal: Tensor, spread: float) -> Any:
        return Towards(goal, self.gain.detach(), spread)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        goal = self.goal(episodes.support)
        played = episodes.query.source.rollout(self.policy(goal, 0.1))
        step = self.gain * (goal[:, None] - played.observations)
        loss = (played.observations + 0.3 * step - goal[:, None]).square().sum(-1).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Any:
        return self.policy(self.goal(support), 0.1)


@frozen(eq=False)
class Towards:
    """A policy that goes to a goal [B, 1, 2], with noise."""

    goal: Tensor
    gain: Tensor
    spread: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.gain.to(x) * (self.goal.to(x) - x)

    def noise(self, key: Tensor, E: int, T: int) -> Tensor:
        return control.normals(key, "actions", E, T, 2)

    def begin(self, key: Tensor, shape: tuple[int, int]) -> Predict:
        noise = iter(self.noise(key, *shape).unbind(-2))
        return lambda x: self(x) + self.spread * next(noise).to(x)


class GlobalNoise(Towards):
    """Draws from torch's global generator."""

    def noise(self, key: Tensor, E: int, T: int) -> Tensor:
        return torch.randn(*key.shape, E, T, 2)


class FixedNoise(Towards):
    """Draws the same numbers for every task and rollout."""

    def noise(self, key: Tensor, E: int, T: int) -> Tensor:
        one = torch.randn(E, T, 2, generator=torch.Generator().manual_seed(0))
        return one.expand(*key.shape, E, T, 2)


@caught_by("plays-from-own-chance")
class DrawsGlobally(Explorer):
    """Explores with torch's global generator."""

    def policy(self, goal: Tensor, spread: float) -> Any:
        return GlobalNoise(goal, self.gain.detach(), spread)


@caught_by("plays-from-own-chance")
class DrawsTheSame(Explorer):
    """Explores with a generator that is seeded with 0 at each rollout, so that all tasks have the same noise."""

    def policy(self, goal: Tensor, spread: float) -> Any:
        return FixedNoise(goal, self.gain.detach(), spread)


@caught_by("budget-kept")
class PlaysMore(Explorer):
    """Plays four rollouts, and declares one."""

    def goal(self, support: Support) -> Tensor:
        goals = [support.source.rollout(self.policy(torch.zeros(len(support.key), 1, 2), 1.0), n) for n in range(4)]
        best = torch.stack([g.rewards.sum((1, 2)) for g in goals]).argmax(0)
        return torch.stack([g.observations[:, :1, -1] for g in goals])[best, torch.arange(len(best))]


@caught_by("batch-equals-singles")
class SharedBaseline(Explorer):
    """Centres goals over the tasks of a meta-batch."""

    def goal(self, support: Support) -> Tensor:
        goal = super().goal(support)
        return goal - goal.mean(0)


@caught_by("predictor-shape", tasks=sample_tasks.Corridors())
class OneHotActions(nn.Module):
    """Returns probabilities of discrete actions instead of an action."""

    needs = Needs(kinds=("control",), actions="discrete")

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.out = nn.Linear(spec.input_shape[0], 2)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        played = episodes.query.source.rollout(lambda x: self.out(x).argmax(-1))
        loss = -(self.out(played.observations).log_softmax(-1)[..., 0] * played.rewards).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Any:
        return lambda x: self.out(x).softmax(-1)


# --- Objectives ------------------------------------------------------------------------------------


@right()
class LearnedRate(nn.Module):
    """A right learner of objectives: gradient descent with a learned rate."""

    needs = Needs(kinds=("objective",), exact_gradient=True)

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1))

    def descend(self, source: Any, steps: int, create_graph: bool) -> Tensor:
        """Return the points [B, steps, P] after each update."""
        point, points = source.initial.clone(), []
        with torch.enable_grad():
            for _ in range(steps):
                point = point if point.requires_grad else point.requires_grad_()
                (slope,) = torch.autograd.grad(source.loss(point).sum(), point, create_graph=create_graph)
                point = point - self.rate * slope
                points.append(point)
        return torch.stack(points, 1)

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        source = episodes.query.source
        loss = source.loss(self.descend(source, 3, create_graph=True)[:, -1]).mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Predict:
        def predict(x: Tensor) -> Tensor:
            points = self.descend(support.source, int(x.max()), create_graph=False).detach()
            return points[torch.arange(len(x))[:, None], x.long() - 1]

        return predict


@caught_by("iterates-by-step")
class CountsSteps(LearnedRate):
    """Returns the first iterates, whatever steps it is asked for."""

    def adapt(self, support: Support) -> Predict:
        return lambda x: self.descend(support.source, x.shape[1], create_graph=False).detach()


@survives("An optimizer whose first update is 0, as with a learning rate that rises from 0, has the same iterates.")
class OneStepLate(LearnedRate):
    """Returns the point before the update of each step."""

    def adapt(self, support: Support) -> Predict:
        def predict(x: Tensor) -> Tensor:
            points = self.descend(support.source, int(x.max()), create_graph=False).detach()
            points = torch.cat([support.source.initial[:, None], points], 1)
            return points[torch.arange(len(x))[:, None], x.long() - 1]

        return predict


@caught_by("adapt-changes-nothing")
class MovesTheStart(LearnedRate):
    """Takes its steps in place, in the initial point that belongs to the task."""

    def adapt(self, support: Support) -> Predict:
        def predict(x: Tensor) -> Tensor:
            points = self.descend(support.source, int(x.max()), create_graph=False).detach()
            chosen = points[torch.arange(len(x))[:, None], x.long() - 1]
            support.source.initial.copy_(points[:, -1])
            return chosen

        return predict


@caught_by("finite-differences")
class Truncated(LearnedRate):
    """Detaches the slopes, and still declares the exact gradient."""

    def meta_gradient(self, episodes: Episode) -> dict[str, Any]:
        source = episodes.query.source
        loss = source.loss(self.descend(source, 3, create_graph=False)[:, -1]).mean()
        loss.backward()
        return {"loss": loss.detach()}
