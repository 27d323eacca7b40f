"""Take one outer step: the mean meta-gradient of a meta-batch, clipped, and a step of the outer optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from kshot._engine.gradient import MetaBatch, MetaGradient, check_finite_gradient, check_finite_metrics
from kshot._engine.optimizer import Outer
from kshot._engine.processes import everywhere
from kshot.errors import MisfitError, RunError, TrainingError
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
        gradient: computes the meta-gradients.
    """

    def __init__(self, learner: Any, outer: Outer, backend: Backend) -> None:
        self.learner, self.outer = learner, outer
        self.parameters: list[nn.Parameter] = [p for p in learner.parameters() if p.requires_grad]
        self.optimizer = outer.make(self.parameters) if self.parameters else None
        self._known = list(learner.parameters())  # trained or not
        self.gradient = MetaGradient(learner, self.parameters, backend)

    def settle(self) -> tuple[list[str], bool]:
        """Train the parameters that require a gradient now.

        Parameters may have been unfrozen, frozen or replaced since. Those that stay keep their state of the optimizer,
        and new ones begin with none.

        Returns:
            The names of parameters that were not trained before, and whether any parameter is a new object.
        """
        present = [p for p in self.learner.parameters() if p.requires_grad]
        before, known = {id(p) for p in self.parameters}, {id(p) for p in self._known}
        replaced = any(id(p) not in known for p in self.learner.parameters())
        self._known = list(self.learner.parameters())
        if [id(p) for p in present] == [id(p) for p in self.parameters]:
            return [], replaced
        state = {} if self.optimizer is None else self.optimizer.state
        self.parameters[:] = present  # in place, as the engine and the meta-gradient share this list
        self.optimizer = self.outer.make(present) if present else None
        if self.optimizer is not None:
            self.optimizer.state.update({p: state[p] for p in present if p in state})
        named = self.learner.named_parameters()
        return [name for name, p in named if p.requires_grad and id(p) not in before], replaced

    def load(self, state: Mapping[str, Any] | None, path: str) -> None:
        """Load the state of the optimizer from a checkpoint.

        Raises:
            RunError: the checkpoint's optimizer trained another number of parameters.
        """
        theirs = 0 if state is None else sum(len(group["params"]) for group in state["param_groups"])
        if theirs != len(self.parameters):
            raise everywhere(
                RunError(
                    f"{path}: got the optimizer of {theirs} trained parameters, expected {len(self.parameters)}, those "
                    "of this learner that require a gradient; freeze and unfreeze the same layers before resume"
                )
            )
        if self.optimizer is not None and state is not None:
            self.optimizer.load_state_dict(dict(state))

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
            MisfitError: the learner has no parameter to train, and fails for this reason.
        """
        # 1. Set the learning rate. It is a pure function of the iteration, so resuming needs no scheduler state.
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.outer.rate(iteration, iterations)
        metrics: Mapping[str, float] = {}
        # 2. Compute the mean meta-gradient over chunks and processes; .grad is the same on every rank afterwards.
        for metrics in self._gradients(batch):
            check_finite_metrics(metrics, iteration, batch)
            if self.optimizer is not None:
                # 3. Refuse a gradient that would ruin the parameters, then scale it to a norm of at most ``clip``.
                check_finite_gradient(self.learner, self.parameters, iteration, batch)
                if self.outer.clip is not None:
                    norm = float(nn.utils.clip_grad_norm_(self.parameters, self.outer.clip))
                    if not math.isfinite(norm):  # the squares of finite numbers overflow, and all would become 0
                        raise everywhere(
                            TrainingError(
                                f"iteration {iteration + 1}: the norm of the gradient is {norm}, expected a finite "
                                "number; no step was taken; lower the learning rate"
                            )
                        )
                # 4. Take the step of the outer optimizer.
                self.optimizer.step()
        return dict(metrics)

    def _gradients(self, batch: MetaBatch) -> Iterator[Mapping[str, float]]:
        """Yield as ``MetaGradient.steps``; say so if a learner computes a gradient though nothing in it is trained."""
        try:
            yield from self.gradient.steps(batch)
        except RuntimeError as error:  # torch's, of a loss without a graph
            if self.parameters:
                raise
            raise everywhere(
                MisfitError(
                    f"{type(self.learner).__name__}: got no parameter that requires a gradient, expected one to train; "
                    "evaluate it without training, or unfreeze some (requires_grad_(True))"
                )
            ) from error
