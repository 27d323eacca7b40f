"""Manage which parameters a learner has: the last outer step's while it trains, the best validated ones otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn

from kshot._engine.processes import everywhere
from kshot._engine.states import copied, equal, storable_parameters
from kshot.errors import TrainingError


@attrs.define(eq=False)
class Best:
    """Store the best validation so far.

    Attributes:
        score: the mean of the headline score, negated if lower is better; NaN before the first validation.
        iteration: number of outer steps that had been taken.
        worse: number of validations since then that were not better, for early stopping.
        parameters: the learner's ``state_dict`` at that iteration.
    """

    score: float = math.nan
    iteration: int = -1
    worse: int = 0
    parameters: dict[str, Any] | None = None

    def worse_than(self, patience: int | None) -> bool:
        """Return whether training stops now: ``patience`` validations in a row were not better."""
        return patience is not None and self.worse >= patience


class Parameters:
    """Keep the parameters that training continues from, and those that are evaluated.

    While ``train`` runs, the learner has the parameters of the last outer step. Between two calls it has the best
    validated ones, if there was a validation. Those of the last outer step are then kept here, and a second call of
    ``train`` continues from them.

    Args:
        learner: the learner whose ``state_dict`` is exchanged.
    """

    def __init__(self, learner: nn.Module) -> None:
        self.learner = learner
        self.best = Best()
        self._last: dict[str, Any] | None = None  # of the last outer step, while the learner has the best ones
        self._before_closing: Best | None = None  # before a validation that only the end of a training called for

    def iteration(self, last: int) -> int:
        """Return the iteration of the learner's present parameters, of ``last`` outer steps that were taken in all."""
        return last if self._last is None else self.best.iteration

    def validated(self, score: float, iteration: int, *, closing: bool) -> None:
        """Record the score of a validation, and copy the parameters if it is the best so far; greater is better.

        Args:
            closing: whether this validation was done only because training ended here. A training that continues
                forgets it, so that two calls of ``train`` give the same as one.
        """
        # Remember the state before a closing validation, which ``return_to_last`` restores.
        if closing:
            self._before_closing = attrs.evolve(self.best)
        if math.isnan(self.best.score) or score > self.best.score:
            self.best = Best(score, iteration, 0, _copy(self.learner.state_dict()))
        else:
            self.best.worse += 1

    def stand_on_best(self, iteration: int) -> None:
        """Put the best validated parameters into the learner, if there are any, and keep the last outer step's."""
        # If the last outer step is the best one, the learner has the best parameters already.
        if self.best.parameters is not None and self.best.iteration != iteration:
            self._last = _copy(self.learner.state_dict())
            self.learner.load_state_dict(self.best.parameters)

    def return_to_last(self) -> None:
        """Put the last outer step's parameters back, unless the user has loaded others into the learner since."""
        best, last = self.best.parameters, self._last
        if best is not None and last is not None:
            # Parameters that differ from the best ones were loaded by the user; training continues from them.
            # The same is true of modules that were replaced by others of another shape.
            present = self.learner.state_dict()
            if present.keys() == best.keys() and all(equal(value, best[name]) for name, value in present.items()):
                self.learner.load_state_dict(last)
        self._last = None
        # Forget a validation that only the end of the earlier call had asked for.
        if self._before_closing is not None:
            self.best, self._before_closing = self._before_closing, None

    def forget_best(self) -> None:
        """Forget the validations so far, because modules of the learner were replaced."""
        self.best, self._before_closing = Best(), None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the last outer step's parameters, and the best ones.

        Raises:
            RunError: a module's extra state could not be read again.
        """
        learner = self.learner.state_dict() if self._last is None else dict(self._last)
        return {
            "learner": storable_parameters(learner),
            "best": _stored(self.best),
            "before_closing": None if self._before_closing is None else _stored(self._before_closing),
        }

    def load(self, state: Mapping[str, Any], iteration: int) -> None:
        """Load what ``state`` returned, and put the best parameters into the learner."""
        self.learner.load_state_dict(state["learner"])
        self.best = Best(**state["best"])
        closing = state.get("before_closing")  # missing in checkpoints of the first versions
        self._before_closing = None if closing is None else Best(**closing)
        self._last = None
        self.stand_on_best(iteration)


def check_finite_parameters(parameters: Sequence[nn.Parameter], iteration: int) -> None:
    """Raise TrainingError if a parameter is NaN or infinite, before a checkpoint of it is written."""
    # A sum is finite only if all its terms are: one number to look at per parameter.
    if not all(bool(torch.isfinite(p.detach().sum())) for p in parameters):
        raise everywhere(
            TrainingError(
                f"iteration {iteration}: a parameter is NaN or infinite; no checkpoint was written and the last good "
                "one is kept; lower the learning rate or clip gradients (optimizer.clip)"
            )
        )


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: copied(value) for name, value in state.items()}


def _stored(best: Best) -> dict[str, Any]:
    fields = attrs.asdict(best, recurse=False)
    if best.parameters is not None:
        fields["parameters"] = storable_parameters(dict(best.parameters))
    return fields
