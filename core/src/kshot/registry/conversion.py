"""Convert values of options: text to values, and values to the type that an annotation demands."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import operator
import os
import re
import types
import typing
from collections import abc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kshot.registry.ranges import Range, range_of

__all__ = [
    "Raw",
    "WrongType",
    "check_finite",
    "convert",
    "did_you_mean",
    "nearest",
    "parse_literal",
    "printable",
    "type_text",
]


class Raw(str):
    """Text of a command-line flag, which is read according to the option's type: 5 for an int, '5' for a str.

    Example:
        >>> convert(Raw("5"), int), convert(Raw("5"), str)
        (5, '5')
    """

    __slots__ = ()


class WrongType(Exception):
    """Raised when a value does not fit an annotation; the message is meant to follow the option's name."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to ``name``, or None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the hint ``"; did you mean 'shot'?"``, or an empty string if no known name is similar.

    Example:
        >>> did_you_mean("shots", ["way", "shot"])
        "; did you mean 'shot'?"
    """
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


# Terminals obey control characters, and some others reorder or hide the text around them. These patterns are compiled
# when they are first needed, because most text is printable.
_SEQUENCE = r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]"


def printable(text: str) -> str:
    """Return text of a plugin without what a terminal would obey; newlines and tabs stay.

    Example:
        >>> printable("\\x1b[31mred\\x1b[0m\\r")
        'red'
    """
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return re.sub(_CONTROL, "", re.sub(_SEQUENCE, "", text))


# -------------------- text to values


def parse_literal(text: str) -> Any:
    """Read text in TOML's syntax; return the text itself if it is not valid TOML.

    ``5``, ``1e-3``, ``true``, ``[1, 2]``, ``{lr = 0.1}`` and ``"quoted"`` are what they look like. Unlike in TOML,
    ``none`` is None, and ``.5`` and ``True`` are accepted. ``omniglot``, ``a/b.zip`` and dates are strings.

    Example:
        >>> parse_literal("[1, 2]"), parse_literal("none"), parse_literal("omniglot")
        ([1, 2], None, 'omniglot')
    """
    text = text.strip()
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if re.fullmatch(r"[+-]?(\.\d+|\d+\.)([eE][+-]?\d+)?", text):
        return float(text)
    if "\n" in text or "\r" in text:
        return text
    import tomllib

    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return text
    return value if _plain(value) else text


def _plain(value: Any) -> bool:
    """Say whether JSON can write the value. TOML's dates and times can't be meant as the value of an option."""
    if isinstance(value, dict | list):
        return all(map(_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | bool | int | float)


# -------------------- annotations to text


def type_text(annotation: Any) -> str:
    """Return an annotation as a reader would write it: without module paths, and choices by their values.

    Example:
        >>> type_text(tuple[int, ...] | None)
        'tuple[int, ...] | None'
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return "any"
    if annotation is None or annotation is types.NoneType:
        return "None"
    if annotation is Ellipsis:
        return "..."
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, list):  # the arguments of a Callable
        return f"[{', '.join(map(type_text, annotation))}]"
    if origin is typing.Literal:
        return " | ".join(map(repr, args))
    if origin in _UNIONS:
        return " | ".join(map(type_text, args))
    if origin is typing.Annotated:
        limits = range_of(annotation.__metadata__)
        return f"{type_text(args[0])} {limits}" if limits is not None and str(limits) else type_text(args[0])
    if args:
        return f"{type_text(origin)}[{', '.join(map(type_text, args))}]"
    return str(getattr(annotation, "__name__", annotation))


# -------------------- values to types

