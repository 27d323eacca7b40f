"""The options of a plugin: the keyword parameters of its factory, checked by their types.

Pure functions over signatures; nothing here knows a plugin or imports torch. A factory is a class or a
function. A value is checked against the annotation of its parameter and comes back in that type (a list as
the tuple it stands for, an int as the float it stands for); a parameter without an annotation takes
anything. ``kshot.registry.conversion`` knows the types.
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
from kshot.registry.conversion import Raw, WrongType, convert, did_you_mean, parse_literal, type_text

__all__ = ["Option", "Raw", "did_you_mean", "options_of", "parse_literal", "table", "type_text", "validate"]


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


def _default_text(value: Any) -> str:
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__qualname__
    text = str(value) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
    kinds = [p.kind.name for p in _parameters(factory)]
    return "VAR_POSITIONAL" in kinds or sum(kind.startswith("POSITIONAL") for kind in kinds) >= count


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
    return names | getattr(function, "__globals__", {})


def _resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    """A string annotation as the object it names; a ``ForwardRef``, which takes anything, where it can't be.

    One by one, unlike ``typing.get_type_hints``: a name that only type checkers import spoils one option.
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
    """The text after ``name:`` or ``name (type):`` in a docstring, with the deeper lines below it."""
    found = re.search(rf"^([ \t]*){name} *(?:\([^)\n]*\))?:[ \t]+(.+(?:\n\1[ \t]+\S.*)*)", doc, re.MULTILINE)
    return " ".join(found.group(2).split()) if found else ""


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
    takes_any = any(p.kind is p.VAR_KEYWORD for p in _parameters(factory))
    result: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in given.items():
        if name not in options and not takes_any:
            wrong.append(f"{name}: unknown option{did_you_mean(name, options)}")
            continue
        try:
            result[name] = convert(value, options[name].annotation if name in options else Any)
        except WrongType as exc:
            wrong.append(f"{name}: {exc}")
    for option in options.values():
        if option.required and option.name not in given and option.name not in missing_ok:
            wrong.append(f"{option.name}: missing, expected {option.type}")
    if wrong:
        listing = f"its options:\n{table(options.values())}" if options else "it takes no options"
        raise OptionError(f"{who}: {'; '.join(wrong)}\n{listing}")
    return result


def table(options: Iterable[Option]) -> str:
    """One indented line an option: name, type, default, documentation."""
    return "\n".join(f"  {option}" + (f"  {option.doc}" if option.doc else "") for option in options)
