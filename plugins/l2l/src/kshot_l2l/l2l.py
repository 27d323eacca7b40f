"""L2L: Andrychowicz et al., "Learning to learn by gradient descent by gradient descent", 2016 (1606.04474).

Letters: B meta-batch, T time, P coordinates of a point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Objective, Predictor, Support, TaskSpec, Training
from kshot.episode import map_tensors
from kshot.errors import OptionError
from kshot.inner import State, Strategy
from kshot_l2l.coordinate_lstm import CoordinateLSTM
from kshot_l2l.steps import at_steps, check_losses, last_step

Values = TypeVar("Values")

Optimizer = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""m: (gradient [B, P], its state or None) -> (update [B, P], new state)."""


@frozen(eq=False)
class Iterate:
    """The state of an optimization: everything that the next step needs.

    Attributes:
        point: theta_t [B, P].
        loss: f(theta_t) [B].
        gradient: the gradient of f at theta_t [B, P].
        state: the optimizer's state h_t, a tuple of tensors; None before its first step.
    """

    point: Tensor
    loss: Tensor
    gradient: Tensor
    state: Any = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Point, loss, gradient, and the tensors of the state."""
        return self.point, self.loss, self.gradient, *(self.state or ())

    @classmethod
    def of(cls, point: Tensor, loss: Tensor, gradient: Tensor, *state: Tensor) -> Iterate:
        """Return the iterate that has these tensors."""
        return cls(point, loss, gradient, state or None)


def start(objective: Objective) -> Iterate:
    """Return theta_0, the initial point of the objective.

    Example:
        >>> objective = Objective(torch.zeros(1, 2), (), lambda point, data: (point - 1).square().sum())
        >>> start(objective).gradient
        tensor([[-2., -2.]])
    """
    return Iterate(objective.initial, *objective.loss_and_gradient(objective.initial))


def step(optimizer: Optimizer, objective: Objective, at: Iterate, second_order: bool = False) -> Iterate:
    """Compute theta_{t+1} = theta_t + g_t, where [g_t, h_{t+1}] = m(grad f(theta_t), h_t, phi) (eq. 3).

    Args:
        optimizer: m.
        objective: f of every task.
        at: the state of the optimization at step t.
        second_order: whether the gradients of f carry a graph; without, they are constants, as in the paper.

    Example:
        With m(g) = -0.5 g, this is gradient descent:

        >>> objective = Objective(torch.zeros(1, 2), (), lambda point, data: (point - 1).square().sum())
        >>> step(lambda gradient, state: (-0.5 * gradient, state), objective, start(objective)).point
        tensor([[1., 1.]])
    """
    update, state = optimizer(at.gradient, at.state)
    point = at.point + update
    return Iterate(point, *objective.loss_and_gradient(point, create_graph=second_order), state)


class L2L(nn.Module):
    """A learned optimizer, which is trained by unrolling it on many objectives.

    Args:
        spec: the specification of the tasks; the optimizer works for any number of coordinates.
        hidden: units of each of the LSTM's two layers.
        preprocessing: p of the gradients' preprocessing; gradients below e^-p are scaled linearly.
        output_scale: a factor of the updates.
        unroll: the number of steps between two outer steps; back-propagation is truncated there.
        second_order: whether the outer gradient flows through the gradients of the objective, which the paper omits.
        strategy: how an unroll runs, see ``kshot.Lift``: ``auto`` replays a trace of it after a hundred unrolls.

    Raises:
        OptionError: a number is not positive.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Quadratics(steps=6)
        >>> learner = L2L(tasks.spec, hidden=5)
        >>> episode = tasks.sample("test", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 6, 3)
    """

    needs = Needs(kinds=("objective",), variable_parameters=True)
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
        strategy: Strategy = "auto",
    ) -> None:
        super().__init__()
        given = {"hidden": hidden, "preprocessing": preprocessing, "output_scale": output_scale, "unroll": unroll}
        if wrong := [f"{name} {value}" for name, value in given.items() if not value > 0]:
            raise OptionError(f"l2l: got {', '.join(wrong)}, expected positive numbers; raise them")
        self.optimizer = CoordinateLSTM(hidden, preprocessing, output_scale)
        self.unroll, self.second_order, self.lift = unroll, second_order, Lift(strategy)
        self.needs = attrs.evolve(type(self).needs, exact_gradient=second_order)

    def meta_gradient(self, episodes: Episode) -> Iterator[Metrics]:
        """Add the gradient of L(phi) = E[sum_t w_t f(theta_t)], w_t = 1 (eq. 3), by truncated unrolls.

        It yields after each unroll, and the engine takes an outer step. ``loss`` is the mean over the steps of the
        unroll and over the tasks.
        """
        objective = episodes.support.source
        T = last_step(episodes.query.x, "l2l")
        at = start(objective)
        for first in range(1, T + 1, self.unroll):
            unrolled, phi = partial(self.unrolled, min(self.unroll, T + 1 - first)), State.of(self.optimizer)
            metrics, end = self.lift.mean_gradient(unrolled, phi, *_as_one((at.tensors, objective)))
            check_losses(metrics["curve"][0], first, episodes)
            # The next unroll starts from values without a graph: back-propagation through time is truncated.
            at = Iterate.of(*(t[0] for t in end.buffers.values()))
            yield {"loss": metrics["loss"][0]}

    def unrolled(
        self, steps: int, phi: State, at: tuple[Tensor, ...], objective: Objective
    ) -> tuple[Mapping[str, Tensor], State]:
        """Take some steps of every task, and return the mean loss over steps and tasks, and the last iterate.

        All coordinates of all tasks are one batch of the LSTM, so for ``Lift`` a meta-batch is a single task.
        """
        now, losses = Iterate.of(*at), list[Tensor]()
        for _ in range(steps):
            now = step(partial(phi.call, self.optimizer), objective, now, self.second_order)
            losses.append(now.loss)
        curve = torch.stack(losses, 1)
        return {"loss": curve.mean(), "curve": curve}, State({}, {str(i): t for i, t in enumerate(now.tensors)})

    def adapt(self, support: Support) -> Predictor:
        """Return the predictor that runs the optimizer: step numbers [B, T] -> points at these steps [B, T, P]."""

        def predict(x: Tensor) -> Tensor:
            return at_steps([at.point for at in self.run(support.source, last_step(x, "l2l"))], x)

        return predict

    @torch.no_grad()
    def run(self, objective: Objective, steps: int) -> Iterator[Iterate]:
        """Yield the states of the optimization at theta_0 to theta_steps, without a graph."""
        at = start(objective)
        yield at
        for _ in range(steps):
            at = step(self.optimizer, objective, at)
            yield at

    def trace(self, episode: Episode) -> Mapping[str, Tensor]:
        """Return the course of the optimization (ability ``Explains``) up to T, the last of the requested steps.

        Returns:
            ``loss`` [B, T + 1], ``point`` and ``gradient`` [B, T + 1, P] from step 0 on; ``update`` [B, T, P].
        """
        at = self.run(episode.support.source, last_step(episode.query.x, "l2l"))
        loss, point, gradient = (
            torch.stack(t, 1) for t in zip(*((i.loss, i.point, i.gradient) for i in at), strict=True)
        )
        return {"loss": loss, "point": point, "gradient": gradient, "update": point.diff(dim=1)}


def _as_one(values: Values) -> Values:
    """Return the values of a meta-batch as those of a single task: each tensor gets an axis of length 1 in front."""
    return map_tensors(lambda t: t[None], values)
