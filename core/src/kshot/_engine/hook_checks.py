"""Check hooks when an engine is made: a hook that could hear nothing, or could not be called, is refused by name.

pluggy calls only methods that are decorated with ``kshot.hookimpl``, by their exact names, and passes only arguments
without defaults. A method that pluggy would ignore, or refuse without naming the hook, is refused here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kshot._engine.hook_specs import Specs, is_property
from kshot.errors import OptionError
from kshot.registry.conversion import did_you_mean

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(method).parameters)[1:]
    for name, method in vars(Specs).items()
    if inspect.isfunction(method)
}
"""The arguments of each hook by its name."""

_ADVICE = "decorate its methods with @kshot.hookimpl and call them {}".format(", ".join(ARGUMENTS))


def named_hooks(hooks: Any) -> list[tuple[str, Any]]:
    """Return hooks with their names: a plugin's name as it is, an object under the name of its class.

    Further objects of one class get a number, as in ``Watch``, ``Watch-2``, in their order, so that their states are
    found again when a run is resumed with the same hooks.

    Args:
        hooks: names of hook plugins, or objects; or {name: object}.

    Raises:
        OptionError: this is not a list or mapping of hooks, or has the same hook twice.

    Example:
        >>> [name for name, _ in named_hooks(["metrics", object(), object()])]
        ['metrics', 'object', 'object-2']
    """
    expected = "expected a list of names and objects, or {name: object}; use hooks=() for none"
    if isinstance(hooks, str):
        raise OptionError(f"hooks: got the text {hooks!r}, {expected}, and hooks=[{hooks!r}] for one")
    if isinstance(hooks, Mapping):
        pairs = list(hooks.items())
        for name, _ in pairs:
            if not isinstance(name, str) or not name:
                raise OptionError(f"hooks: got the name {name!r}, expected a string that is not empty")
    elif hooks is None or not hasattr(hooks, "__iter__"):
        raise OptionError(f"hooks: got {_text(hooks)}, {expected}")
    else:
        pairs = _numbered(hooks)
    for i, (name, hook) in enumerate(pairs):
        for earlier, other in pairs[:i]:
            if hook is other and not isinstance(hook, str):
                raise OptionError(f"hooks: got one object twice, as {earlier!r} and {name!r}, expected it once")
            if isinstance(hook, str) and isinstance(other, str) and name == earlier:
                raise OptionError(f"hooks: got the name {name!r} twice, expected it once; or name them, {{name: hook}}")
    return pairs


def _numbered(hooks: Any) -> list[tuple[str, Any]]:
    listed = list(hooks)
    names = [hook for hook in listed if isinstance(hook, str)]
    pairs = []
    for hook in listed:
        name = own = hook if isinstance(hook, str) else type(hook).__name__
        number = 1
        while not isinstance(hook, str) and name in names:
            number += 1
            name = f"{own}-{number}"
        names.append(name)
        pairs.append((name, hook))
    return pairs


def check_hook(name: str, hook: Any) -> None:
    """Raise OptionError unless every method of a hook is called as its author means it.

    Args:
        name: the hook's name.
        hook: an object.

    Raises:
        OptionError: it has no hook method, or one that is not decorated, misspelt, or has other arguments; or its
            state can be saved and not loaded, or the reverse.
    """
    who = f"hook {name!r}"
    if inspect.isclass(hook):
        raise OptionError(f"{who}: got the class {hook.__qualname__}, expected an object of it: {hook.__qualname__}()")
    heard = False
    suspects = []
    for attribute, method in _methods(hook):
        options = getattr(method, "kshot_impl", None)
        if isinstance(options, Mapping):
            heard = _check_decorated(who, attribute, method, options) or heard
        elif attribute in ARGUMENTS:
            raise OptionError(
                f"{who}: got the method {attribute} without its decorator, expected @kshot.hookimpl above it; without "
                "it the method is not called"
            )
        elif meant := _meant(attribute):
            suspects.append(f"{attribute} (did you mean {meant!r}?)")
    if suspects:
        raise OptionError(f"{who}: got the method {', '.join(suspects)}, which is no hook; {_ADVICE}")
    if not heard:
        raise OptionError(f"{who}: got {_text(hook)}, which has no hook method; {_ADVICE}")
    for has, lacks in (("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")):
        if callable(getattr(hook, has, None)) and not callable(getattr(hook, lacks, None)):
            raise OptionError(f"{who}: got {has} without {lacks}, expected both, or none if it has no state")


def _methods(hook: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the methods of a hook by name; properties are not evaluated."""
    for attribute in dir(hook):
        if not attribute.startswith("__") and not is_property(hook, attribute):
            method = getattr(hook, attribute, None)
            if inspect.isroutine(method) or (attribute in ARGUMENTS and callable(method)):
                yield attribute, method


def _meant(attribute: str) -> str | None:
    """Return the hook that an undecorated method is meant to be: ``on_iteration_end``, ``iterationEnd``."""

    def bare(text: str) -> str:
        return text.replace("_", "").lower().removeprefix("on")

    return next((name for name in ARGUMENTS if bare(name) == bare(attribute)), None)


def _check_decorated(who: str, attribute: str, method: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Check one decorated method; return whether the engine calls it."""
    name = options.get("specname") or attribute
    if name not in ARGUMENTS:
        if options.get("optionalhook"):  # pluggy's way to write for hooks that another version has
            return False
        meant = _meant(name)
        hint = f"; did you mean {meant!r}?" if meant else did_you_mean(name, ARGUMENTS)
        raise OptionError(f"{who}: got the method {name}, expected one of {', '.join(ARGUMENTS)}{hint}")
    function = inspect.unwrap(getattr(method, "__func__", method))
    wraps = options.get("wrapper") or options.get("hookwrapper")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise OptionError(f"{who}: got the async method {attribute}, expected a plain one; nothing would await it")
    if inspect.isgeneratorfunction(function) != bool(wraps):
        got = "a wrapper without yield" if wraps else "a generator, whose body would never run"
        raise OptionError(f"{who}: got {got} in {attribute}, expected a plain method without yield")
    known = ARGUMENTS[name]
    for parameter in inspect.signature(method).parameters.values():
        takes = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            shown = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
            raise OptionError(
                f"{who}: got the argument {shown!r} of {attribute}, to which nothing is passed; expected some of "
                f"{_listed(known)}, by name and before any *"
            )
        if takes not in known and parameter.default is parameter.empty:
            hint = did_you_mean(takes, known)
            raise OptionError(
                f"{who}: got the argument {takes!r} of {attribute}, expected some of {_listed(known)}{hint}"
            )
        if takes in known and parameter.default is not parameter.empty:
            raise OptionError(
                f"{who}: got a default for the argument {takes!r} of {attribute}, expected none; the default would "
                "be used instead of the value"
            )
    return True


def _listed(arguments: tuple[str, ...]) -> str:
    return ", ".join(arguments)


def _text(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"
