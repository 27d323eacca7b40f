"""Take one outer step: the mean meta-gradient of a meta-batch, clipped, and a step of the outer optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kshot._engine.gradient import MetaBatch, MetaGradient, check_finite_metrics
from kshot._engine.optimizer import Outer
from kshot.protocols import Backend


class OuterStep:
    """Take outer steps with one learner.

    Args:
        learner: the learner, on the backend's device.
        outer: the optimizer and its schedule.
        backend: where to compute, and with which other processes.

    Attributes:
        parameters: the learner's parameters that require a gradient.
        optimizer: the torch optimizer over these parameters; None if there are none.
    """

    def __init__(self, learner: Any, outer: Outer, backend: Backend) -> None:
        self.outer = outer
        self.parameters: list[nn.Parameter] = [p for p in learner.parameters() if p.requires_grad]
        self.optimizer = outer.make(self.parameters) if self.parameters else None
        self._gradient = MetaGradient(learner, self.parameters, backend)

    def take(self, batch: MetaBatch, iteration: int, iterations: int) -> dict[str, float]:
        """Put the mean meta-gradient of ``batch`` into ``.grad`` and take an optimizer step.

        A learner whose ``meta_gradient`` yields several times takes as many optimizer steps on this meta-batch.

        Args:
            iteration: number of outer steps taken before this one.
            iterations: number of outer steps in all.

        Returns:
            The metrics of the last optimizer step.

        Raises:
            TrainingError: a metric or the gradient is not finite, or the learner broke its protocol.
        """
        # 1. Set the learning rate. It is a pure function of the iteration, so resuming needs no scheduler state.
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.outer.rate(iteration, iterations)
        metrics: Mapping[str, float] = {}
        # 2. Compute the mean meta-gradient over chunks and processes; .grad is the same on every rank afterwards.
        for metrics in self._gradient.steps(batch):
            check_finite_metrics(metrics, iteration, batch)
            if self.optimizer is not None:
                # 3. Scale the gradient to a norm of at most ``clip``.
                if self.outer.clip is not None:
                    nn.utils.clip_grad_norm_(self.parameters, self.outer.clip, error_if_nonfinite=True)
                # 4. Take the step of the outer optimizer.
                self.optimizer.step()
        return dict(metrics)
