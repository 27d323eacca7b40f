"""Read the options of a plugin from the signature of its factory, and check values against their types.

A factory is a class or a function; its options are its keyword parameters. Each value is checked against the
annotation of its parameter and converted to that type (a list to a tuple, an int to a float, if the annotation says
so); numbers are finite, and in the range that ``kshot.registry.Range`` declares. A parameter without an annotation
accepts anything. ``kshot.registry.conversion`` converts the values. Nothing
here imports torch or a plugin.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from kshot.errors import OptionError
from kshot.registry.conversion import (
    Raw,
    WrongType,
    check_finite,
    convert,
    did_you_mean,
    parse_literal,
    printable,
    type_text,
)

__all__ = [
    "Option",
    "Raw",
    "check_values",
    "did_you_mean",
    "options_of",
    "parse_literal",
    "table",
    "type_text",
    "validate",
]

LONGEST_DOC = 100_000  # characters of a docstring


@frozen
class Option:
    """One keyword parameter of a factory.

    Attributes:
        name: name of the parameter.
        annotation: its type.
        default: its default value; None if ``required``.
        required: whether it has no default.
        doc: its text in the factory's docstring, or an empty string.

    Example:
        >>> print(Option("width", int, 16, False))
        width: int = 16
    """

    name: str
    annotation: Any
    default: Any
    required: bool
    doc: str = ""

    @property
    def type(self) -> str:
        """The annotation as text, as in ``int | None``, ``'mean' | 'sum'`` or ``tuple[int, ...]``."""
        return type_text(self.annotation)

    def __str__(self) -> str:
        head = f"{self.name}: {self.type}"
        return f"{head} (required)" if self.required else f"{head} = {_default_text(self.default)}"


def _default_text(value: Any) -> str:
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__qualname__
    text = printable(str(value) if isinstance(value, Path) else repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


# -------------------- signatures


def options_of(factory: Callable[..., Any], *, skip_positional: int = 0) -> tuple[Option, ...]:
    """Return the options of a factory in the order of its signature.

    Args:
        factory: a class or a function.
        skip_positional: how many leading parameters are not options.

    Raises:
        OptionError: the factory has no signature.

    Example:
        >>> def learner(spec, *, lr: float = 0.1): ...
        >>> [str(option) for option in options_of(learner, skip_positional=1)]
        ['lr: float = 0.1']
    """
    parameters = [p for p in _parameters(factory) if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    leading = [p for p in parameters if p.kind is not p.KEYWORD_ONLY][:skip_positional]
    namespace = _namespace(factory)
    docs = doc_of(factory)
    if inspect.isclass(factory):
        docs += "\n" + doc_of(factory.__init__)
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


def doc_of(factory: Callable[..., Any]) -> str:
    """Return the docstring of a factory as a terminal may show it; an empty string if it has none."""
    doc = inspect.getdoc(factory)
    return printable(doc)[:LONGEST_DOC] if isinstance(doc, str) else ""


def takes_positional(factory: Callable[..., Any], count: int) -> bool:
    """Say whether ``factory`` can be called with ``count`` leading positional arguments."""
    kinds = [p.kind.name for p in _parameters(factory)]
    return "VAR_POSITIONAL" in kinds or sum(kind.startswith("POSITIONAL") for kind in kinds) >= count


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError) as exc:
        raise OptionError(f"options: got {factory!r}, expected a factory with a signature: {exc}") from exc


def _namespace(factory: Any) -> dict[str, Any]:
    """Return the names for string annotations: those in the modules of the factory and of its ``__init__``."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    module = sys.modules.get(getattr(factory, "__module__", None) or "")
    names = dict(vars(module)) if module is not None else {}
    function = inspect.unwrap(factory.__init__ if inspect.isclass(factory) else factory)
    # An inherited __init__ may be from another module than the class; the names of that module take precedence.
    return names | getattr(function, "__globals__", {})


