"""Which parameters a learner has: those of the last outer step while it trains, the best validated ones between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from kshot._engine.processes import everywhere
from kshot.errors import TrainingError


@attrs.define(eq=False)
class Best:
    """The best validation so far.

    Attributes:
        score: the mean of the headline, with its sign turned if lower is better.
        iteration: outer steps that had been taken.
        worse: validations in a row since then that were no better, for early stopping.
        parameters: the learner's ``state_dict`` at that iteration.
    """

    score: float = math.nan
    iteration: int = -1
    worse: int = 0
    parameters: dict[str, Tensor] | None = None

    def worse_than(self, patience: int | None) -> bool:
        """Return whether a training that is this patient stops now."""
        return patience is not None and self.worse >= patience


class Parameters:
    """The parameters of a training: where it goes on from, and what it stands for.

    While ``train`` runs, the learner has the parameters of the last outer step. Between two calls it has those that
    the training stands for: the best validated ones, if there was a validation; those of the last outer step are then
    kept here, and a second call of ``train`` goes on from them.

    Args:
        learner: whose ``state_dict`` is meant.
    """

    def __init__(self, learner: nn.Module) -> None:
        self.learner = learner
        self.best = Best()
        self._last: dict[str, Tensor] | None = None  # of the last outer step, while the learner has the best ones
        self._before_closing: Best | None = None  # before a validation that only the end of a training called for

    def iteration(self, last: int) -> int:
        """Return after how many outer steps the learner had its present parameters; ``last`` were taken in all."""
        return last if self._last is None else self.best.iteration

    def validated(self, score: float, iteration: int, *, closing: bool) -> None:
        """Note the score of a validation; greater is better.

        Args:
            closing: whether only the end of the training called for it. Without the end it would not have been done,
                so a training that goes on forgets it: then two calls of ``train`` are the same as one.
        """
        if closing:
            self._before_closing = attrs.evolve(self.best)
        if math.isnan(self.best.score) or score > self.best.score:
            self.best = Best(score, iteration, 0, _copy(self.learner.state_dict()))
        else:
            self.best.worse += 1

    def stand_on_best(self, iteration: int) -> None:
        """Put the best validated parameters into the learner, if there are any, and keep the last outer step's."""
        if self.best.parameters is not None and self.best.iteration != iteration:
            self._last = _copy(self.learner.state_dict())
            self.learner.load_state_dict(self.best.parameters)

    def return_to_last(self) -> None:
        """Put the last outer step's parameters back, unless somebody has put others into the learner since."""
        best, last = self.best.parameters, self._last
        if best is not None and last is not None:
            present = self.learner.state_dict()
            if all(torch.equal(tensor, best[name]) for name, tensor in present.items()):
                self.learner.load_state_dict(last)
        self._last = None
        if self._before_closing is not None:
            self.best, self._before_closing = self._before_closing, None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of this: the last outer step's parameters, and the best ones."""
        closing = self._before_closing
        return {
            "learner": self.learner.state_dict() if self._last is None else self._last,
            "best": attrs.asdict(self.best, recurse=False),
            "before_closing": None if closing is None else attrs.asdict(closing, recurse=False),
        }

    def load(self, state: Mapping[str, Any], iteration: int) -> None:
        """Take what ``state`` returned, and stand on the best parameters."""
        self.learner.load_state_dict(state["learner"])
        self.best = Best(**state["best"])
        closing = state.get("before_closing")  # the first checkpoints lack it
        self._before_closing = None if closing is None else Best(**closing)
        self._last = None
        self.stand_on_best(iteration)


def check_finite_parameters(parameters: Sequence[nn.Parameter], iteration: int) -> None:
    """Raise TrainingError if a parameter is NaN or infinite, so that no checkpoint is written of it."""
    if not all(bool(torch.isfinite(p.sum())) for p in parameters):
        raise everywhere(
            TrainingError(
                f"iteration {iteration}: a parameter is NaN or infinite; no checkpoint was written, the last good one "
                "stays; lower the learning rate or clip gradients (optimizer.clip)"
            )
        )


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
