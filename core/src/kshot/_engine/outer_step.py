"""One outer step: the mean meta-gradient of a meta-batch, clipped, and a step of the outer optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kshot._engine.gradient import MetaBatch, MetaGradient, check_finite_metrics
from kshot._engine.optimizer import Outer
from kshot.protocols import Backend


class OuterStep:
    """Takes outer steps with one learner.

    Args:
        learner: on the backend's device.
        outer: the optimizer and its schedule.
        backend: where to compute, and with which other processes.

    Attributes:
        optimizer: of torch, over the parameters that require a gradient; None if there is none.
    """

    def __init__(self, learner: Any, outer: Outer, backend: Backend) -> None:
        self.outer = outer
        self.parameters: list[nn.Parameter] = [p for p in learner.parameters() if p.requires_grad]
        self.optimizer = outer.make(self.parameters) if self.parameters else None
        self._gradient = MetaGradient(learner, self.parameters, backend)

    def take(self, batch: MetaBatch, iteration: int, iterations: int) -> dict[str, float]:
        """Put the mean gradient of ``batch`` into ``.grad`` and step; several times for a learner that yields.

        Args:
            iteration: outer steps taken before, of ``iterations`` in all.

        Returns:
            The metrics of the last step.

        Raises:
            TrainingError: a metric or the gradient is not finite, or the learner broke its protocol.
        """
        # The learning rate is a pure function of the iteration, not the state of a scheduler: resuming needs no more.
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.outer.rate(iteration, iterations)
        metrics: Mapping[str, float] = {}
        for metrics in self._gradient.steps(batch):
            check_finite_metrics(metrics, iteration, batch)
            if self.optimizer is not None:
                if self.outer.clip is not None:
                    nn.utils.clip_grad_norm_(self.parameters, self.outer.clip, error_if_nonfinite=True)
                self.optimizer.step()
        return dict(metrics)
