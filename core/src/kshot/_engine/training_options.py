"""Check the options of ``Engine.train`` before any compute."""

from __future__ import annotations

import math
import operator
from typing import Any

import attrs
from attrs import frozen

from kshot._engine.optimizer import Outer
from kshot.errors import OptionError
from kshot.registry.ranges import MOST


def whole(who: str, name: str, value: Any) -> Any:
    """Return a whole number of any type, numpy's and torch's included, as an int, which can be stored; None stays.

    Raises:
        OptionError: it is no whole number, or one that can't be meant.
    """
    if value is None:
        return None
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or isinstance(value, bool) or number > MOST:
        raise OptionError(f"{who}: got {name}={value!r:.40}, expected a whole number; convert it, e.g. int(...)")
    return number


def counts(who: str, **values: Any) -> tuple[Any, ...]:
    """Return counts as ints, after checking that each is None or at least 1.

    Raises:
        OptionError: one is not.
    """
    numbers = tuple(whole(who, name, value) for name, value in values.items())
    if any(number is not None and number < 1 for number in numbers):
        given = " and ".join(f"{name}={value}" for name, value in values.items())
        raise OptionError(f"{who}: got {given}, expected at least 1")
    return numbers


@frozen
class TrainingOptions:
    """Store the options of ``Engine.train``, which describes them.

    Raises:
        OptionError: a number is not positive, options contradict each other, or the test split would be seen.
    """

    iterations: int
    split: str
    validate_every: int | None
    validation_episodes: int
    validation_split: str
    patience: int | None
    checkpoint_every: int
    keep: int
    checkpoint_seconds: float | None = 60.0
    stop_loss: float | None = None

    def __attrs_post_init__(self) -> None:
        names = ("validate_every", "patience", "validation_episodes", "checkpoint_every", "keep")
        for name in ("iterations", *names):
            object.__setattr__(self, name, whole("train", name, getattr(self, name)))
        for name in ("iterations", "validation_episodes", "checkpoint_every", "keep"):
            if getattr(self, name) is None:
                raise OptionError(f"train: got {name}=None, expected a whole number; leave it out for the default")
        counts = {name: getattr(self, name) for name in names}
        if self.iterations < 0 or any(n is not None and n < 1 for n in counts.values()):
            given = ", ".join(f"{name} {value}" for name, value in {"iterations": self.iterations, **counts}.items())
            raise OptionError(f"train: got {given}, expected positive numbers")
        if self.checkpoint_seconds is not None:
            try:
                object.__setattr__(self, "checkpoint_seconds", float(self.checkpoint_seconds))
            except (TypeError, ValueError):
                object.__setattr__(self, "checkpoint_seconds", math.nan)
        if self.checkpoint_seconds is not None and not self.checkpoint_seconds > 0:
            raise OptionError(
                f"train: got checkpoint_seconds {self.checkpoint_seconds}, expected a positive number, or none to "
                "write no checkpoints by time"
            )
        if self.stop_loss is not None and not (isinstance(self.stop_loss, int | float) and self.stop_loss > 0):
            raise OptionError(f"train: got stop_loss {self.stop_loss!r:.40}, expected a positive number, or none")
        if self.patience is not None and self.validate_every is None:
            raise OptionError("train: got patience without validate_every, expected both: say how often to validate")
        if self.validate_every is not None and self.validation_split == "test":
            raise OptionError("train: got validation_split='test', which training must not see; use another split")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return attrs.asdict(self)


def check_total(outer: Outer, before: int | None, total: int) -> None:
    """Raise OptionError if the number of iterations changes under a schedule that depends on it.

    Args:
        before: the number with which the training began, or None if it begins now.
        total: the number that is asked for now.
    """
    if outer.depends_on_total and before not in (None, total):
        raise OptionError(
            f"train: got iterations={total}, expected {before} as this training began: the learning rates of schedule "
            f"{outer.schedule!r} depend on the total; to train longer, start a new training from these parameters: "
            "engine.init_from(RUN)"
        )
