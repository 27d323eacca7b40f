"""The choices that ``MamlRL`` offers, and the check of its options."""

from __future__ import annotations

from typing import Any, Literal, get_args

from kshot.errors import OptionError
from kshot_maml_rl.policy import Activation

Outer = Literal["ppo", "reinforce", "trpo"]
Estimator = Literal["lvc", "dice", "log_likelihood"]
Order = Literal["second", "first"]

CHOICES: dict[str, Any] = {"activation": Activation, "outer": Outer, "estimator": Estimator, "order": Order}


def check_options(
    who: str, inner_steps: int, test_steps: int | None, epochs: int, initial_std: float, **chosen: str
) -> None:
    """Check the options of ``MamlRL``.

    Args:
        who: the name of the learner, for messages.
        inner_steps, test_steps, epochs, initial_std: as for ``MamlRL``.
        chosen: the value of each option that is a choice.

    Raises:
        OptionError: negative steps, no epoch, no standard deviation, or an unknown choice.

    Example:
        >>> check_options("maml-rl", 1, None, 4, 0.5, outer="ppo")
    """
    # ``not ... > 0`` refuses NaN too.
    if inner_steps < 0 or (test_steps or 0) < 0 or epochs < 1 or not initial_std > 0:
        given = f"inner_steps {inner_steps}, test_steps {test_steps}, epochs {epochs}, initial_std {initial_std}"
        raise OptionError(f"{who}: got {given}, expected steps >= 0, epochs >= 1, initial_std > 0; raise them")
    for name, value in chosen.items():
        if value not in (choices := get_args(CHOICES[name])):
            expected = ", ".join(map(repr, choices))
            raise OptionError(f"{who}: got {name} {value!r}, expected one of {expected}; choose one of them")
