"""The options of a plugin: the keyword parameters of its factory, checked by their types.

Pure functions over signatures; nothing here knows a plugin or imports torch. A factory is a class or a
function. A value is checked against the annotation of its parameter and comes back in that type (a list as
the tuple it stands for, an int as the float it stands for); a parameter without an annotation takes
anything.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import numbers
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from kshot.errors import OptionError

__all__ = ["Option", "Raw", "did_you_mean", "options_of", "parse_literal", "table", "type_text", "validate"]


class Raw(str):
    """Text of a command-line flag.

    ``validate`` reads it by the option's type: 5 for an int, '5' for a str.
    """

    __slots__ = ()


@frozen
class Option:
    """One keyword parameter of a factory.

    ``default`` is None where ``required``; ``doc`` is from the docstring.
    """

    name: str
    annotation: Any
    default: Any
    required: bool
    doc: str = ""

    @property
    def type(self) -> str:
        """The annotation as text: ``int | None``, ``'mean' | 'sum'``, ``tuple[int, ...]``."""
        return type_text(self.annotation)

    def __str__(self) -> str:
        head = f"{self.name}: {self.type}"
        return f"{head} (required)" if self.required else f"{head} = {_default_text(self.default)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'shot'?"``, or '' where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


# -------------------- text to values


def parse_literal(text: str) -> Any:
    """The value that ``text`` writes in TOML's syntax, or the text itself where it is none.

    ``5``, ``1e-3``, ``true``, ``[1, 2]``, ``{lr = 0.1}`` and ``"quoted"`` are what they look like; ``none``
    is None, ``.5`` and ``True`` are taken too; ``omniglot``, ``a/b.zip`` and dates are strings.
    """
    text = text.strip()
    word = text.lower()
    if word in ("none", "null"):
        return None
    if word in ("true", "false"):
        return word == "true"
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
    if isinstance(value, dict):
        return all(_plain(item) for item in value.values())
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    return isinstance(value, str | bool | int | float)


# -------------------- signatures


def options_of(factory: Callable[..., Any], *, skip_positional: int = 0) -> tuple[Option, ...]:
    """The options of a factory in the order of its signature, without its first ``skip_positional`` ones."""
    parameters = [p for p in _parameters(factory) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    leading = [p for p in parameters if p.kind is not p.KEYWORD_ONLY][:skip_positional]
    namespace = _namespace(factory)
    docs = inspect.getdoc(factory) or ""
    if inspect.isclass(factory):
        docs += "\n" + (inspect.getdoc(factory.__init__) or "")
    return tuple(
        Option(
            name=p.name,
            annotation=_resolve(p.annotation, namespace),
            default=None if p.default is p.empty else p.default,
            required=p.default is p.empty,
            doc=_doc_line(docs, p.name),
        )
        for p in parameters
        if p not in leading and p.kind is not p.POSITIONAL_ONLY
    )


def takes_positional(factory: Callable[..., Any], count: int) -> bool:
    """Whether ``factory`` can be called with ``count`` leading positional arguments."""
    kinds = [p.kind for p in _parameters(factory)]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in positional for kind in kinds) >= count


def _takes_any(factory: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in _parameters(factory))


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError) as exc:
        raise OptionError(f"{factory!r} has no signature to read options from: {exc}") from exc


def _namespace(factory: Any) -> dict[str, Any]:
    """Where names in string annotations are looked up: the modules of the factory and of its ``__init__``."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    module = sys.modules.get(getattr(factory, "__module__", None) or "")
    names = dict(vars(module)) if module is not None else {}
    function = inspect.unwrap(factory.__init__ if inspect.isclass(factory) else factory)
    # An inherited __init__ was written in another module than the class: its own names win.
    names.update(getattr(function, "__globals__", {}))
    return names


def _resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    """A string annotation as the object it names; where a name is missing, a ``ForwardRef``, which takes
    anything.

    One by one, unlike ``typing.get_type_hints``: a name that only type checkers import spoils one option.
    """
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, namespace)
    except Exception:
        try:
            return typing.ForwardRef(annotation)
        except SyntaxError:
            return Any


