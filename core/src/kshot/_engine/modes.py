"""Put a learner into training and evaluation mode, and keep the modules that the user set to evaluation as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_KEPT = "_kshot_kept_in_evaluation"
"""Attribute of a learner: the names of the modules that the user had set to evaluation mode."""


def to_evaluation(learner: nn.Module) -> None:
    """Put a learner into evaluation mode, and remember which of its modules were in it already.

    The modes are the user's choice only if the learner itself is in training mode, as a new module is. In a learner
    that is in evaluation mode as a whole, those of its modules say nothing.
    """
    if learner.training:
        setattr(learner, _KEPT, tuple(name for name, module in learner.named_modules() if not module.training))
    learner.eval()


def to_training(learner: nn.Module) -> None:
    """Put a learner into training mode, except for the modules that stay in evaluation mode.

    These are the modules that the user had set to evaluation mode, and modules whose parameters are all frozen
    (``requires_grad_(False)``) with everything in them: the statistics of a frozen batch norm stay, and its dropout is
    off.
    """
    # A learner in training mode was put there by the user, so the present modes of its modules count.
    if learner.training:
        setattr(learner, _KEPT, tuple(name for name, module in learner.named_modules() if not module.training))
    kept = set(getattr(learner, _KEPT, ()))
    learner.train()
    for name, module in learner.named_modules():
        if name in kept:
            module.training = False
        if name and _frozen(module):
            module.eval()


@contextmanager
def evaluating(learner: nn.Module) -> Iterator[None]:
    """Put a learner into evaluation mode within a ``with`` block; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in learner.modules()]
    learner.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
