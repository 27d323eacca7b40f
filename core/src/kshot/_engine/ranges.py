"""Declare at each option which numbers it takes, and check them all with one message."""

from __future__ import annotations

import math
import numbers
from typing import Any

import attrs
from attrs import frozen

from kshot.errors import OptionError

MOST = 2**31 - 1
"""Greatest count of anything: products of counts then fit into 64 bits."""

_RANGE = "kshot.range"


@frozen
class Range:
    """Describe the numbers that an option takes.

    Attributes:
        least, most: least and greatest number.
        whole: whether only whole numbers are allowed.
        open_below, open_above: whether ``least`` or ``most`` itself is excluded.
        none: whether None is allowed.

    Example:
        >>> print(Range(0, 1, open_above=True))
        a number >= 0 and < 1
    """

    least: float
    most: float = math.inf
    whole: bool = False
    open_below: bool = False
    open_above: bool = False
    none: bool = False

    def __contains__(self, value: Any) -> bool:
        if value is None:
            return self.none
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        size: Any = value
        above = size > self.least if self.open_below else size >= self.least
        below = size < self.most if self.open_above else size <= self.most
        return bool(above and below)  # NaN is neither

    def __str__(self) -> str:
        if self.open_below and self.least == 0:
            text = "a positive number"
        else:
            text = f"a {'whole ' if self.whole else ''}number {'>' if self.open_below else '>='} {self.least}"
        if self.whole or (self.open_above and self.most < math.inf):
            text += f" and {'<' if self.open_above else '<='} {self.most}"
        return f"{text}, or none" if self.none else text


def count(default: int | None, *, least: int = 1) -> Any:
    """Return an attrs field for a whole number from ``least`` to ``MOST``; None is allowed if it is the default."""
    return attrs.field(default=default, metadata={_RANGE: Range(least, MOST, whole=True, none=default is None)})


def rate(default: float | None, *, zero: bool = False, below: float = math.inf, none: bool = False) -> Any:
    """Return an attrs field for a finite number >= 0.

    Args:
        zero: whether 0 is allowed.
        below: the number must be less than this.
        none: whether None is allowed.
    """
    return attrs.field(
        default=default, metadata={_RANGE: Range(0, below, open_below=not zero, open_above=True, none=none)}
    )


def check_ranges(options: Any, who: str) -> None:
    """Raise OptionError if fields of an attrs object are out of their ranges; one message lists all of them.

    Example:
        >>> @frozen
        ... class Options:
        ...     size: int = count(1)
        >>> check_ranges(Options(size=-1), "mine")
        Traceback (most recent call last):
        kshot.errors.OptionError: mine.size: got -1, expected a whole number >= 1 and <= 2147483647
    """
    wrong = [
        f"{who}.{field.name}: got {getattr(options, field.name)!r:.60}, expected {field.metadata[_RANGE]}"
        for field in attrs.fields(type(options))
        if _RANGE in field.metadata and getattr(options, field.name) not in field.metadata[_RANGE]
    ]
    if wrong:
        raise OptionError("; ".join(wrong))