_UNIONS = (typing.Union, types.UnionType)
_SCALARS: dict[type, tuple[Any, str]] = {
    bool: (bool, "bool (true or false)"),
    int: (numbers.Integral, "int"),
    float: (numbers.Real, "float"),
    str: (str, "str"),
    Path: ((str, os.PathLike), "a path"),
}
_ORDERED = (list, tuple, range)
_ANY_ORDER = (*_ORDERED, set, frozenset)
_CONTAINERS: dict[Any, tuple[Any, Any]] = {  # accepted types, and the type of the result
    tuple: (_ORDERED, tuple),
    list: (_ORDERED, list),
    abc.Sequence: (_ORDERED, tuple),
    abc.Iterable: (_ANY_ORDER, tuple),
    abc.Collection: (_ANY_ORDER, tuple),
    set: (_ANY_ORDER, set),
    frozenset: (_ANY_ORDER, frozenset),
    abc.Set: (_ANY_ORDER, frozenset),
    dict: (Mapping, dict),
    abc.Mapping: (Mapping, dict),
}


def convert(value: Any, annotation: Any) -> Any:
    """Convert a value to the type of an annotation.

    Args:
        value: any value; ``Raw`` text is read according to the annotation.
        annotation: a type, or a construct of ``typing``. Annotations that can't be checked accept anything.

    Raises:
        WrongType: the value does not fit.

    Example:
        >>> convert([1, 2], tuple[float, ...])
        (1.0, 2.0)
    """
    if not isinstance(value, Raw):
        return _convert(value, annotation)
    parsed = parse_literal(value)
    try:
        return _convert(parsed, annotation)
    except WrongType as exc:
        try:  # the text may be meant as it is: a folder can be called '2024'
            return _convert(str(value), annotation)
        except WrongType:
            raise exc from None


def _convert(value: Any, annotation: Any) -> Any:
    value = _of_numpy(value)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    kind = origin or annotation
    is_class = inspect.isclass(kind)  # if not, it is a type variable or a name for type checkers: accept anything
    if annotation is Any:
        return value
    if origin is typing.Annotated:
        return _ranged(value, args[0], range_of(annotation.__metadata__), annotation)
    if isinstance(annotation, typing.NewType):
        return _convert(value, annotation.__supertype__)
    if origin is typing.Literal:
        return _choice(value, args)
    if origin in _UNIONS:
        return _member(value, annotation, args)
    if annotation is None or annotation is types.NoneType:
        return _checked(value, value is None, "None")
    if not is_class:
        return value
    if kind in _SCALARS:
        accepted, expected = _SCALARS[kind]
        a_bool = isinstance(value, bool) and kind is not bool
        return _scalar(_checked(value, isinstance(value, accepted) and not a_bool, expected), kind)
    if kind in _CONTAINERS:
        return _container(value, annotation, kind, args)
    if kind is abc.Callable:
        return _checked(value, callable(value), "a callable")
    if getattr(kind, "_is_protocol", False):
        # Who uses the component checks the protocol; here, only plain values are excluded.
        plain = isinstance(value, str | bytes | int | float | list | tuple | dict | None)
        return _checked(value, not plain, type_text(annotation))
    try:
        fits = isinstance(value, kind)
    except TypeError:  # a TypedDict
        return value
    return _checked(value, fits, type_text(annotation))


