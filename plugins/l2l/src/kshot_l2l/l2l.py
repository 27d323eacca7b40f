"""Andrychowicz et al., "Learning to learn by gradient descent by gradient descent", 2016 (1606.04474).

Letters: B meta-batch, T time, P coordinates of a point, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Objective, Predictor, Support, TaskSpec, Training
from kshot.episode import map_tensors
from kshot.errors import OptionError, TrainingError
from kshot_l2l.steps import at_steps, last_step

Optimizer = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""m: (gradient [B, P], its state or None) -> (update [B, P], new state)."""


def preprocess(gradient: Tensor, p: float) -> Tensor:
    """Two numbers for each gradient, whatever its size [...] -> [..., 2] (appendix A).

    (log|g| / p, sign g) where |g| >= e^-p, else (-1, e^p g).
    """
    size = gradient.abs()
    large = size >= math.exp(-p)
    log = size.clamp_min(math.exp(-p)).log() / p
    return torch.stack([log.where(large, -1.0), gradient.sign().where(large, math.exp(p) * gradient)], -1)


@frozen(eq=False)
class Iterate:
    """Where an optimizer is: all that its next step needs.

    Attributes:
        point: theta_t [B, P].
        loss: f(theta_t) [B].
        gradient: of f at theta_t [B, P].
        state: the optimizer's own h_t; None before its first step.
    """

    point: Tensor
    loss: Tensor
    gradient: Tensor
    state: Any = None

    def detached(self) -> Iterate:
        """The same, as constants: a truncated unroll goes on from here."""
        return Iterate(*map_tensors(Tensor.detach, [self.point, self.loss, self.gradient, self.state]))


def start(objective: Objective) -> Iterate:
    """theta_0."""
    return Iterate(objective.initial, *objective.loss_and_gradient(objective.initial))


def step(optimizer: Optimizer, objective: Objective, at: Iterate, second_order: bool = False) -> Iterate:
    """theta_{t+1} = theta_t + g_t, where [g_t, h_{t+1}] = m(grad f(theta_t), h_t, phi) (eq. 3).

    Gradients of f are constants to the optimizer's parameters, as in the paper; with ``second_order`` they are not.
    """
    update, state = optimizer(at.gradient, at.state)
    point = at.point + update
    return Iterate(point, *objective.loss_and_gradient(point, create_graph=second_order), state)


class CoordinateLSTM(nn.Module):
    """m: two layers of LSTM, one small network for every coordinate, each with its own state (section 2.1).

    Args:
        hidden: H, units of each layer.
        preprocessing: p.
        output_scale: what the output is multiplied by.
    """

    def __init__(self, hidden: int, preprocessing: float, output_scale: float) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(2, hidden), nn.LSTMCell(hidden, hidden)])
        self.head = nn.Linear(hidden, 1)
        self.p, self.scale = preprocessing, output_scale

    def forward(self, gradient: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``gradient`` [B, P], state (h, c of each layer [B * P, H]) -> update [B, P], new state."""
        signal = preprocess(gradient, self.p).flatten(0, 1)  # B * P coordinates are one batch
        new: list[Tensor] = []
        for layer, cell in enumerate(self.cells):
            signal, c = cell(signal, None if state is None else state[2 * layer : 2 * layer + 2])
            new += [signal, c]
        return self.scale * self.head(signal).view_as(gradient), tuple(new)


class L2L(nn.Module):
    """An optimizer that is learned: trained by unrolling it on other objectives.

    Args:
        spec: the tasks'; any number of coordinates will do.
        hidden: units of each of the LSTM's two layers.
        preprocessing: p of the gradients' preprocessing: they are told apart down to e^-p.
        output_scale: of the updates.
        unroll: steps from one outer step to the next; longer optimizations are truncated there.
        second_order: let the outer gradient flow through the gradients of the objective; the paper drops it.

    Raises:
        OptionError: a number that is not positive.
    """

    needs = Needs(kinds=("objective",))
    training_defaults = Training(lr=1e-2, schedule="cosine", meta_batch=32, iterations=300)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        hidden: int = 20,
        preprocessing: float = 10.0,
        output_scale: float = 0.1,
        unroll: int = 20,
        second_order: bool = False,
    ) -> None:
        super().__init__()
        given = {"hidden": hidden, "preprocessing": preprocessing, "output_scale": output_scale, "unroll": unroll}
        if wrong := [f"{name} is {value}" for name, value in given.items() if not value > 0]:
            raise OptionError(f"l2l: {', '.join(wrong)}; expected positive numbers")
        self.optimizer = CoordinateLSTM(hidden, preprocessing, output_scale)
        self.unroll, self.second_order = unroll, second_order
        self.needs = attrs.evolve(type(self).needs, exact_gradient=second_order)

    def meta_gradient(self, episodes: Episode) -> Iterator[Metrics]:
        """The gradient of L(phi) = E[sum_t w_t f(theta_t)], w_t = 1 (eq. 3), by truncated unrolls: an outer step each.

        ``loss`` is the mean over the unroll's steps and over the tasks.
        """
        objective = episodes.support.source
        T = last_step(episodes.query.x, "l2l")
        at = start(objective)
        for first in range(1, T + 1, self.unroll):
            losses = []
            for _ in range(first, min(first + self.unroll, T + 1)):
                at = step(self.optimizer, objective, at, self.second_order)
                losses.append(at.loss)
            curve = torch.stack(losses, 1)
            check_losses(curve, first, episodes)
            loss = curve.mean()
            loss.backward()
            at = at.detached()
            yield {"loss": loss.detach()}

    def adapt(self, support: Support) -> Predictor:
        """Run the optimizer: steps [B, T] -> the points after so many updates [B, T, P]."""

        def predict(x: Tensor) -> Tensor:
            return at_steps([at.point for at in self.run(support.source, last_step(x, "l2l"))], x)

        return predict

    @torch.no_grad()
    def run(self, objective: Objective, steps: int) -> Iterator[Iterate]:
        """theta_0 to theta_steps, one by one and without a graph."""
        at = start(objective)
        yield at
        for _ in range(steps):
            at = step(self.optimizer, objective, at)
            yield at

    def trace(self, episode: Episode) -> Mapping[str, Tensor]:
        """What the optimizer did (ability ``Explains``), T being the last step asked.

        ``loss`` [B, T + 1], ``point`` and ``gradient`` [B, T + 1, P] from step 0 on; ``update`` [B, T, P].
        """
        at = self.run(episode.support.source, last_step(episode.query.x, "l2l"))
        loss, point, gradient = (
            torch.stack(t, 1) for t in zip(*((i.loss, i.point, i.gradient) for i in at), strict=True)
        )
        return {"loss": loss, "point": point, "gradient": gradient, "update": point.diff(dim=1)}


def check_losses(curve: Tensor, first: int, episodes: Episode) -> None:
    """Raises TrainingError where a loss ``curve`` [B, T], which begins with step ``first``, is not finite."""
    curve = curve.detach()
    bad = (~curve.isfinite()).nonzero()
    if len(bad):
        b, t = bad[0].tolist()
        episode = "" if episodes.origin is None else f", episode {episodes.origin.indices[b]}"
        raise TrainingError(
            f"l2l: the loss of task {b}{episode} is {float(curve[b, t])} at step {first + t}, not a finite number; "
            "lower the outer rate or output_scale, or look at this task"
        )