def _doc_line(doc: str, name: str) -> str:
    """The text after ``name:`` in a docstring, in the usual notations (Args, ``:param``, bullets)."""
    lead = r"^(\s*)(?:[-*]\s+)?(?::param\s+(?:\S+\s+)?)?"
    pattern = rf"{lead}`{{0,2}}{re.escape(name)}`{{0,2}}\s*(?:\([^)]*\))?:\s+(\S.*)$"
    lines = doc.splitlines()
    for i, line in enumerate(lines):
        if match := re.match(pattern, line):
            text = [match.group(2).strip()]
            for more in lines[i + 1 :]:
                if not more.strip() or len(more) - len(more.lstrip()) <= len(match.group(1)):
                    break
                text.append(more.strip())
            return " ".join(text)
    return ""


# -------------------- types


def type_text(annotation: Any) -> str:
    """An annotation as a reader would write it: no module paths, choices as their values."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return "any"
    if annotation is None or annotation is types.NoneType:
        return "None"
    if annotation is Ellipsis:
        return "..."
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, list):  # the arguments of a Callable
        return f"[{', '.join(map(type_text, annotation))}]"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(repr(choice) for choice in args)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_text, args))
    if origin is typing.Annotated:
        return type_text(args[0])
    if origin is not None and args:
        return f"{type_text(origin)}[{', '.join(map(type_text, args))}]"
    return str(getattr(annotation, "__name__", annotation))


def _default_text(value: Any) -> str:
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__qualname__
    text = str(value) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _WrongType(Exception):
    """The message is what follows the option's name."""


