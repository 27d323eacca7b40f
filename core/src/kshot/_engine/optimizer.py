"""The outer optimizer: chosen by name from ``torch.optim``, its rate a pure function of the iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs
import torch
from attrs import frozen
from torch import nn

from kshot.errors import OptionError
from kshot.spec import Training

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}


@frozen
class Outer:
    """The outer optimizer and its schedule.

    Attributes:
        name: adam, adamw, sgd, rmsprop or adagrad.
        lr: the rate at its highest.
        schedule: ``constant``; ``step`` (times ``factor`` every ``every`` iterations); ``linear`` or ``cosine``
            (to 0 at the last iteration).
        warmup: iterations over which the rate rises linearly from 0.
        clip: the greatest norm of the gradient, or None.
        momentum, weight_decay: where the optimizer has them.
    """

    name: Literal["adam", "adamw", "sgd", "rmsprop", "adagrad"] = "adam"
    lr: float = 1e-3
    schedule: Literal["constant", "step", "linear", "cosine"] = "constant"
    every: int = 2000
    factor: float = 0.5
    warmup: int = 0
    clip: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __attrs_post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise OptionError(f"optimizer.name is {self.name!r}, expected one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in ("constant", "step", "linear", "cosine"):
            raise OptionError(
                f"optimizer.schedule is {self.schedule!r}, expected 'constant', 'step', 'linear' or 'cosine'"
            )
        for field in ("lr", "every", "factor"):
            if not getattr(self, field) > 0:
                raise OptionError(f"optimizer.{field} is {getattr(self, field)}, expected a positive number")
        if self.clip is not None and not self.clip > 0:
            raise OptionError(f"optimizer.clip is {self.clip}, expected a positive number or none")

    @classmethod
    def of(cls, training: Training, **changed: Any) -> Outer:
        """A method's own choice, with the user's changes."""
        own = {n: getattr(training, n) for n in ("lr", "schedule", "every", "factor", "warmup", "clip")}
        return cls(**{"name": training.optimizer, **own, **changed})

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimizer over ``parameters``."""
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.name in ("sgd", "rmsprop"):
            options["momentum"] = self.momentum
        made: torch.optim.Optimizer = getattr(torch.optim, OPTIMIZERS[self.name])(list(parameters), **options)
        return made

    def rate(self, iteration: int, iterations: int) -> float:
        """The rate of iteration ``iteration`` (from 0) of ``iterations``."""
        rate = self.lr * min(1.0, (iteration + 1) / self.warmup if self.warmup else 1.0)
        done = iteration / max(iterations, 1)
        if self.schedule == "step":
            return rate * self.factor ** (iteration // self.every)
        if self.schedule == "linear":
            return rate * (1 - done)
        if self.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * done))
        return rate

    def to_dict(self) -> dict[str, Any]:
        return attrs.asdict(self)

    @property
    def depends_on_total(self) -> bool:
        """Whether the rate of an iteration depends on how many iterations there are in all."""
        return self.schedule in ("linear", "cosine")


def outer_of(optimizer: Outer | Mapping[str, Any] | str | None, training: Training) -> Outer:
    """Return the outer optimizer that a user asked for; what is left out is the method's own choice.

    Raises:
        OptionError: an option is unknown or has a wrong value.
    """
    if isinstance(optimizer, Outer):
        return optimizer
    changed = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer or {})
    if unknown := set(changed) - {f.name for f in attrs.fields(Outer)}:
        valid = ", ".join(f.name for f in attrs.fields(Outer))
        raise OptionError(f"optimizer: got unknown option {', '.join(sorted(unknown))}, expected some of {valid}")
    return Outer.of(training, **changed)
