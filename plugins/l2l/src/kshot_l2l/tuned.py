"""Hand-designed optimizers with a rate tuned on training tasks, the baselines of section 3 (1606.04474)."""

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
"""The class and the options of each method; all other options but the rate are torch's defaults."""


def descend(method: str, lr: float, objective: Objective, steps: int) -> Iterator[Tensor]:
    """Yield theta_0 to theta_steps [B, P] of a torch optimizer.

    All tasks are minimised as one problem, the sum of their losses. Since each update of these methods depends on its
    own coordinate alone, every task gets the same steps as if it were alone.

    Example:
        >>> objective = Objective(torch.zeros(1, 1), (), lambda point, data: (point - 1).square().sum())
        >>> [float(point) for point in descend("sgd", 0.5, objective, 1)]
        [0.0, 1.0]
    """
    optimizer_class, options = METHODS[method]
    point = objective.initial.clone()
    optimizer = optimizer_class([point], lr=lr, **options)  # type: ignore[call-arg]
    yield point.clone()
    for _ in range(steps):
        point.grad = objective.loss_and_gradient(point)[1]
        optimizer.step()
        yield point.clone()


class TunedOptimizer(nn.Module):
    """A hand-designed optimizer with the best rate of a grid.

    It has no parameters. Training is a grid search: on every meta-batch each rate is tried on all tasks, and the mean
    score of the tasks is added to the rate's total. So a rate is chosen by the same figure that evaluation reports,
    on training tasks alone, and nothing is written to ``.grad``.

    Args:
        spec: the specification of the tasks; any number of coordinates is possible.
        method: sgd, momentum, nesterov (both with 0.9), rmsprop or adam.
        lr: a fixed rate, or None for the best of the grid; before training that is the lowest.
        lowest, highest: the ends of the grid.
        rates: the number of rates, spaced evenly in their logarithm.

    Raises:
        OptionError: the method is unknown, or a rate is not positive.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Quadratics(steps=6)
        >>> optimizer = TunedOptimizer(tasks.spec, method="momentum", lowest=0.01, highest=1.0, rates=3)
        >>> sorted(optimizer.meta_gradient(tasks.sample("train", range(4))))
        ['loss', 'lr']
    """

    needs = Needs(kinds=("objective",), variable_parameters=True)
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
            raise OptionError(
                f"tuned-optimizer: got method {method!r}, expected one of {', '.join(METHODS)}; choose one"
            )
        if not (0 < lowest <= highest and rates >= 1 and (lr is None or lr > 0)):
            raise OptionError(
                f"tuned-optimizer: got lr {lr} and a grid of {rates} rates from {lowest} to {highest}, expected "
                "positive rates, the lowest first; change them"
            )
        self.method = method
        spread = (highest / lowest) ** (1 / max(rates - 1, 1))
        self.grid: tuple[float, ...] = tuple(lowest * spread**k for k in range(rates)) if lr is None else (lr,)
        self.register_buffer("losses", torch.zeros(len(self.grid)))

    @property
    def lr(self) -> float:
        """Return the rate with the least total loss so far."""
        return self.grid[int(self.losses.argmin())]

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Try each rate that has not diverged yet; ``loss`` is the score of the best rate on these tasks."""

        def score(lr: float) -> Tensor:
            """Compute the mean score of the tasks, as evaluation would report it for this rate."""
            return kinds.objective(self.predictor(episodes.support.source, lr), episodes)["loss"].mean()

        tried = zip(self.grid, self.losses, strict=True)
        scores = torch.stack([score(lr) if bool(loss.isfinite()) else loss for lr, loss in tried])
        self.losses += scores
        return {"loss": scores[self.losses.argmin()], "lr": self.lr}

    def adapt(self, support: Support) -> Predictor:
        """Return the predictor of the best rate: step numbers [B, T] -> points at these steps [B, T, P]."""
        return self.predictor(support.source, self.lr)

    def predictor(self, objective: Objective, lr: float) -> Predictor:
        """Return the predictor of a given rate: step numbers [B, T] -> points [B, T, P]."""
        return lambda x: at_steps(list(descend(self.method, lr, objective, last_step(x, "tuned-optimizer"))), x)
