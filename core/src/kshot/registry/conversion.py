"""Values of options: what text means, and how a value becomes the type that an annotation asks for."""

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
    """Text of a command-line flag, read by the option's type: 5 for an int, '5' for a str."""

    __slots__ = ()


class WrongType(Exception):
    """A value does not fit an annotation; the message is what follows the option's name."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``, or None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'shot'?"``, or '' where nothing is near."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""


# -------------------- text to values


def parse_literal(text: str) -> Any:
    """The value that ``text`` writes in TOML's syntax, or the text itself where it is none.

    ``5``, ``1e-3``, ``true``, ``[1, 2]``, ``{lr = 0.1}`` and ``"quoted"`` are what they look like; ``none``
    is None, ``.5`` and ``True`` are taken too; ``omniglot``, ``a/b.zip`` and dates are strings.
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
    """Whether JSON could write it; TOML's dates and times are not meant by anyone who types an option."""
    if isinstance(value, dict | list):
        return all(map(_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | bool | int | float)


# -------------------- annotations to text


def type_text(annotation: Any) -> str:
    """An annotation as a reader would write it: no module paths, choices as their values."""
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
_CONTAINERS: dict[Any, tuple[Any, Any]] = {  # what is taken, what it becomes
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
    """``value`` in the type of ``annotation``; ``Raw`` is read by the type. Raises WrongType."""
    if not isinstance(value, Raw):
        return _convert(value, annotation)
    parsed = parse_literal(value)
    try:
        return _convert(parsed, annotation)
    except WrongType as exc:
        try:  # '2024' is a fine name of a folder
            return _convert(str(value), annotation)
        except WrongType:
            raise exc from None


def _convert(value: Any, annotation: Any) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    kind = origin or annotation
    is_class = inspect.isclass(kind)  # else a name for type checkers only, a type variable: anything goes
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
        return kind(_checked(value, isinstance(value, accepted) and not a_bool, expected))
    if kind in _CONTAINERS:
        return _container(value, annotation, kind, args)
    if kind is abc.Callable:
        return _checked(value, callable(value), "a callable")
    if getattr(kind, "_is_protocol", False):
        # What a protocol demands is the business of who uses it; but no plain value is a learner.
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
    raise WrongType(f"expected {expected}, got {text} ({type(value).__name__})")


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:  # True is not 1
            return choice
    hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    raise WrongType(f"expected one of {', '.join(map(repr, choices))}, got {value!r}{hint}")


def _member(value: Any, annotation: Any, members: tuple[Any, ...]) -> Any:
    # A value that is one of the types already stays as it is: 5 for `float | int`, 'a' for `Path | str`.
    if type(value) in members:
        return value
    messages = []
    for member in members:
        try:
            return _convert(value, member)
        except WrongType as exc:
            if member is not types.NoneType:
                messages.append(str(exc))
    # For `X | None` the message about X is the useful one.
    if len(messages) == 1 and isinstance(value, str | list | tuple | dict):
        raise WrongType(f"{messages[0]} (or None)")
    return _checked(value, False, type_text(annotation))


def _container(value: Any, annotation: Any, kind: Any, args: tuple[Any, ...]) -> Any:
    accepted, made = _CONTAINERS[kind]
    _checked(value, isinstance(value, accepted), type_text(annotation))
    fixed = kind is tuple and args and args[-1] is not Ellipsis
    if fixed:
        _checked(value, len(value) == len(args), f"{type_text(annotation)} of {len(args)} values")
    try:
        if made is dict:
            of_key, of_value = args or (Any, Any)
            return {convert(key, of_key): convert(item, of_value) for key, item in value.items()}
        each = args if fixed else [args[0] if args else Any] * len(value)
        return made(convert(item, item_type) for item, item_type in zip(value, each, strict=True))
    except WrongType as exc:
        raise WrongType(f"expected {type_text(annotation)}, got {value!r}: in it {exc}") from None