def _of_numpy(value: Any) -> Any:
    """Return a number, boolean or string of numpy as Python's; numpy need not be imported for it."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and hasattr(value, "dtype"):
        return value.item()
    return value


def _scalar(value: Any, kind: Any) -> Any:
    """Return a value of a fitting type as exactly ``kind``, if it is a number that can be meant.

    Infinity passes here, as ``Range(infinite=True)`` and a default may allow it; see ``check_finite``.
    """
    if kind is str:
        return str.__str__(value)  # of a subclass, such as numpy's or an enumeration's
    if kind is int:
        number = operator.index(value)
        if not -(1 << 63) <= number < 1 << 64:
            raise WrongType(f"got an int of {number.bit_length()} bits, expected one of at most 64")
        return number
    if kind is Path:
        path = os.fspath(value)
        if not isinstance(path, str) or "\0" in path:
            raise WrongType(f"got {shown(value)}, expected a path of characters that a file system takes")
        return Path(path)
    try:
        converted = kind(value)
    except OverflowError:
        raise WrongType("got a number that is too large for a float, expected one of at most 1.8e308") from None
    if kind is float and math.isnan(converted):
        raise WrongType("got NaN, expected a number")
    return converted


def _ranged(value: Any, annotation: Any, limits: Range | None, whole: Any) -> Any:
    converted = _convert(value, annotation)
    if limits is None or converted is None or not isinstance(converted, int | float):
        return converted
    if not limits.admits(converted):
        raise WrongType(f"got {converted!r}, expected {type_text(whole)}")
    return converted


def check_finite(value: Any, annotation: Any, default: Any) -> None:
    """Raise WrongType if an option has an infinite float that its annotation and its default do not allow.

    Args:
        value: the converted value; lists and mappings are searched.
        annotation: the annotation of the option.
        default: its default; an infinite one allows infinity.
    """
    if _has_infinity(value) and not _has_infinity(default) and not _allows_infinity(annotation):
        raise WrongType(f"got {shown(value)}, expected {type_text(annotation)} of finite numbers")


def _has_infinity(value: Any) -> bool:
    if type(value) in (list, tuple, set, frozenset):
        return any(map(_has_infinity, value))
    if type(value) is dict:
        return any(map(_has_infinity, value.values()))
    return isinstance(value, float) and math.isinf(value)


def _allows_infinity(annotation: Any) -> bool:
    if annotation is Any:
        return True
    if typing.get_origin(annotation) is typing.Annotated:
        limits = range_of(annotation.__metadata__)
        if limits is not None and limits.infinite:
            return True
    return any(map(_allows_infinity, typing.get_args(annotation)))


def shown(value: Any) -> str:
    """Return a value as text for a message, of at most 80 characters."""
    try:
        text = printable(repr(value))
    except Exception:  # a plugin's or user's own
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _checked(value: Any, fits: bool, expected: str) -> Any:
    if fits:
        return value
    raise WrongType(f"got {shown(value)} ({type(value).__name__}), expected {expected}")


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    value = str.__str__(value) if isinstance(value, str) else value
    for choice in choices:
        if type(value) is type(choice) and value == choice:  # True is not 1
            return choice
    hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    raise WrongType(f"got {shown(value)}, expected one of {', '.join(map(repr, choices))}{hint}")


def _member(value: Any, annotation: Any, members: tuple[Any, ...]) -> Any:
    # A value that already has one of the types stays unchanged: 5 for `float | int`, 'a' for `Path | str`.
    if type(value) in members:
        return _convert(value, type(value))
    messages = []
    for member in members:
        try:
            return _convert(value, member)
        except WrongType as exc:
            if member is not types.NoneType:
                messages.append(str(exc))
    # For `X | None`, the message about X is the useful one.
    if len(messages) == 1 and isinstance(value, str | list | tuple | dict):
        raise WrongType(f"{messages[0]} (or None)")
    return _checked(value, False, type_text(annotation))


def _container(value: Any, annotation: Any, kind: Any, args: tuple[Any, ...]) -> Any:
    accepted, container = _CONTAINERS[kind]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 1 and container is not dict:
        value = value.tolist()
    _checked(value, isinstance(value, accepted), type_text(annotation))
    fixed = kind is tuple and args and args[-1] is not Ellipsis
    if fixed:
        _checked(value, len(value) == len(args), f"{type_text(annotation)} of {len(args)} values")
    try:
        if container is dict:
            of_key, of_value = args or (Any, Any)
            return {convert(key, of_key): convert(item, of_value) for key, item in value.items()}
        each = args if fixed else [args[0] if args else Any] * len(value)
        return container(convert(item, item_type) for item, item_type in zip(value, each, strict=True))
    except WrongType as exc:
        raise WrongType(f"got {shown(value)}, expected {type_text(annotation)}; of an element: {exc}") from None
