"""Hand-made optimizers, their rate tuned on training tasks: what a learned optimizer has to beat (1606.04474, 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Objective, Predictor, Support, TaskSpec, Training, kinds
from kshot.errors import OptionError
from kshot_l2l.steps import at_steps, last_step

Method = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam"]

METHODS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
}
"""Each with torch's own defaults, but for the rate."""


def descend(method: str, lr: float, objective: Objective, steps: int) -> Iterator[Tensor]:
    """theta_0 to theta_steps [B, P] of a torch optimizer, one by one.

    All tasks are one problem, the sum of their losses: every update is a coordinate's own, so each task gets the very
    steps that it would get alone.
    """
    made, options = METHODS[method]
    point = objective.initial.clone()
    optimizer = made([point], lr=lr, **options)  # type: ignore[call-arg]
    yield point.clone()
    for _ in range(steps):
        point.grad = objective.loss_and_gradient(point)[1]
        optimizer.step()
        yield point.clone()


class TunedOptimizer(nn.Module):
    """A hand-made optimizer with the best of a grid of rates.

    It has no parameters. Training is the search: on every meta-batch each rate of the grid is tried on all its tasks,
    and the score of the tasks, by the steps that count in it, is added up. So a rate is chosen by the very figure that
    evaluation reports, on training tasks alone, and nothing is written to ``.grad``.

    Args:
        spec: the tasks'; any number of coordinates will do.
        method: sgd, momentum, nesterov (both with 0.9), rmsprop or adam.
        lr: a fixed rate, or None for the best of the grid; untrained, that is the lowest.
        lowest, highest: ends of the grid.
        rates: how many rates, spaced evenly in their logarithm.

    Raises:
        OptionError: an unknown method, or a rate that is not positive.
    """

    needs = Needs(kinds=("objective",))
    training_defaults = Training(meta_batch=512, iterations=4)
    losses: Tensor

    def __init__(
        self,
        spec: TaskSpec,
        *,
        method: Method = "adam",
        lr: float | None = None,
        lowest: float = 1e-4,
        highest: float = 1e2,
        rates: int = 37,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise OptionError(f"tuned-optimizer: method is {method!r}, expected one of {', '.join(METHODS)}")
        if not (0 < lowest <= highest and rates >= 1 and (lr is None or lr > 0)):
            raise OptionError(
                f"tuned-optimizer: lr is {lr} and the grid {rates} rates from {lowest} to {highest}, expected positive "
                "rates, the lowest first"
            )
        self.method = method
        spread = (highest / lowest) ** (1 / max(rates - 1, 1))
        self.grid: tuple[float, ...] = tuple(lowest * spread**k for k in range(rates)) if lr is None else (lr,)
        self.register_buffer("losses", torch.zeros(len(self.grid)))

    @property
    def lr(self) -> float:
        """The rate with the least loss so far."""
        return self.grid[int(self.losses.argmin())]

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Try each rate that has not diverged yet; ``loss`` is the score, on these tasks, of the best one so far."""

        def score(lr: float) -> Tensor:
            return kinds.objective(self.predictor(episodes.support.source, lr), episodes)["loss"].mean()

        tried = zip(self.grid, self.losses, strict=True)
        found = torch.stack([score(lr) if bool(loss.isfinite()) else loss for lr, loss in tried])
        self.losses += found
        return {"loss": found[self.losses.argmin()], "lr": self.lr}

    def adapt(self, support: Support) -> Predictor:
        """Run the optimizer with its best rate: steps [B, T] -> the points after so many updates [B, T, P]."""
        return self.predictor(support.source, self.lr)

    def predictor(self, objective: Objective, lr: float) -> Predictor:
        """Steps [B, T] -> points [B, T, P], by a given rate."""
        return lambda x: at_steps(list(descend(self.method, lr, objective, last_step(x, "tuned-optimizer"))), x)
