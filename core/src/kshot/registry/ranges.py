"""Declare the numbers that an option takes, in its annotation: ``width: Annotated[int, Range(1, 4096)]``."""

from __future__ import annotations

from typing import Annotated, Any

from attrs import frozen

MOST = 2**31 - 1
"""Greatest count of anything: products of counts then fit into 64 bits."""


@frozen
class Range:
    """Declare which numbers an option takes; a plugin's author writes it into the annotation of the parameter.

    The registry checks it before the component is built, and ``kshot info`` shows it. It is optional.

    Attributes:
        least: the least number, or None.
        most: the greatest number, or None.
        above: a number that the option must be greater than, or None.
        below: a number that the option must be less than, or None.
        infinite: whether infinity is allowed, for instance to mean "no limit"; otherwise floats are finite.

    Example:
        >>> from typing import Annotated
        >>> from kshot.registry.options import validate
        >>> def learner(*, width: Annotated[int, Range(1, 4096)] = 64): ...
        >>> validate(learner, {"width": 0}, who="learner 'mine'")
        Traceback (most recent call last):
        kshot.errors.OptionError: learner 'mine': width: got 0, expected int from 1 to 4096
        its options:
          width: int from 1 to 4096 = 64
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        sides = [
            text
            for text, bound in (
                (f"at least {self.least}", self.least),
                (f"above {self.above}", self.above),
                (f"at most {self.most}", self.most),
                (f"below {self.below}", self.below),
            )
            if bound is not None
        ]
        return " and ".join(sides)

    def admits(self, number: Any) -> bool:
        """Return whether a number is in this range."""
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


Count = Annotated[int, Range(1, MOST)]
"""The type of an option that counts something, of which there is at least one."""

CountOrZero = Annotated[int, Range(0, MOST)]
"""The type of an option that counts something, of which there may be none."""

Positive = Annotated[float, Range(above=0)]
"""The type of an option such as a learning rate or a time."""


def range_of(metadata: tuple[Any, ...]) -> Range | None:
    """Return the range among the metadata of ``Annotated``, or None."""
    return next((each for each in metadata if isinstance(each, Range)), None)