def _resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Evaluate a string annotation; return a ``ForwardRef``, which accepts anything, if that is not possible.

    Unlike ``typing.get_type_hints``, this evaluates each annotation alone: a name that is imported for type checkers
    only affects one option and not all of them.
    """
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, namespace)
    except SyntaxError:
        return Any
    except Exception:
        return typing.ForwardRef(annotation)


def _doc_line(doc: str, name: str) -> str:
    """Return the text after ``name:`` or ``name (type):`` in a docstring, with the indented lines below it."""
    match = re.search(rf"^([ \t]*){name} *(?:\([^)\n]*\))?:[ \t]+(.+(?:\n\1[ \t]+\S.*)*)", doc, re.MULTILINE)
    return " ".join(match.group(2).split()) if match else ""


# -------------------- all together


def validate(
    factory: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    who: str,
    skip_positional: int = 0,
    missing_ok: Collection[str] = (),
) -> dict[str, Any]:
    """Check the given options and convert each to the type of its parameter.

    Args:
        factory: a class or a function.
        given: names and values; text of the command line is given as ``Raw``.
        who: the component in words, for the error: ``learner 'protonet' (kshot-protonet 0.1.0)``.
        skip_positional: how many leading parameters of the factory are not options.
        missing_ok: required options that the caller supplies later.

    Returns:
        The options, such that ``factory(*leading, **options)`` can be called.

    Raises:
        OptionError: options are unknown, missing or of the wrong type. One message has all of them, with the list of
            valid options. If the factory has ``**kwargs``, no option is unknown.

    Example:
        >>> def tasks(*, way: int = 5, rates: tuple[float, ...] = ()): ...
        >>> validate(tasks, {"rates": [1, 0.5]}, who="tasks 'mine'")
        {'rates': (1.0, 0.5)}
    """
    options = {option.name: option for option in options_of(factory, skip_positional=skip_positional)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in _parameters(factory))
    result: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in given.items():
        if name not in options and not takes_any:
            wrong.append(f"{name}: unknown option{did_you_mean(name, options)}")
            continue
        try:
            result[name] = convert(value, options[name].annotation if name in options else Any)
            if name in options:
                check_finite(result[name], options[name].annotation, options[name].default)
        except WrongType as exc:
            wrong.append(f"{name}: {exc}")
    for option in options.values():
        if option.required and option.name not in given and option.name not in missing_ok:
            wrong.append(f"{option.name}: got nothing, expected {option.type}")
    if wrong:
        listing = f"its options:\n{table(options.values())}" if options else "it takes no options"
        raise OptionError(f"{who}: {'; '.join(wrong)}\n{listing}")
    return result


def check_values(factory: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check that each option has one of the choices, or is in the range, that its annotation declares.

    ``kshot.learner`` and its like do this for every plugin; a class that is called directly, does it by this call at
    the beginning of its ``__init__``.

    Args:
        factory: the class whose options they are.
        values: the options by name, usually ``locals()``; other names are ignored.

    Raises:
        OptionError: an option has another value; the message names all of them.

    Example:
        >>> def mine(spec, *, order="first"):
        ...     check_values(mine, locals())
        >>> mine.__annotations__["order"] = typing.Literal["first", "second"]
        >>> mine(None, order="third")
        Traceback (most recent call last):
        kshot.errors.OptionError: mine: order: got 'third', expected one of 'first', 'second'
    """
    wrong: list[str] = []
    for option in options_of(factory):
        if option.name in values and _is_limited(option.annotation):
            try:
                convert(values[option.name], option.annotation)
            except WrongType as exc:
                wrong.append(f"{option.name}: {exc}")
    if wrong:
        raise OptionError(f"{factory.__name__}: {'; '.join(wrong)}")


def _is_limited(annotation: Any) -> bool:
    """Return whether a type annotation declares choices or a range, and can be checked completely."""
    origin = typing.get_origin(annotation)
    return origin in (typing.Literal, typing.Annotated) or any(map(_is_limited, typing.get_args(annotation)))


def table(options: Iterable[Option]) -> str:
    """Format options as indented lines, one per option: name, type, default, documentation."""
    return "\n".join(f"  {option}" + (f"  {option.doc}" if option.doc else "") for option in options)