def _wrong(value: Any, expected: str) -> _WrongType:
    text = repr(str(value) if isinstance(value, Raw) else value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return _WrongType(
        f"expected {expected}, got {text} ({'text' if isinstance(value, Raw) else type(value).__name__})"
    )


def convert(value: Any, annotation: Any) -> Any:
    """``value`` in the type of ``annotation``; raises where it does not fit. ``Raw`` is read by the type."""
    if not isinstance(value, Raw):
        return _convert(value, annotation)
    parsed = parse_literal(value)
    try:
        return _convert(parsed, annotation)
    except _WrongType as exc:
        if isinstance(parsed, str):
            raise
        try:  # '2024' is a fine name of a folder
            return _convert(str(value), annotation)
        except _WrongType:
            raise exc from None


def _convert(value: Any, annotation: Any) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if (
        annotation is Any
        or annotation is object
        or isinstance(annotation, typing.ForwardRef | typing.TypeVar)
    ):
        return value
    if origin is typing.Annotated:
        return _convert(value, args[0])
    if isinstance(annotation, typing.NewType):
        return _convert(value, annotation.__supertype__)
    if origin is typing.Literal:
        return _choice(value, args)
    if origin in (typing.Union, types.UnionType):
        return _member(value, annotation, args)
    if annotation is None or annotation is types.NoneType:
        if value is not None:
            raise _wrong(value, "None")
        return None
    if annotation is bool:
        if not isinstance(value, bool):
            raise _wrong(value, "bool (true or false)")
        return value
    if annotation is int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise _wrong(value, "int")
        return int(value)
    if annotation is float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise _wrong(value, "float")
        return float(value)
    if annotation is Path:
        if not isinstance(value, str | Path):
            raise _wrong(value, "a path")
        return Path(value)
    kind = origin or annotation
    if kind is collections.abc.Callable:
        if not callable(value):
            raise _wrong(value, "a callable")
        return value
    if kind in _CONTAINERS:
        return _container(value, annotation, kind, args)
    if not inspect.isclass(kind):
        return value
    return _instance(value, annotation, kind)


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:  # True is not 1
            return choice
    hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
    raise _WrongType(f"expected one of {', '.join(map(repr, choices))}, got {value!r}{hint}")


def _member(value: Any, annotation: Any, members: tuple[Any, ...]) -> Any:
    # A value that is one of the types already stays as it is: 5 for `float | int`, 'a' for `Path | str`.
    for member in members:
        if member is type(value):
            return value
    messages = []
    for member in members:
        try:
            return _convert(value, member)
        except _WrongType as exc:
            messages.append((member, str(exc)))
    # For `X | None` the message about X is the useful one.
    real = [text for member, text in messages if member is not types.NoneType]
    if len(real) == 1 and isinstance(value, str | list | tuple | dict):
        raise _WrongType(real[0] + (" (or None)" if len(messages) > 1 else ""))
    raise _wrong(value, type_text(annotation))


_CONTAINERS: dict[Any, tuple[type, ...]] = {
    tuple: (list, tuple),
    list: (list, tuple),
    set: (list, tuple, set, frozenset),
    frozenset: (list, tuple, set, frozenset),
    dict: (collections.abc.Mapping,),
    collections.abc.Sequence: (list, tuple, range),
    collections.abc.Iterable: (list, tuple, range, set, frozenset),
    collections.abc.Collection: (list, tuple, range, set, frozenset),
    collections.abc.Set: (list, tuple, set, frozenset),
    collections.abc.Mapping: (collections.abc.Mapping,),
}


def _container(value: Any, annotation: Any, kind: Any, args: tuple[Any, ...]) -> Any:
    accepted: Any = _CONTAINERS[kind]
    if not isinstance(value, accepted):
        raise _wrong(value, type_text(annotation))
    if isinstance(value, collections.abc.Mapping):
        key_type, value_type = args or (Any, Any)
        return {
            _item(key, key_type, value, annotation): _item(item, value_type, value, annotation)
            for key, item in value.items()
        }
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise _wrong(value, f"{type_text(annotation)} of {len(args)} values")
        return tuple(_item(item, each, value, annotation) for item, each in zip(value, args, strict=True))
    items = [_item(item, args[0] if args else Any, value, annotation) for item in value]
    if kind in (tuple, list, set, frozenset):
        return kind(items)
    return frozenset(items) if kind is collections.abc.Set else tuple(items)


def _item(item: Any, item_type: Any, whole: Any, annotation: Any) -> Any:
    try:
        return _convert(item, item_type)
    except _WrongType as exc:
        raise _WrongType(f"expected {type_text(annotation)}, got {whole!r}: in it {exc}") from None


def _instance(value: Any, annotation: Any, kind: Any) -> Any:
    if getattr(kind, "_is_protocol", False):
        # What a protocol demands is the business of who uses it; but no plain value is a learner.
        if isinstance(value, str | bytes | int | float | list | tuple | dict | None):
            raise _wrong(value, type_text(annotation))
        return value
    try:
        fits = isinstance(value, kind)
    except TypeError:
        return value
    if not fits:
        raise _wrong(value, type_text(annotation))
    return str(value) if kind is str and isinstance(value, Raw) else value


# -------------------- all together


def validate(
    factory: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    who: str,
    skip_positional: int = 0,
    missing_ok: Collection[str] = (),
) -> dict[str, Any]:
    """The given options, each in the type of its parameter: what ``factory(*leading, **result)`` takes.

    Args:
        factory: a class or a function; its first ``skip_positional`` parameters are no options.
        given: names and values. Text of the command line comes as ``Raw``.
        who: whose options these are, for the error: ``learner 'protonet' (kshot-protonet 0.1.0)``.
        missing_ok: required options that someone else supplies.

    Raises:
        OptionError: unknown, ill-typed or missing options, *all* of them in one message with the list of
            valid ones. A factory with ``**kwargs`` has no unknown options.
    """
    options = {option.name: option for option in options_of(factory, skip_positional=skip_positional)}
    result: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in given.items():
        if name not in options:
            if _takes_any(factory):
                result[name] = parse_literal(value) if isinstance(value, Raw) else value
            else:
                wrong.append(f"{name}: unknown option{did_you_mean(name, options)}")
            continue
        try:
            result[name] = convert(value, options[name].annotation)
        except _WrongType as exc:
            wrong.append(f"{name}: {exc}")
    for option in options.values():
        if option.required and option.name not in given and option.name not in missing_ok:
            wrong.append(f"{option.name}: missing, expected {option.type}")
    if wrong:
        listing = table(options.values())
        raise OptionError(
            f"{who}: {'; '.join(wrong)}"
            + (f"\nits options:\n{listing}" if listing else "\nit takes no options")
        )
    return result


def table(options: Iterable[Option]) -> str:
    """One indented line an option: name, type, default, documentation."""
    return "\n".join(f"  {option}" + (f"  {option.doc}" if option.doc else "") for option in options)
