"""Choose the outer optimizer by name from ``torch.optim``; its learning rate is a pure function of the iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import attrs
import torch
from attrs import frozen
from torch import nn

from kshot.errors import OptionError
from kshot.registry.options import validate
from kshot.registry.ranges import Count, CountOrZero, Positive, Range
from kshot.spec import Training

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad"}


@frozen
class Outer:
    """Describe the outer optimizer and the schedule of its learning rate.

    Attributes:
        name: adam, adamw, sgd, rmsprop or adagrad.
        lr: highest learning rate.
        schedule: ``constant``; ``step`` (multiplied by ``factor`` every ``every`` iterations); ``linear`` or
            ``cosine`` (falling to 0 at the last iteration).
        every, factor: interval in iterations, and factor, of the ``step`` schedule.
        warmup: number of iterations over which the rate rises linearly from 0.
        clip: greatest norm of the gradient; a longer gradient is scaled down to it. None for no limit.
        momentum: momentum of sgd and rmsprop; the others ignore it.
        weight_decay: weight decay.

    Raises:
        OptionError: a field has a value that is not allowed.

    Example:
        >>> outer = Outer("sgd", lr=0.1, schedule="step", every=1000, factor=0.5)
        >>> [outer.rate(iteration, 3000) for iteration in (0, 1000, 2000)]
        [0.1, 0.05, 0.025]
    """

    name: Literal["adam", "adamw", "sgd", "rmsprop", "adagrad"] = "adam"
    lr: Positive = 1e-3
    schedule: Literal["constant", "step", "linear", "cosine"] = "constant"
    every: Count = 2000
    factor: Positive = 0.5
    warmup: CountOrZero = 0
    clip: Positive | None = None
    momentum: Annotated[float, Range(0, below=1)] = 0.0
    weight_decay: Annotated[float, Range(0)] = 0.0

    def __attrs_post_init__(self) -> None:
        # Numbers of numpy become those of Python, which can be stored.
        for name, value in validate(type(self), self.to_dict(), who="optimizer").items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, training: Training, **changed: Any) -> Outer:
        """Return a method's preferred optimizer with the fields in ``changed`` replaced."""
        own = {n: getattr(training, n) for n in ("lr", "schedule", "every", "factor", "warmup", "clip")}
        return cls(**{"name": training.optimizer, **own, **changed})

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the torch optimizer over ``parameters``."""
        parameters = list(parameters)
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.name in ("adam", "adamw") and all(p.device.type == "cpu" and p.is_floating_point() for p in parameters):
            options["fused"] = True  # one call for all parameters: three times as fast for small networks
        if self.name in ("sgd", "rmsprop"):
            options["momentum"] = self.momentum
        optimizer: torch.optim.Optimizer = getattr(torch.optim, OPTIMIZERS[self.name])(parameters, **options)
        return optimizer

    def rate(self, iteration: int, iterations: int) -> float:
        """Return the learning rate of an iteration (counted from 0) of ``iterations`` in all."""
        # Warm-up: lr (t + 1) / warmup during the first iterations; the schedule multiplies what results.
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
        """Return the fields as plain values."""
        return attrs.asdict(self)

    @property
    def depends_on_total(self) -> bool:
        """Whether the rate of an iteration depends on how many iterations there are in all."""
        return self.schedule in ("linear", "cosine")


def outer_of(optimizer: Outer | Mapping[str, Any] | str | None, training: Training) -> Outer:
    """Return the outer optimizer that a user asked for; fields that are left out are the method's own choice.

    Args:
        optimizer: an ``Outer``, a mapping of its fields, a name, or None.
        training: how the method prefers to be trained.

    Raises:
        OptionError: an option is unknown or has a wrong value.
    """
    if isinstance(optimizer, Outer):
        return optimizer
    if optimizer is not None and not isinstance(optimizer, str | Mapping):
        raise OptionError(
            f"optimizer: got {getattr(optimizer, '__name__', type(optimizer).__name__)}, expected a name such as "
            "'adam', a mapping of options such as {'lr': 0.01}, or kshot.Outer; the engine makes torch's optimizer"
        )
    changed = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer or {})
    if unknown := set(changed) - {f.name for f in attrs.fields(Outer)}:
        valid = ", ".join(f.name for f in attrs.fields(Outer))
        raise OptionError(f"optimizer: got unknown option {', '.join(sorted(unknown))}, expected some of {valid}")
    return Outer.of(training, **changed)
