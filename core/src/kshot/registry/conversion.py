"""Convert values of options: text to values, and values to the type that an annotation demands."""

from __future__ import annotations

import difflib
import inspect
import numbers
import re
import types
import typing
from collections import abc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Raw", "WrongType", "convert", "did_you_mean", "nearest", "parse_literal", "type_text"]


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
    except (tomllib.TOMLDecodeError, RecursionError):
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
        return type_text(args[0])
    if args:
        return f"{type_text(origin)}[{', '.join(map(type_text, args))}]"
    return str(getattr(annotation, "__name__", annotation))


# -------------------- values to types

_UNIONS = (typing.Union, types.UnionType)
_SCALARS: dict[type, tuple[Any, str]] = {
    bool: (bool, "bool (true or false)"),
    int: (numbers.Integral, "int"),
    float: (numbers.Real, "float"),
    Path: ((str, Path), "a path"),
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
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    kind = origin or annotation
    is_class = inspect.isclass(kind)  # if not, it is a type variable or a name for type checkers: accept anything
    if annotation is Any:
        return value
    if origin is typing.Annotated:
        return _convert(value, args[0])
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
        return _bounded(kind, _checked(value, isinstance(value, accepted) and not a_bool, expected))
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


def _checked(value: Any, fits: bool, expected: str) -> Any:
    if fits:
        return value
    text = repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    raise WrongType(f"got {text} ({type(value).__name__}), expected {expected}")


def _bounded(kind: Any, value: Any) -> Any:
    """Return a value as a bool, int, float or path, if it is one that computations can take."""
    if kind is int:
        _checked(value, -(1 << 63) <= value < 1 << 64, "an int of at most 64 bits")
    elif kind is float:  # NaN differs from itself; a longer int is no float
        _checked(value, value == value and (not isinstance(value, int) or abs(value) < 1 << 1000), "a number, not NaN")
    return kind(value)


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:  # True is not 1
            return choice
    hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    raise WrongType(f"got {value!r}, expected one of {', '.join(map(repr, choices))}{hint}")


def _member(value: Any, annotation: Any, members: tuple[Any, ...]) -> Any:
    # A value that already has one of the types stays unchanged: 5 for `float | int`, 'a' for `Path | str`.
    if type(value) in members:
        return _bounded(type(value), value) if type(value) in (int, float) else value
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
        raise WrongType(f"got {value!r}, expected {type_text(annotation)}; of an element: {exc}") from None
